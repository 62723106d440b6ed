"""The picture of one slice and its patch similarity."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.explain.notices import DEMO_NOTICE
from meddinov3_stroke.explain.panel import (
    draw_colour_bar,
    draw_ct,
    draw_similarity,
    extent_mm,
    mark_patch,
)
from meddinov3_stroke.explain.style import MUTED, SCALE_NOTE, WARNING, WINDOW_NOTE, new_figure, png_bytes, write
from meddinov3_stroke.runtime.provenance import DISCLAIMER

PANEL_IN = 4.6
"""Width of a panel in inches."""
TALLEST_PANEL_IN = 9.0
MARGIN_IN = 0.25
HEADER_IN = 0.8
FOOTER_IN = 0.75
BAR_IN = 0.9
"""Width taken by the colour bar and its labels."""


def slice_picture(
    hu: Float32[np.ndarray, "row col"],
    spacing_mm: tuple[float, float, float],
    similarity: Float32[np.ndarray, "h w"],
    patch: tuple[int, int],
    *,
    slice_index: int,
    n_slices: int,
    position_mm: tuple[float, float, float],
    demo: bool = False,
) -> bytes:
    """PNG: the slice in a brain window (left) and the similarity of its patches to `patch` over it (right).

    `spacing_mm` is (slice, row, column), `position_mm` RAS+ mm; `demo` marks the picture as a demonstration.
    """
    pixel_mm = (spacing_mm[1], spacing_mm[2])
    panel_width, panel_height = panel_size(hu, pixel_mm, PANEL_IN, TALLEST_PANEL_IN)
    width = max(2 * panel_width + 3 * MARGIN_IN + BAR_IN, 7.5)
    height = HEADER_IN + panel_height + FOOTER_IN
    figure = new_figure(width, height)
    first = draw_ct(figure, (MARGIN_IN, FOOTER_IN, panel_width, panel_height), hu, pixel_mm)
    left = 2 * MARGIN_IN + panel_width
    second = draw_ct(figure, (left, FOOTER_IN, panel_width, panel_height), hu, pixel_mm)
    draw_similarity(second, similarity)
    for axes in (first, second):
        mark_patch(axes, patch, similarity.shape)
    draw_colour_bar(figure, (left + panel_width + MARGIN_IN, FOOTER_IN + 0.1, 0.16, panel_height - 0.2))
    write(figure, MARGIN_IN, height - 0.36, f"Slice {slice_index} of 0 to {n_slices - 1}", 13, weight="bold")
    about = (
        f"z = {position_mm[2]:.1f} mm   ·   reference patch: row {patch[0]}, column {patch[1]} "
        f"of {similarity.shape[0]} × {similarity.shape[1]}"
    )
    write(figure, MARGIN_IN, height - 0.62, about, 9, MUTED)
    write(figure, MARGIN_IN, 0.48, f"{WINDOW_NOTE}.", 7.5, MUTED)
    write(figure, MARGIN_IN, 0.3, f"{SCALE_NOTE}.", 7.5, MUTED)
    write(figure, MARGIN_IN, 0.1, f"{DISCLAIMER[0].upper()}{DISCLAIMER[1:]}.", 7.5, MUTED, style="italic")
    if demo:
        write(figure, width - MARGIN_IN, 0.1, DEMO_NOTICE, 7.5, WARNING, ha="right")
    return png_bytes(figure)


def panel_size(
    hu: Float32[np.ndarray, "row col"], pixel_mm: tuple[float, float], width_in: float, tallest_in: float
) -> tuple[float, float]:
    """(width, height) in inches of a panel in the true proportions of a slice, within both limits."""
    height_mm, width_mm = extent_mm(hu, pixel_mm)
    scale = min(width_in / width_mm, tallest_in / height_mm)
    return scale * width_mm, scale * height_mm
