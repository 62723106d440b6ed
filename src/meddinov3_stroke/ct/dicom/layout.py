"""Geometry of a stack: spacing, gaps, missing slices and gantry tilt, and the place of every voxel in RAS+ mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.series import LPS_TO_RAS, Stack
from meddinov3_stroke.ct.geometry import Orientation, canonical_orientation

EVEN_TOLERANCE_MM, TILT_TOLERANCE_DEGREES = 0.02, 0.1
"""Differences of gaps, and angles between the normal and the way from slice to slice, that are rounding."""

MISSING_RATIO = 1.5
"""Slices may be missing in a single gap that is this many times as wide as both its neighbours."""

MOST_RUNS = 6
"""Runs of gaps listed in a note."""


class GapRun(NamedTuple):
    """Consecutive gaps of equal width."""

    gap_mm: float
    n_gaps: int
    after_slice: int
    """Canonical slice before the first of them."""


@dataclass(frozen=True)
class SliceLayout:
    """Spacing and tilt of the slices of a stack."""

    nominal_mm: float
    """Median gap along the normal."""
    runs: tuple[GapRun, ...]
    """From inferior to superior; a single run if the slices are evenly spaced."""
    tilt_degrees: float
    """Angle from the normal to the direction from inferior to superior slices; signed as Gantry/Detector Tilt:
    positive if that direction leans anteriorly."""
    instance_numbers: tuple[int | None, ...] = ()
    """Of each slice, for notes: viewers show it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the geometry; empty if it is regular."""
        notes = []
        if abs(self.tilt_degrees) > TILT_TOLERANCE_DEGREES:
            notes.append(f"gantry tilt of {self.tilt_degrees:+.1f} degrees; slices stay as acquired")
        if len(self.runs) > 1:
            runs = ", ".join(f"{run.gap_mm:.3f} mm x{run.n_gaps}" for run in self.runs[:MOST_RUNS])
            runs += ", ..." if len(self.runs) > MOST_RUNS else ""
            notes.append(f"slices are not evenly spaced: gaps {runs}; each slice keeps its own position")
        widths = [0.0, *(run.gap_mm for run in self.runs), 0.0]
        for run, *beside in zip(self.runs, widths, widths[2:], strict=False):
            if len(self.runs) > 1 and run.n_gaps == 1 and run.gap_mm >= MISSING_RATIO * max(beside):
                n_missing = max(1, round(run.gap_mm / max(beside)) - 1)
                slices = "a slice" if n_missing == 1 else f"{n_missing} slices"
                notes.append(f"{slices} may be missing after slice {run.after_slice}{self._shown_as(run.after_slice)}")
        return tuple(notes)

    def _shown_as(self, index: int) -> str:
        number = self.instance_numbers[index] if self.instance_numbers else None
        return "" if number is None else f" (Instance Number {number})"


def layout_of(stack: Stack) -> SliceLayout:
    """The layout of placed images; for a single one, its thickness is the spacing (1 mm if unknown)."""
    if len(stack.images) == 1:
        return SliceLayout(stack.first.slice_thickness_mm or 1.0, (), 0.0)
    gaps = np.abs(np.diff(stack.distances_mm))
    numbers = tuple(image.instance_number for image in stack.images)
    return SliceLayout(float(np.median(gaps)), _runs(gaps), _tilt_degrees(stack), numbers)


def _runs(gaps: Float64[np.ndarray, " gap"]) -> tuple[GapRun, ...]:
    runs: list[GapRun] = []
    for k, gap in enumerate(gaps):
        if runs and abs(gap - runs[-1].gap_mm) <= EVEN_TOLERANCE_MM:
            runs[-1] = runs[-1]._replace(n_gaps=runs[-1].n_gaps + 1)
        else:
            runs.append(GapRun(float(gap), 1, k))
    return tuple(runs)


def _tilt_degrees(stack: Stack) -> float:
    first, column = stack.first, stack.first.directions[1]
    way = (stack.slice_positions_mm[-1] - stack.slice_positions_mm[0]) * LPS_TO_RAS
    upward = first.normal if first.normal @ way >= 0 else -first.normal
    along, aside = float(way @ upward), float(np.linalg.norm(np.cross(way, upward)))
    back = column if column[1] >= 0 else -column  # LPS: y to posterior
    lean = -1.0 if way @ back > 0 else 1.0
    return lean * float(np.degrees(np.arctan2(aside, along)))


def canonical_positions_mm(stack: Stack) -> Float64[np.ndarray, "slice 3"]:
    """RAS+ mm of the centre of voxel (row 0, col 0) of each canonical slice: `Volume.slice_positions_mm`."""
    return slice_affines(stack, canonical_orientation(stack_affine(stack)))[:, :3, 3]


def file_shape(stack: Stack) -> tuple[int, int, int]:
    """(images, rows, columns) as stored."""
    return len(stack.images), stack.first.pixels.rows, stack.first.pixels.columns


def stack_affine(stack: Stack) -> Float64[np.ndarray, "4 4"]:
    """Maps (image, row, column, 1) of the stack as stored to RAS+ mm, from its first and last image."""
    affine, positions = _image_affine(stack.first), stack.slice_positions_mm
    if len(positions) > 1:
        affine[:3, 0] = (positions[-1] - positions[0]) / (len(positions) - 1)
    else:
        affine[:3, 0] = stack.first.normal * LPS_TO_RAS * layout_of(stack).nominal_mm
    return affine


def _image_affine(image: ImageHeader) -> Float64[np.ndarray, "4 4"]:
    """Maps (0, row, column, 1) of an image as stored to RAS+ mm."""
    assert image.pixel_spacing_mm is not None  # placed images only
    affine = np.zeros((4, 4))
    affine[:3, 1:3] = image.directions[::-1].T * LPS_TO_RAS[:, None] * np.array(image.pixel_spacing_mm)
    affine[:, 3] = (*(image.position_mm * LPS_TO_RAS), 1.0)
    return affine


def slice_affines(stack: Stack, orientation: Orientation) -> Float64[np.ndarray, "slice 4 4"]:
    """Maps (0, row, column, 1) of each canonical slice to RAS+ mm: its position, and steps along rows and columns."""
    shape, images = (1, *file_shape(stack)[1:]), stack.images[:: -1 if orientation.flips[0] else 1]
    return np.stack([orientation.apply_to_affine(_image_affine(image), shape) for image in images])
