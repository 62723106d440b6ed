"""A phantom as the bytes of a .nii.gz file."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped

GZIP_LEVEL = 1
"""Fast; noise hardly compresses better at higher levels."""


def nifti_bytes(voxels: Shaped[np.ndarray, "slice row col"], affine: Float64[np.ndarray, "4 4"]) -> bytes:
    """The bytes of a .nii.gz of canonical voxels, stored in the usual axis order (codes L A S); equal voxels give
    equal bytes.

    sform and qform are both set, with code 1 (scanner), slope 1 and intercept 0.
    """
    stored = np.asfortranarray(voxels.transpose(2, 1, 0)[:, ::-1, :])
    image: Any = nib.Nifti1Image(stored, _stored_affine(affine, voxels.shape[1]))  # type: ignore[no-untyped-call]
    image.header.set_slope_inter(1.0, 0.0)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0)


def _stored_affine(affine: Float64[np.ndarray, "4 4"], n_rows: int) -> Float64[np.ndarray, "4 4"]:
    to_canonical = np.array(
        [[0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, n_rows - 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    return np.asarray(affine @ to_canonical)
