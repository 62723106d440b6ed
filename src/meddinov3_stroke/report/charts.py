"""Charts of curves, drawn with Pillow on the page of the other pictures: PNG of a training by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from meddinov3_stroke.report.pictures import BACKGROUND, DPI, MARGIN, MUTED, TEXT, Number, Page, drawable, font_of

CLASS_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
"""Distinguishable by colour-blind readers (after Okabe and Ito); reused beyond six labels, then with hollow points."""
_GRID = "#23282e"
_SIZE = 8.0  # of letters, in points
_WIDTH, HEIGHT, _ENTRY = (round(inches * DPI) for inches in (3.6, 2.7, 0.18))  # of a plot and a line of its legend
LEFT, ABOVE, BELOW, _KEY = (round(inches * DPI) for inches in (0.4, 0.28, 0.38, 0.25))  # around a plot
_FINER = 4  # lines are drawn this many times larger and shrunk, which smooths them
_MOST_POINTS = 40  # marked on a curve

Point = tuple[Number, Number]


@dataclass(frozen=True)
class Curve:
    """A line by x, with points on it (`marked`) and a band (`low`, `high`) about it."""

    label: str
    colour: str
    values: Sequence[Number | None]
    width: int = 2
    hollow: bool = False
    marked: bool = True
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()

    def shade(self, canvas: ImageDraw.ImageDraw, edge: Sequence[Point]) -> None:
        """Fill the band; `edge` runs along its lower side and back along its upper."""
        ink = [
            round(0.28 * one + 0.72 * two)
            for one, two in zip(*map(ImageColor.getrgb, (self.colour, BACKGROUND)), strict=True)
        ]
        if edge:
            canvas.polygon(edge, tuple(ink))

    def draw(self, canvas: ImageDraw.ImageDraw, points: Sequence[Point | None], every: int) -> None:
        """Draw the line, and every so manieth of its points."""
        for start, end in pairwise(points):
            if start and end:
                canvas.line([start, end], self.colour, self.width * _FINER)
        fill = BACKGROUND if self.hollow else self.colour
        for point in filter(None, points[every // 2 :: every] if self.marked else ()):
            canvas.circle(point, round((self.width + 1.5) * _FINER), fill, self.colour, round(1.5 * _FINER))


class Chart:
    """Curves by x with a legend; `levels` are within its limits, and the first of them is drawn.

    `mark` is a place on the x axis and its name; ticks on that axis lie at least `x_step` apart.
    """

    def __init__(
        self,
        name: str,
        curves: Sequence[Curve],
        levels: Sequence[Number] = (),
        *,
        x_name: str,
        x_step: Number = 0.0,
        mark: tuple[Number, str] | None = None,
    ) -> None:
        self.name, self.levels, self.x_name, self.x_step, self.mark = name, levels, x_name, x_step, mark
        self.curves = [curve for curve in curves if set(curve.values) != {None}]
        self.legend = [*(curve.label for curve in self.curves), *([mark[1]] if mark else [])]
        letters = max(font_of(_SIZE).getlength(drawable(label)) for label in self.legend)
        self.width = round(LEFT + _WIDTH + 3 * _KEY + letters)

    def draw(self, page: Page, left: int, height: int, xs: Sequence[Number], top: int | None = None) -> None:
        """Draw the chart with its left axis at `left`, from `top` (by default the page's) on."""
        upper = page.top if top is None else top
        top = upper + ABOVE
        values = [v for curve in self.curves for v in (*curve.values, *curve.low, *curve.high) if v is not None]
        (first, last), (low, high) = _limits(xs), _limits([*values, *self.levels])
        image = Image.new("RGB", (_FINER * (_WIDTH + 2 * _KEY), _FINER * height), BACKGROUND)
        canvas = ImageDraw.Draw(image)

        def place(x: Number, value: Number) -> Point:
            return _FINER * _WIDTH * (x - first) / (last - first), _FINER * height * (high - value) / (high - low)

        for label, x in _ticks(xs[0], xs[-1], self.x_step).items():
            canvas.line([place(x, low), place(x, high)], _GRID, _FINER)
            page.text(left + place(x, low)[0] / _FINER, top + height + 8, label, _SIZE, MUTED, anchor="ma")
        for label, value in _ticks(low, high).items():
            canvas.line([place(first, value), place(last, value)], _GRID, _FINER)
            page.text(left - 10, top + place(first, value)[1] / _FINER, label, _SIZE, MUTED, anchor="rm")
        for curve in self.curves:
            sides = zip((*xs, *reversed(xs)), (*curve.low, *reversed(curve.high)), strict=True) if curve.low else ()
            curve.shade(canvas, [place(x, value) for x, value in sides])
        canvas.line([place(first, high), place(first, low), place(last, low)], MUTED, 3 * _FINER)
        for level in self.levels[:1]:
            _dash(canvas, place(first, level), place(last, level), MUTED)
        if self.mark:
            _dash(canvas, place(self.mark[0], low), place(self.mark[0], high), TEXT)
        for curve in self.curves:
            points = [None if v is None else place(x, v) for x, v in zip(xs, curve.values, strict=True)]
            curve.draw(canvas, points, every=-(-len(xs) // _MOST_POINTS))
        for k, label in enumerate(self.legend):
            y = height / 2 + _ENTRY * (k + 0.5 - len(self.legend) / 2)
            key = [(_FINER * (_WIDTH + share * _KEY), _FINER * y) for share in (0.5, 1.0, 1.5)]
            if k < len(self.curves):
                self.curves[k].draw(canvas, key, every=3)
            else:
                _dash(canvas, key[0], key[-1], TEXT)
            page.text(left + _WIDTH + 2 * _KEY, top + y, label, _SIZE, anchor="lm")
        page.image.paste(image.reduce(_FINER), (left, top))
        page.text(left, upper, self.name, 9.0, style="Bold")
        page.text(left + _WIDTH / 2, top + height + BELOW, self.x_name, _SIZE, anchor="md")


def training_curve_png(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """PNG of losses (left) and validation AUROC, macro and per label (right), with the best epoch marked.

    `history` is that of `train_summary.json`: epoch, train_loss, val_loss, val_macro_auroc, val_per_class_auroc.
    """
    names = ("epoch", "train_loss", "val_loss", "val_macro_auroc", "val_per_class_auroc")
    epochs, train_loss, val_loss, macro, per_class = ([row[name] for row in history] for name in names)
    losses = [Curve("training", MUTED, train_loss), Curve("validation", TEXT, val_loss)]
    aurocs = [
        Curve(label, CLASS_COLOURS[k % 6], [row[label] for row in per_class], hollow=k % 12 > 5)
        for k, label in enumerate(per_class[0])
    ]
    axis: dict[str, Any] = {"x_name": "epoch", "x_step": 1, "mark": (best_epoch, f"best epoch ({best_epoch})")}
    left = Chart("weighted binary cross-entropy", losses, **axis)
    right = Chart("validation AUROC", [*aurocs, Curve("macro", TEXT, macro, 4)], (0.5, 1.0), **axis)
    height = max(HEIGHT, _ENTRY * len(right.legend))
    page = Page(2 * MARGIN + left.width + right.width, [], ABOVE + height + BELOW, [], demo=False)
    left.draw(page, MARGIN + LEFT, height, epochs)
    right.draw(page, split := MARGIN + left.width + LEFT, height, epochs)
    if not right.curves:
        reason = "no validation data" if val_loss[0] is None else "undefined: validation has one class only"
        x, y = split + _WIDTH / 2, page.top + ABOVE + height / 2
        page.text(x, y, reason, 9.0, anchor="mm", stroke_width=6, stroke_fill=BACKGROUND)
    return page.png()


def _limits(values: Sequence[Number]) -> Point:
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.02 * abs(high)) or 1.0
    return low - margin, high + margin


def _ticks(low: Number, high: Number, least_step: Number = 0.0) -> dict[str, Number]:
    # at most eight steps of 1, 2 or 5 times a power of ten: label and value
    step = max((high - low) / 8, least_step)
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)
    digits = max(0, -math.floor(math.log10(step)))
    return {f"{k * step:.{digits}f}": k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)}


def _dash(canvas: ImageDraw.ImageDraw, start: Point, end: Point, colour: str) -> None:
    n = round(math.dist(start, end) / (12 * _FINER))
    for line in np.linspace(start, end, 2 * n).reshape(n, 4):
        canvas.line(line.tolist(), colour, 2 * _FINER)
