"""The canonical orientation of slices, rows and columns, and the checks of grid and voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Real

from meddinov3_stroke.errors import CorruptInput, OutOfScope
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU, scaled_hu

SPACING_RANGE_MM, MAX_TILT_DEGREES = (1e-3, 1e3), 45.0
"""A voxel side outside this range is damage. Slices whose axis or plane is further off axial are refused."""

TIE = 1e-5
"""Relative difference below which float32 header fields are equal."""

MAX_SPACING_RATIO = 2.0
"""If another axis has this many times the spacing of the slice axis, the volume was acquired along that axis."""

MAX_NON_FINITE_SHARE = 1e-3
"""A volume with a larger share of NaN and infinite voxels counts as damaged."""


@dataclass(frozen=True, eq=False)
class Orientation:
    """How the file's axes become slices, rows and columns."""

    axes: tuple[int, int, int]
    """The file's axis that is the canonical slice, row and column axis."""
    flips: tuple[bool, bool, bool]
    """Whether that axis runs backwards in the file."""

    def file_view(self, stored: Real[np.ndarray, "slice row col"]) -> Real[np.ndarray, "i j k"]:
        """A view of canonical voxels in the file's axis order; writing to it puts voxels in their canonical place."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return stored[steps].transpose(np.argsort(self.axes))

    def apply_to_affine(self, affine: Float64[np.ndarray, "4 4"], shape: tuple[int, ...]) -> Float64[np.ndarray, "4 4"]:
        """The affine of the canonical index (slice, row, col, 1), from the affine and shape of the file's axes."""
        to_file = np.zeros((4, 4))
        to_file[3, 3] = 1.0
        for canonical, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_file[axis, canonical] = -1.0 if flip else 1.0
            to_file[axis, 3] = shape[axis] - 1 if flip else 0.0
        return affine @ to_file


def voxel_sides(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " axis"]:
    """Distance in mm between neighbours along each index axis."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)


def canonical_orientation(affine: Float64[np.ndarray, "4 4"]) -> Orientation:
    """How the file's axes become slices (inferior -> superior), rows (to posterior) and columns (to patient left).

    The slice axis is the one nearest to superior; the other two are assigned so that together they are nearest to the
    row and column directions. Nothing is resampled: an oblique volume keeps its grid.
    """
    units = affine[:3, :3] / voxel_sides(affine)
    slice_axis = int(np.argmax(np.abs(units[2])))
    row_axis, col_axis = _row_and_column_axis(units, *(axis for axis in range(3) if axis != slice_axis))
    return Orientation(
        axes=(slice_axis, row_axis, col_axis),
        flips=(bool(units[2, slice_axis] < 0), bool(units[1, row_axis] > 0), bool(units[0, col_axis] > 0)),
    )


def _row_and_column_axis(units: Float64[np.ndarray, "3 3"], first: int, second: int) -> tuple[int, int]:
    """Of two index axes, the one nearer to anterior-posterior and the one nearer to right-left."""
    straight = abs(units[1, first]) + abs(units[0, second])
    crossed = abs(units[1, second]) + abs(units[0, first])
    if abs(straight - crossed) < TIE:  # turned by 45 degrees: decide by a sign that axis order and flips do not change
        return (first, second) if units[0, first] * units[1, first] > 0 else (second, first)
    return (first, second) if straight > crossed else (second, first)


def axial_orientation(affine: Float64[np.ndarray, "4 4"], path: Path) -> Orientation:
    """`canonical_orientation`; `OutOfScope` if slices are over 45 degrees off axial, or thicker along another axis."""
    orientation, sides_mm = canonical_orientation(affine), voxel_sides(affine)
    slice_axis, row_axis, col_axis = (affine[:3, axis] / sides_mm[axis] for axis in orientation.axes)
    normal = np.cross(row_axis, col_axis)
    cosine = min(abs(slice_axis[2]), abs(normal[2]) / np.linalg.norm(normal))
    angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if angle > MAX_TILT_DEGREES * (1 - TIE):  # at 45 degrees two axes are equally near to superior
        found = f"slices are {angle:.0f} degrees off axial, at most {MAX_TILT_DEGREES:g} are accepted"
        raise OutOfScope(f"{path}: {found}; give the axial series")
    slice_mm, *in_plane_mm = (float(sides_mm[axis]) for axis in orientation.axes)
    if max(in_plane_mm) >= MAX_SPACING_RATIO * slice_mm * (1 - TIE):
        found = f"spacing is {slice_mm:.3g} mm from bottom to top but {max(in_plane_mm):.3g} mm along another axis"
        raise OutOfScope(f"{path}: {found}, so the slices are not axial; give the axial series")
    return orientation


def check_voxels(
    stored: Real[np.ndarray, "slice row col"], slope: float, intercept: float, path: Path
) -> tuple[int, tuple[str, ...]]:
    """(voxels below `PADDING_BELOW_HU`, warnings); `CorruptInput` if too many are NaN or infinite in HU."""
    n_non_finite = n_padding = 0
    compares_as_stored = stored.dtype.kind in "iu" and slope == 1.0 and float(intercept).is_integer()
    for one_slice in stored:
        if compares_as_stored:  # the same answer as in float32, several times as fast
            n_padding += int(np.count_nonzero(one_slice < int(PADDING_BELOW_HU - intercept)))
            continue
        hu = scaled_hu(one_slice, slope, intercept)
        finite = np.isfinite(hu)
        n_non_finite += hu.size - int(np.count_nonzero(finite))
        n_padding += int(np.count_nonzero(finite & (hu < PADDING_BELOW_HU)))
    share = n_non_finite / stored.size
    if share > MAX_NON_FINITE_SHARE:
        found = f"{n_non_finite} of {stored.size} voxels ({share:.1%}) are NaN or infinite"
        raise CorruptInput(f"{path}: {found}, at most {MAX_NON_FINITE_SHARE:.1%} may be; convert it again")
    counted = {"are NaN or infinite": n_non_finite, f"below {PADDING_BELOW_HU:g} HU are padding": n_padding}
    return n_padding, tuple(f"{n} voxels {what} and read as {AIR_HU:g} HU" for what, n in counted.items() if n)
