"""A canonical volume as the bytes of a .nii.gz file."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

NIFTI_SUFFIX = ".nii.gz"


def nifti_bytes(
    voxels: Shaped[np.ndarray, "slice row col"],
    affine: Float64[np.ndarray, "4 4"],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    axis_codes: str = "LAS",
) -> bytes:
    """The bytes of a .nii.gz of canonical voxels, stored in the order of `axis_codes`; equal voxels give equal bytes.

    sform and qform are both set, with code 1 (scanner). For a sheared affine (gantry tilt) the qform holds the nearest
    rotation, since a quaternion cannot hold a shear, and the sform the affine itself.
    """
    import nibabel as nib  # 0.9 s that reading does not need

    library: Any = nib  # its functions are untyped
    image = library.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    found, wanted = library.io_orientation(image.affine), library.orientations.axcodes2ornt(tuple(axis_codes))
    image = image.as_reoriented(library.orientations.ornt_transform(found, wanted))
    stored = library.Nifti1Image(np.asfortranarray(image.dataobj), image.affine)
    stored.header.set_slope_inter(slope, intercept)
    stored.header.set_xyzt_units("mm")
    stored.set_sform(stored.affine, code=1)
    stored.set_qform(stored.affine, code=1)
    return gzip.compress(stored.to_bytes(), compresslevel=1, mtime=0)  # noise hardly compresses better at higher levels
