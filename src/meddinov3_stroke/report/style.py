"""How pictures look: dark, one family of type, a stated window, a fixed colour scale. Matplotlib without pyplot."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Float32
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from meddinov3_stroke.explain.notices import DEMO_NOTICE
from meddinov3_stroke.system.provenance import DISCLAIMER

WINDOW_CENTER = 40.0
"""HU; the usual brain window (level 40, width 80)."""
WINDOW_WIDTH = 80.0
"""HU; see `WINDOW_CENTER`."""

SIMILARITY_RANGE = (0.0, 1.0)
"""Cosine similarities of the ends of the colour bar: fixed, so that pictures can be compared."""

LARGEST_OPACITY = 0.6
"""Of the overlay, at similarity 1; it falls to 0 at similarity 0, so that the CT stays readable beneath."""

COLOUR_SPAN = (0.25, 0.9)
"""Part of the inferno map that is used: its black end hides the CT, its pale end looks like bone."""

BACKGROUND = "#0b0d10"
TEXT = "#eceff1"
MUTED = "#9aa4ad"
WARNING = "#ffb74d"
MARK = "#40e0ff"
"""Outline of the reference patch; no colour of the overlay comes near it."""

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a picture is the same everywhere."""

DPI = 150

WINDOW_NOTE = f"Brain window L {WINDOW_CENTER:.0f} W {WINDOW_WIDTH:.0f} HU"
SCALE_NOTE = (
    f"Colour: cosine similarity to the outlined patch, fixed scale {SIMILARITY_RANGE[0]:g} to {SIMILARITY_RANGE[1]:g} "
    "(below 0 drawn as 0), interpolated between patches, none on air"
)


def brain_window(hu: Float32[np.ndarray, "row col"]) -> Float32[np.ndarray, "row col"]:
    """Grey values in [0, 1]: 0 at the window's lower end and below, 1 at its upper end and above."""
    low = WINDOW_CENTER - WINDOW_WIDTH / 2
    return np.asarray(np.clip((hu - low) / WINDOW_WIDTH, 0.0, 1.0).astype(np.float32))


def similarity_colours() -> ListedColormap:
    """Colour and opacity along `SIMILARITY_RANGE`, for overlays and colour bars alike."""
    colours = colormaps["inferno"](np.linspace(*COLOUR_SPAN, 256))
    colours[:, 3] = np.linspace(0.0, LARGEST_OPACITY, 256)
    return ListedColormap(colours, "similarity")


def new_figure(width_in: float, height_in: float) -> Figure:
    """A dark figure with a canvas of its own; no state is shared with any other."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=BACKGROUND, metadata={"Software": None})
    return buffer.getvalue()


def write(figure: Figure, x_in: float, y_in: float, text: str, size: float, colour: str = TEXT, **more: Any) -> None:
    """Put text at inches from the lower left corner; what the font lacks becomes `?`, and nothing is read as maths."""
    width, height = figure.get_size_inches()
    figure.text(
        x_in / width, y_in / height, drawable(text), fontsize=size, color=colour, family=FONT, parse_math=False, **more
    )


def write_disclaimer(figure: Figure, margin_in: float, demo: bool) -> None:
    """The disclaimer along the lower edge and, of the demonstration backbone, what it is."""
    write(figure, margin_in, 0.1, f"{DISCLAIMER[0].upper()}{DISCLAIMER[1:]}.", 7.5, MUTED, style="italic")
    if demo:
        right = float(figure.get_size_inches()[0]) - margin_in
        write(figure, right, 0.1, DEMO_NOTICE, 7.5, WARNING, ha="right")


def drawable(text: str) -> str:
    """`text` with everything beyond Latin-1 as `?`: the font has no CJK, and a missing glyph warns."""
    return text.encode("latin-1", "replace").decode("latin-1")
