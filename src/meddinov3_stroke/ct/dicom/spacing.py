"""How the slices of a stack lie: nominal spacing, gaps, missing slices, gantry tilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.dicom.stacks import Stack

EVEN_TOLERANCE_MM = 0.02
"""Gaps that differ by no more are one spacing: positions are rounded to 0.01 mm by some scanners."""

MISSING_RATIO = 1.5
"""A lone gap this many times as wide as both its neighbours: slices may be missing there."""

TILT_TOLERANCE_DEGREES = 0.1
"""A smaller angle between the normal and the way from slice to slice is rounding."""


@dataclass(frozen=True)
class GapRun:
    """Neighbouring gaps of one width."""

    gap_mm: float
    n_gaps: int
    after_slice: int
    """Canonical slice before the first of them."""

    def __str__(self) -> str:
        return f"{self.gap_mm:.3f} mm x{self.n_gaps}"


@dataclass(frozen=True)
class SliceLayout:
    """How the slices of a stack lie along its normal."""

    nominal_mm: float
    """Median gap along the normal."""
    runs: tuple[GapRun, ...]
    """From inferior to superior; one where the slices are evenly spaced."""
    tilt_degrees: float
    """Angle from the normal to the way from the inferior to the superior slices; its sign is that of Gantry/Detector
    Tilt: positive where that way leans to the front of the image plane."""

    @property
    def is_even(self) -> bool:
        """Whether one spacing holds throughout."""
        return len(self.runs) <= 1

    @property
    def is_tilted(self) -> bool:
        """Whether slices are shifted against one another (gantry tilt)."""
        return abs(self.tilt_degrees) > TILT_TOLERANCE_DEGREES

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """(slice before the gap, how many slices would fit in) of each lone wide gap."""
        found = []
        for k, run in enumerate(self.runs):
            beside = [self.runs[j].gap_mm for j in (k - 1, k + 1) if 0 <= j < len(self.runs)]
            if run.n_gaps == 1 and beside and run.gap_mm >= MISSING_RATIO * max(beside):
                found.append((run.after_slice, max(1, round(run.gap_mm / max(beside)) - 1)))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of it, in words; nothing where it is regular."""
        notes = []
        if self.is_tilted:
            notes.append(f"gantry tilt of {self.tilt_degrees:+.1f} degrees; slices stay as acquired")
        if not self.is_even:
            runs = ", ".join(map(str, self.runs[:MOST_RUNS])) + (", ..." if len(self.runs) > MOST_RUNS else "")
            notes.append(f"slices are not evenly spaced: gaps {runs}; each slice keeps its own position")
        notes += [
            f"{'a slice' if n == 1 else f'{n} slices'} may be missing after slice {after}" for after, n in self.missing
        ]
        return tuple(notes)


MOST_RUNS = 6
"""Runs of gaps that a note lists."""


def layout_of(stack: Stack) -> SliceLayout:
    """How the placed images of a stack lie; the thickness of a single one stands for the spacing (1 mm if unknown)."""
    if len(stack.images) == 1:
        return SliceLayout(stack.first.slice_thickness_mm or 1.0, (), 0.0)
    gaps = np.abs(np.diff(stack.distances_mm))
    return SliceLayout(float(np.median(gaps)), _runs(gaps), _tilt_degrees(stack))


def _runs(gaps: Float64[np.ndarray, " gap"]) -> tuple[GapRun, ...]:
    widths: list[float] = []
    for gap in gaps:  # joined to the run before it where it is as wide as that run's first gap
        widths.append(widths[-1] if widths and abs(gap - widths[-1]) <= EVEN_TOLERANCE_MM else float(gap))
    return tuple(_numbered([(width, len(list(same))) for width, same in groupby(widths)]))


def _numbered(runs: Sequence[tuple[float, int]]) -> list[GapRun]:
    numbered, after = [], 0
    for width, n_gaps in runs:
        numbered.append(GapRun(width, n_gaps, after))
        after += n_gaps
    return numbered


def _tilt_degrees(stack: Stack) -> float:
    first, last = stack.images[0], stack.images[-1]
    assert first.position_mm is not None  # a usable stack
    assert last.position_mm is not None
    assert first.column_direction is not None
    way = last.position_mm - first.position_mm
    upward = first.normal if first.normal @ way >= 0 else -first.normal
    along, aside = float(way @ upward), float(np.linalg.norm(np.cross(way, upward)))
    back = first.column_direction if first.column_direction[1] >= 0 else -first.column_direction  # LPS: y to posterior
    lean = -1.0 if way @ back > 0 else 1.0
    return lean * float(np.degrees(np.arctan2(aside, along)))
