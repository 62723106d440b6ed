"""One slice on an axes: CT in a brain window, similarity over it, reference patch, sides and scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from meddinov3_stroke.explain.style import FONT, MARK, MUTED, SIMILARITY_RANGE, TEXT, brain_window, similarity_colours

Box = tuple[float, float, float, float]
"""Left, bottom, width and height in inches from the figure's lower left corner."""

SCALE_BAR_MM = 50.0


def extent_mm(hu: Float32[np.ndarray, "row col"], pixel_mm: tuple[float, float]) -> tuple[float, float]:
    """(height, width) of a slice in mm."""
    return hu.shape[0] * pixel_mm[0], hu.shape[1] * pixel_mm[1]


def draw_ct(figure: Figure, box: Box, hu: Float32[np.ndarray, "row col"], pixel_mm: tuple[float, float]) -> Axes:
    """An axes in mm with the slice in the brain window: rows downwards (anterior up), the patient's right at the left.

    `pixel_mm` is (row, column) spacing; pixels keep their true shape.
    """
    width, height = figure.get_size_inches()
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    height_mm, width_mm = extent_mm(hu, pixel_mm)
    axes.imshow(
        brain_window(hu),
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        extent=(0.0, width_mm, height_mm, 0.0),
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set_axis_off()
    _draw_sides(axes)
    _draw_scale_bar(axes, height_mm, width_mm)
    return axes


def draw_similarity(axes: Axes, similarity: Float32[np.ndarray, "h w"]) -> None:
    """Lay a patch map over the slice of `draw_ct`; its grid is stretched over the whole slice."""
    low, high = SIMILARITY_RANGE
    axes.imshow(
        np.clip(similarity, low, high),
        cmap=similarity_colours(),
        vmin=low,
        vmax=high,
        extent=_limits(axes),
        interpolation="bilinear",
        aspect="equal",
    )


def mark_patch(axes: Axes, patch: tuple[int, int], grid: tuple[int, int]) -> None:
    """Outline the patch at (row, column) of the grid."""
    _, width_mm, height_mm, _ = _limits(axes)
    size = (width_mm / grid[1], height_mm / grid[0])
    corner = (patch[1] * size[0], patch[0] * size[1])
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=2.6))
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=MARK, linewidth=1.3))


def draw_colour_bar(figure: Figure, box: Box) -> None:
    """The scale of `draw_similarity`, labelled."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height), facecolor="#3c3c3c")
    scale = ScalarMappable(Normalize(*SIMILARITY_RANGE), similarity_colours())
    bar = figure.colorbar(scale, cax=axes)
    bar.set_label("cosine similarity", color=TEXT, fontsize=8, family=FONT)
    bar.outline.set_edgecolor(MUTED)
    axes.tick_params(colors=TEXT, labelsize=7, labelfontfamily=FONT)


def _limits(axes: Axes) -> tuple[float, float, float, float]:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    return left, right, bottom, top


def _draw_sides(axes: Axes) -> None:
    style: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": TEXT,
        "fontsize": 9,
        "family": FONT,
        "fontweight": "bold",
    }
    axes.text(0.02, 0.5, "R", ha="left", va="center", **style)
    axes.text(0.98, 0.5, "L", ha="right", va="center", **style)
    axes.text(0.5, 0.985, "A", ha="center", va="top", **style)


def _draw_scale_bar(axes: Axes, height_mm: float, width_mm: float) -> None:
    if width_mm < 2 * SCALE_BAR_MM:
        return
    right, y = 0.97 * width_mm, 0.965 * height_mm
    axes.plot([right - SCALE_BAR_MM, right], [y, y], color=TEXT, linewidth=1.6, solid_capstyle="butt")
    middle = right - SCALE_BAR_MM / 2
    label = f"{SCALE_BAR_MM / 10:.0f} cm"
    axes.text(middle, y - 0.012 * height_mm, label, color=TEXT, fontsize=6.5, family=FONT, ha="center", va="bottom")
