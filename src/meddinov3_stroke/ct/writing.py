"""A volume as NIfTI, and the slice geometry that NIfTI cannot store."""

from __future__ import annotations

from typing import Any

import numpy as np

from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import Volume

POSITION_TOLERANCE_MM = 0.05
"""The position of a slice further than this from where the affine puts it is lost in NIfTI."""


def nifti_bytes_of(volume: Volume, axis_codes: str = "LAS") -> bytes:
    """The bytes of a .nii.gz of a volume as acquired: voxels and scaling as stored, geometry by its affine."""
    return nifti_bytes(
        volume.stored, volume.affine, slope=volume.slope, intercept=volume.intercept, axis_codes=axis_codes
    )


def misplaced_mm(volume: Volume) -> float:
    """Largest distance of a slice from where the affine puts it, which is above 0 for unevenly spaced slices."""
    on_a_line = volume.affine[:3, 3] + np.arange(volume.n_slices)[:, None] * volume.affine[:3, 0]
    return float(np.linalg.norm(volume.slice_positions_mm - on_a_line, axis=1).max())


def slices_document(volume: Volume) -> dict[str, Any]:
    """Position, steps and image of each canonical slice, inferior to superior, in RAS+ mm."""
    return {
        "order": "canonical: slices inferior to superior, rows anterior to posterior, columns patient right to left",
        "slice_positions_mm": volume.slice_positions_mm.tolist(),
        "row_steps_mm": volume.slice_steps_mm[:, :, 0].tolist(),
        "column_steps_mm": volume.slice_steps_mm[:, :, 1].tolist(),
        "sop_instance_uids": [image.sop_instance_uid for image in volume.source.images] or None,
        "nifti_misplaces_slices_by_mm": round(misplaced_mm(volume), 4),
    }
