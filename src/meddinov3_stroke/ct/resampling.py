"""A volume on an even grid of its own axes, for tools that need one; inference never resamples between slices.

Between slices: linear by each slice's own position where the grid is finer than the slices, a triangle of the grid's
width where it is coarser. Within a slice: linear, after a Gaussian of (ratio - 1) / 2 pixels where the grid is coarser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int16
from scipy import ndimage

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import AIR_HU, Volume

METHOD = (
    "linear interpolation at each slice's own position; anti-aliasing where the grid is coarser: a triangle of the "
    "grid's spacing across slices, a Gaussian of (ratio - 1) / 2 pixels within; outside the volume -1000 HU"
)
"""How voxels are interpolated, in words."""

EDGE_TOLERANCE = 1e-4
"""Pixels beyond the outermost centres that still count as inside, against rounding."""

MAX_RESAMPLED_VOXELS = 2**29
"""Voxels above which a grid is refused: 512 x 1024 x 1024."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """HU on an even grid: slices along the normal of the acquired ones, rows and columns along theirs."""

    hu: Int16[np.ndarray, "slice row col"]
    affine: Float64[np.ndarray, "4 4"]
    """Maps (slice, row, col, 1) to RAS+ mm."""
    n_clipped: int = 0
    """Voxels beyond the range of int16, set to its limit."""


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Resampled:
    """The volume on a grid of `spacing_mm` (slice, row, column); a gantry tilt is straightened by shifting slices.

    The grid spans from the first slice to the last, and in plane all that any slice covers.

    Raises:
        UsageError: a spacing that is not above zero, or a grid of more than `MAX_RESAMPLED_VOXELS`.
    """
    if not all(np.isfinite(side) and side > 0 for side in spacing_mm):
        raise UsageError(f"--spacing {' '.join(map(str, spacing_mm))}: expected three numbers of mm above 0")
    axes, sides_mm = _axes(volume)
    origins = volume.slice_positions_mm @ axes.T  # [slice, (normal, row, column)] mm along the grid's axes
    first, last = origins.min(axis=0), origins.max(axis=0)
    last[1:] += (np.array(volume.stored.shape[1:]) - 1) * sides_mm
    shape = tuple(int(n) + 1 for n in np.floor((last - first) / spacing_mm + 1e-6))
    if math.prod(shape) > MAX_RESAMPLED_VOXELS:
        raise UsageError(f"--spacing: a grid of {' x '.join(map(str, shape))} voxels; at most {MAX_RESAMPLED_VOXELS}")
    hu, n_clipped, limits = np.empty(shape, dtype=np.int16), 0, np.iinfo(np.int16)
    offsets, scale = (first[1:] - origins[:, 1:]) / sides_mm, np.array(spacing_mm[1:]) / sides_mm
    for k in range(shape[0]):
        weights = _slice_weights(origins[:, 0], first[0] + k * spacing_mm[0], spacing_mm[0])
        plane = np.rint(_plane(volume, weights, offsets, scale, (shape[1], shape[2])))
        hu[k] = plane.clip(limits.min, limits.max)
        n_clipped += int(np.count_nonzero(plane != hu[k]))
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.array(spacing_mm)
    affine[:3, 3] = axes.T @ first
    return Resampled(hu, affine, n_clipped)


def _axes(volume: Volume) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 2"]]:
    """Unit vectors (normal, row, column) in RAS+, and the voxel sides along rows and columns."""
    sides_mm = np.linalg.norm(volume.slice_steps_mm[0], axis=0)
    row, column = (volume.slice_steps_mm[0] / sides_mm).T
    normal = np.cross(row, column)
    way = volume.slice_positions_mm[-1] - volume.slice_positions_mm[0]
    return np.stack([normal if normal @ way >= 0 else -normal, row, column]), sides_mm


def _slice_weights(distances_mm: Float64[np.ndarray, " slice"], at_mm: float, width_mm: float) -> dict[int, float]:
    """Slice -> its share in the plane at `at_mm`; shares add up to 1."""
    after = int(np.clip(np.searchsorted(distances_mm, at_mm), 1, len(distances_mm) - 1))
    gap = distances_mm[after] - distances_mm[after - 1]
    weights = np.clip(1 - np.abs(distances_mm - at_mm) / max(width_mm, gap), 0, None)
    if width_mm <= gap:  # only the two slices around it
        weights[: after - 1] = weights[after + 1 :] = 0
    return {int(k): float(weights[k] / weights.sum()) for k in np.flatnonzero(weights)}


def _plane(
    volume: Volume,
    weights: dict[int, float],
    offsets: Float64[np.ndarray, "slice 2"],
    scale: Float64[np.ndarray, " 2"],
    shape: tuple[int, int],
) -> Float32[np.ndarray, "row col"]:
    """One plane of the grid: the weighted slices, each shifted to where it was acquired.

    Grid index (i, j) lies at `offsets[slice] + scale * (i, j)` pixels of a slice.
    """
    tol, blur = EDGE_TOLERANCE, np.clip((scale - 1) / 2, 0, None)
    plane = np.zeros(shape, dtype=np.float32)
    for k, weight in weights.items():
        hu = volume.hu_slices([k])[0]
        if blur.any():
            hu = ndimage.gaussian_filter(hu, blur, mode="nearest")
        moved = ndimage.affine_transform(hu, scale, offsets[k], shape, order=1, mode="nearest")
        places = (offsets[k][i] + scale[i] * np.arange(shape[i]) for i in range(2))
        rows, columns = ((-tol <= at) & (at <= n - 1 + tol) for at, n in zip(places, hu.shape, strict=True))
        plane += weight * np.where(rows[:, None] & columns, moved, np.float32(AIR_HU))
    return plane
