"""A canonical volume as the bytes of a .nii.gz file."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped

GZIP_LEVEL = 1
"""Fast; noise hardly compresses better at higher levels."""


def nifti_bytes(
    voxels: Shaped[np.ndarray, "slice row col"],
    affine: Float64[np.ndarray, "4 4"],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    axis_codes: str = "LAS",
) -> bytes:
    """The bytes of a .nii.gz of canonical voxels, stored in the order of `axis_codes`; equal voxels give equal bytes.

    sform and qform are both set, with code 1 (scanner); of a sheared affine (gantry tilt) the qform holds the nearest
    rotation, as a quaternion can, and the sform all of it.
    """
    image: Any = nib.Nifti1Image(voxels.transpose(2, 1, 0), _of_reversed_axes(affine))  # type: ignore[no-untyped-call]
    image = image.as_reoriented(_turn(image.affine, axis_codes))
    stored: Any = nib.Nifti1Image(np.asfortranarray(image.dataobj), image.affine)  # type: ignore[no-untyped-call]
    stored.header.set_slope_inter(slope, intercept)
    stored.header.set_xyzt_units("mm")
    stored.set_sform(stored.affine, code=1)
    stored.set_qform(stored.affine, code=1)
    return gzip.compress(stored.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0)


def _of_reversed_axes(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """The affine of (column, row, slice) for that of (slice, row, column)."""
    return affine[:, [2, 1, 0, 3]]


def _turn(affine: Float64[np.ndarray, "4 4"], axis_codes: str) -> Any:
    found: Any = nib.orientations.io_orientation(affine)  # type: ignore[no-untyped-call]
    wanted: Any = nib.orientations.axcodes2ornt(tuple(axis_codes))  # type: ignore[no-untyped-call]
    return nib.orientations.ornt_transform(found, wanted)  # type: ignore[no-untyped-call]
