"""A volume as NIfTI, and what NIfTI cannot hold of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from meddinov3_stroke.ct.resampling import Resampled
from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import Volume

POSITION_TOLERANCE_MM = 0.05
"""Slices further than this from where the affine puts them are lost in NIfTI."""


def nifti_bytes_of(volume: Volume, axis_codes: str = "LAS") -> bytes:
    """The bytes of a .nii.gz of a volume as acquired: voxels and scaling as stored, geometry by its affine."""
    return nifti_bytes(
        volume.stored, volume.affine, slope=volume.slope, intercept=volume.intercept, axis_codes=axis_codes
    )


def nifti_bytes_of_grid(grid: Resampled, axis_codes: str = "LAS") -> bytes:
    """The bytes of a .nii.gz of a resampled volume."""
    return nifti_bytes(grid.hu, grid.affine, axis_codes=axis_codes)


def misplaced_mm(volume: Volume) -> float:
    """How far the furthest slice lies from where one affine puts it: what NIfTI cannot say of uneven slices."""
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
