"""Training curves: losses and validation AUROC by epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from meddinov3_stroke.system.provenance import DISCLAIMER

TRAIN_COLOUR = "#7a7a7a"
VAL_COLOUR = "#0b5fa5"
CLASS_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
"""Distinguishable by colour-blind readers (after Okabe and Ito); reused beyond six labels."""


def training_curve_png(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """PNG of losses (left) and validation AUROC, macro and per label (right), with the best epoch marked.

    `history` is that of `train_summary.json`: epoch, train_loss, val_loss, val_macro_auroc, val_per_class_auroc.
    """
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    losses, aurocs = figure.subplots(1, 2)
    figure.supxlabel(DISCLAIMER, fontsize=7, color=TRAIN_COLOUR)
    epochs = [row["epoch"] for row in history]
    _draw_losses(losses, epochs, history)
    _draw_aurocs(aurocs, epochs, history)
    for axes in (losses, aurocs):
        _finish(axes, best_epoch)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_losses(axes: Axes, epochs: Sequence[int], history: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(epochs, [row["train_loss"] for row in history], color=TRAIN_COLOUR, marker=".", label="training")
    if history[0]["val_loss"] is not None:
        axes.plot(epochs, [row["val_loss"] for row in history], color=VAL_COLOUR, marker=".", label="validation")
    axes.set_ylabel("weighted binary cross-entropy")


def _draw_aurocs(axes: Axes, epochs: Sequence[int], history: Sequence[Mapping[str, Any]]) -> None:
    for number, label in enumerate(history[0]["val_per_class_auroc"]):
        values = [row["val_per_class_auroc"][label] for row in history]
        if values[0] is not None:
            colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
            axes.plot(epochs, values, color=colour, linewidth=1, alpha=0.75, label=label)
    macro = [row["val_macro_auroc"] for row in history]
    if macro[0] is None:
        reason = "no validation data" if history[0]["val_loss"] is None else "undefined: validation has one class only"
        axes.text(0.5, 0.5, reason, ha="center", transform=axes.transAxes)
    else:
        axes.plot(epochs, macro, color=VAL_COLOUR, linewidth=2.5, marker=".", label="macro")
        axes.axhline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_ylim(top=1.005)
    axes.set_ylabel("validation AUROC")


def _finish(axes: Axes, best_epoch: int) -> None:
    axes.axvline(best_epoch, color="#222222", linewidth=1, linestyle="--", label=f"best epoch ({best_epoch})")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
