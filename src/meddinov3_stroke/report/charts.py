"""PNG of a training by epoch, drawn with Pillow on the page of the other pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from meddinov3_stroke.report.pictures import BACKGROUND, DPI, MARGIN, MUTED, TEXT, Number, Page, drawable, font_of

CLASS_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
"""Distinguishable by colour-blind readers (after Okabe and Ito); reused beyond six labels, then with hollow points."""
_GRID = "#23282e"
_SIZE = 8.0  # of letters, in points
_WIDTH, _HEIGHT, _ENTRY = (round(inches * DPI) for inches in (3.6, 2.7, 0.18))  # of a plot and a line of its legend
_LEFT, _ABOVE, _BELOW, _KEY = (round(inches * DPI) for inches in (0.4, 0.28, 0.38, 0.25))  # around a plot
_FINER = 4  # lines are drawn this many times larger and shrunk, which smooths them
_MOST_POINTS = 40  # marked on a curve

Point = tuple[Number, Number]


@dataclass(frozen=True)
class _Curve:
    label: str
    colour: str
    values: Sequence[Number | None]
    width: int = 2
    hollow: bool = False

    def draw(self, canvas: ImageDraw.ImageDraw, points: Sequence[Point | None], every: int) -> None:
        for start, end in pairwise(points):
            if start and end:
                canvas.line([start, end], self.colour, self.width * _FINER)
        fill = BACKGROUND if self.hollow else self.colour
        for point in filter(None, points[every // 2 :: every]):
            canvas.circle(point, round((self.width + 1.5) * _FINER), fill, self.colour, round(1.5 * _FINER))


class _Chart:
    """Curves by epoch with a legend; `levels` are within its limits, and the first of them is drawn."""

    def __init__(self, name: str, curves: Sequence[_Curve], best_epoch: int, levels: Sequence[Number] = ()) -> None:
        self.name, self.best_epoch, self.levels = name, best_epoch, levels
        self.curves = [curve for curve in curves if set(curve.values) != {None}]
        self.legend = [*(curve.label for curve in self.curves), f"best epoch ({best_epoch})"]
        letters = max(font_of(_SIZE).getlength(drawable(label)) for label in self.legend)
        self.width = round(_LEFT + _WIDTH + 3 * _KEY + letters)

    def draw(self, page: Page, left: int, height: int, epochs: Sequence[int]) -> None:
        top = page.top + _ABOVE
        values = [value for curve in self.curves for value in curve.values if value is not None]
        (first, last), (low, high) = _limits(epochs), _limits([*values, *self.levels])
        image = Image.new("RGB", (_FINER * (_WIDTH + 2 * _KEY), _FINER * height), BACKGROUND)
        canvas = ImageDraw.Draw(image)

        def place(epoch: Number, value: Number) -> Point:
            return _FINER * _WIDTH * (epoch - first) / (last - first), _FINER * height * (high - value) / (high - low)

        for label, epoch in _ticks(epochs[0], epochs[-1], 1).items():
            canvas.line([place(epoch, low), place(epoch, high)], _GRID, _FINER)
            page.text(left + place(epoch, low)[0] / _FINER, top + height + 8, label, _SIZE, MUTED, anchor="ma")
        for label, value in _ticks(low, high).items():
            canvas.line([place(first, value), place(last, value)], _GRID, _FINER)
            page.text(left - 10, top + place(first, value)[1] / _FINER, label, _SIZE, MUTED, anchor="rm")
        canvas.line([place(first, high), place(first, low), place(last, low)], MUTED, 3 * _FINER)
        for level in self.levels[:1]:
            _dash(canvas, place(first, level), place(last, level), MUTED)
        _dash(canvas, place(self.best_epoch, low), place(self.best_epoch, high), TEXT)
        for curve in self.curves:
            points = [None if v is None else place(e, v) for e, v in zip(epochs, curve.values, strict=True)]
            curve.draw(canvas, points, every=-(-len(epochs) // _MOST_POINTS))
        for k, label in enumerate(self.legend):
            y = height / 2 + _ENTRY * (k + 0.5 - len(self.legend) / 2)
            key = [(_FINER * (_WIDTH + share * _KEY), _FINER * y) for share in (0.5, 1.0, 1.5)]
            if k < len(self.curves):
                self.curves[k].draw(canvas, key, every=3)
            else:
                _dash(canvas, key[0], key[-1], TEXT)
            page.text(left + _WIDTH + 2 * _KEY, top + y, label, _SIZE, anchor="lm")
        page.image.paste(image.reduce(_FINER), (left, top))
        page.text(left, page.top, self.name, 9.0, style="Bold")
        page.text(left + _WIDTH / 2, top + height + _BELOW, "epoch", _SIZE, anchor="md")


def training_curve_png(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """PNG of losses (left) and validation AUROC, macro and per label (right), with the best epoch marked.

    `history` is that of `train_summary.json`: epoch, train_loss, val_loss, val_macro_auroc, val_per_class_auroc.
    """
    names = ("epoch", "train_loss", "val_loss", "val_macro_auroc", "val_per_class_auroc")
    epochs, train_loss, val_loss, macro, per_class = ([row[name] for row in history] for name in names)
    losses = [_Curve("training", MUTED, train_loss), _Curve("validation", TEXT, val_loss)]
    aurocs = [
        _Curve(label, CLASS_COLOURS[k % 6], [row[label] for row in per_class], hollow=k % 12 > 5)
        for k, label in enumerate(per_class[0])
    ]
    left = _Chart("weighted binary cross-entropy", losses, best_epoch)
    right = _Chart("validation AUROC", [*aurocs, _Curve("macro", TEXT, macro, 4)], best_epoch, levels=(0.5, 1.0))
    height = max(_HEIGHT, _ENTRY * len(right.legend))
    page = Page(2 * MARGIN + left.width + right.width, [], _ABOVE + height + _BELOW, [], demo=False)
    left.draw(page, MARGIN + _LEFT, height, epochs)
    right.draw(page, split := MARGIN + left.width + _LEFT, height, epochs)
    if not right.curves:
        reason = "no validation data" if val_loss[0] is None else "undefined: validation has one class only"
        x, y = split + _WIDTH / 2, page.top + _ABOVE + height / 2
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
