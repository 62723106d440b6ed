"""Paragraphs on a picture: wrapped to a width, as tall as they need to be."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from meddinov3_stroke.report.style import write

LINE_HEIGHT = 1.45
"""Distance of two lines as a multiple of the size of the type."""

CHARACTER_WIDTH = 0.6
"""Mean width of a character of DejaVu Sans as a multiple of the size of the type, with room to spare."""

POINTS_PER_IN = 72.0


@dataclass(frozen=True)
class Line:
    """One line of text."""

    text: str
    size: float
    """In points."""
    colour: str
    weight: str = "normal"

    @property
    def height_in(self) -> float:
        """From this line to the next, in inches."""
        return LINE_HEIGHT * self.size / POINTS_PER_IN


def wrap(text: str, size: float, width_in: float, colour: str, weight: str = "normal") -> list[Line]:
    """`text` in lines no wider than `width_in`."""
    n_characters = int(width_in * POINTS_PER_IN / (CHARACTER_WIDTH * size))
    return [Line(one, size, colour, weight) for one in textwrap.wrap(text, n_characters)]


def height_of(lines: Sequence[Line]) -> float:
    """Height of the lines in inches."""
    return sum(line.height_in for line in lines)


def write_lines(figure: Figure, x_in: float, top_in: float, lines: Sequence[Line]) -> None:
    """Put lines beneath each other, the first below `top_in` (inches from the lower edge)."""
    for line in lines:
        write(figure, x_in, top_in, line.text, line.size, line.colour, weight=line.weight, va="top")
        top_in -= line.height_in
