"""From voxel to millimetre: the affine of a phantom and the head coordinates of its voxels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke.phantom.spec import PhantomSpec

Grid = Float32[np.ndarray, "slice row col"]
"""One value a voxel."""

CANONICAL_TO_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""(slice, row, column) steps in RAS+: slices go superior, rows posterior, columns to the patient's left."""


def affine_of(spec: PhantomSpec) -> Float64[np.ndarray, "4 4"]:
    """The map from (slice, row, column, 1) to RAS+ mm of the scanner, rounded to what a NIfTI header can hold.

    The scanner's origin is the middle of the volume; a tilt turns the slices about the left-right axis.
    """
    linear = _rotation(0, spec.tilt_degrees) @ CANONICAL_TO_RAS @ np.diag(spec.spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(spec.shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64)


def head_points(spec: PhantomSpec) -> tuple[Grid, Grid, Grid]:
    """Head coordinates (x, y, z) in mm of every voxel centre."""
    pose = np.eye(4)
    pose[:3, :3] = _rotation(2, spec.rotation_degrees) @ _rotation(1, spec.roll_degrees)
    pose[:3, 3] = spec.centre_mm
    to_head = (pose @ affine_of(spec)).astype(np.float32)
    slices, rows, columns = (np.arange(n, dtype=np.float32) for n in spec.shape)
    x, y, z = (
        (row[0] * slices + row[3])[:, None, None] + (row[1] * rows)[:, None] + row[2] * columns for row in to_head[:3]
    )
    return x, y, z


def _rotation(axis: int, degrees: float) -> Float64[np.ndarray, "3 3"]:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix
