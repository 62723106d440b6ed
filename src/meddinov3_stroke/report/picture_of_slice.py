"""The picture of one slice and its patch similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

from meddinov3_stroke.report.panel import (
    draw_colour_bar,
    draw_ct,
    draw_similarity,
    extent_mm,
    mark_patch,
)
from meddinov3_stroke.report.style import (
    MUTED,
    SCALE_NOTE,
    WINDOW_NOTE,
    new_figure,
    png_bytes,
    write,
    write_disclaimer,
)

PANEL_IN = 4.6
"""Width of a panel in inches."""
TALLEST_PANEL_IN = 9.0
MARGIN_IN = 0.25
HEADER_IN = 0.8
FOOTER_IN = 0.75
BAR_IN = 0.9
"""Width taken by the colour bar and its labels."""
NARROWEST_IN = 7.5
"""So that the notes fit beneath a narrow slice."""


@dataclass(frozen=True, eq=False)
class SliceMap:
    """A slice, and how alike its patches are to one of them."""

    hu: Float32[np.ndarray, "row col"]
    spacing_mm: tuple[float, float, float]
    """(slice, row, column)."""
    similarity: Float32[np.ndarray, "h w"]
    patch: tuple[int, int]
    """(row, column) of the reference patch in the grid."""
    slice_index: int
    n_slices: int
    position_mm: tuple[float, float, float]
    """RAS+ mm of the slice's first voxel centre."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        return self.similarity.shape[0], self.similarity.shape[1]


def slice_picture(shown: SliceMap, demo: bool = False) -> bytes:
    """PNG: the slice in a brain window (left) and the similarity of its patches over it (right).

    `demo` marks the picture as a demonstration.
    """
    pixel_mm = (shown.spacing_mm[1], shown.spacing_mm[2])
    panel = panel_size(shown.hu, pixel_mm, PANEL_IN, TALLEST_PANEL_IN)
    width = max(2 * panel[0] + 3 * MARGIN_IN + BAR_IN, NARROWEST_IN)
    figure = new_figure(width, HEADER_IN + panel[1] + FOOTER_IN)
    left = 2 * MARGIN_IN + panel[0]
    plain = draw_ct(figure, (MARGIN_IN, FOOTER_IN, *panel), shown.hu, pixel_mm)
    mapped = draw_ct(figure, (left, FOOTER_IN, *panel), shown.hu, pixel_mm)
    draw_similarity(mapped, shown.similarity, shown.hu)
    for axes in (plain, mapped):
        mark_patch(axes, shown.patch, shown.grid)
    draw_colour_bar(figure, (left + panel[0] + MARGIN_IN, FOOTER_IN + 0.1, 0.16, panel[1] - 0.2))
    _write_header(figure, shown)
    _write_footer(figure, demo)
    return png_bytes(figure)


def _write_header(figure: Figure, shown: SliceMap) -> None:
    height = figure.get_size_inches()[1]
    title = f"Slice {shown.slice_index}"
    write(figure, MARGIN_IN, height - 0.36, title, 13.0, weight="bold")
    about = (
        f"of 0 to {shown.n_slices - 1}, inferior to superior   ·   z = {shown.position_mm[2]:.1f} mm   ·   reference "
        f"patch: row {shown.patch[0]}, column {shown.patch[1]} of {shown.grid[0]} × {shown.grid[1]}"
    )
    write(figure, MARGIN_IN, height - 0.62, about, 9.0, MUTED)


def _write_footer(figure: Figure, demo: bool) -> None:
    write(figure, MARGIN_IN, 0.48, f"{WINDOW_NOTE}.", 7.5, MUTED)
    write(figure, MARGIN_IN, 0.3, f"{SCALE_NOTE}.", 7.5, MUTED)
    write_disclaimer(figure, MARGIN_IN, demo)


def panel_size(
    hu: Float32[np.ndarray, "row col"], pixel_mm: tuple[float, float], width_in: float, tallest_in: float
) -> tuple[float, float]:
    """(width, height) in inches of a panel in the true proportions of a slice, within both limits."""
    height_mm, width_mm = extent_mm(hu, pixel_mm)
    scale = min(width_in / width_mm, tallest_in / height_mm)
    return scale * width_mm, scale * height_mm
