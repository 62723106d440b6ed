"""One slice on an axes: CT in a brain window, similarity over it, reference patch, sides and scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_fill_holes, map_coordinates

from meddinov3_stroke.explain.suspicion import HEAD_ABOVE_HU
from meddinov3_stroke.report.style import FONT, MARK, MUTED, SIMILARITY_RANGE, TEXT, brain_window, similarity_colours

Box = tuple[float, float, float, float]
"""Left, bottom, width and height in inches from the figure's lower left corner."""

SCALE_BAR_MM = 50.0

HALO = (withStroke(linewidth=2.0, foreground="black"),)
"""Around letters on a slice, so that bone behind them does not swallow them."""


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


def draw_similarity(axes: Axes, similarity: Float32[np.ndarray, "h w"], hu: Float32[np.ndarray, "row col"]) -> None:
    """Lay a patch map over the slice of `draw_ct`, its grid stretched over the whole slice; air stays uncoloured."""
    colours = similarity_colours()(stretch(similarity, hu.shape))
    colours[..., 3] *= head_pixels(hu)
    axes.imshow(colours, extent=_limits(axes), interpolation="nearest", aspect="equal")


def stretch(similarity: Float32[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float64[np.ndarray, "row col"]:
    """The map at every pixel of a slice, as a share of `SIMILARITY_RANGE`: bilinear between the patches' centres."""
    low, high = SIMILARITY_RANGE
    share = np.clip((similarity.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    centres = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, similarity.shape, strict=True)]
    return np.asarray(map_coordinates(share, np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest"))


def head_pixels(hu: Float32[np.ndarray, "row col"]) -> Bool[np.ndarray, "row col"]:
    """Pixels above `HEAD_ABOVE_HU`, and air that they enclose."""
    return np.asarray(binary_fill_holes(hu > HEAD_ABOVE_HU))


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
    bar.set_label("cosine similarity to outlined patch", color=TEXT, fontsize=8, family=FONT)
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
        "path_effects": HALO,
    }
    axes.text(0.02, 0.5, "R", ha="left", va="center", **style)
    axes.text(0.98, 0.5, "L", ha="right", va="center", **style)
    axes.text(0.5, 0.985, "A", ha="center", va="top", **style)


def _draw_scale_bar(axes: Axes, height_mm: float, width_mm: float) -> None:
    if width_mm < 2 * SCALE_BAR_MM:
        return
    right, y = 0.97 * width_mm, 0.965 * height_mm
    axes.plot(
        [right - SCALE_BAR_MM, right], [y, y], color=TEXT, linewidth=1.6, solid_capstyle="butt", path_effects=HALO
    )
    middle = right - SCALE_BAR_MM / 2
    style: dict[str, Any] = {"color": TEXT, "fontsize": 6.5, "family": FONT, "path_effects": HALO}
    axes.text(middle, y - 0.012 * height_mm, f"{SCALE_BAR_MM / 10:.0f} cm", ha="center", va="bottom", **style)
