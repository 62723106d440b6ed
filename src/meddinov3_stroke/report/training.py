"""Summaries of training and test rows, and tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from meddinov3_stroke.system.digest import sha256_of_array
from meddinov3_stroke.system.provenance import DISCLAIMER
from meddinov3_stroke.types import HeadData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_COLOUR = "#7a7a7a"
VAL_COLOUR = "#0b5fa5"
CLASS_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
"""Distinguishable by colour-blind readers (after Okabe and Ito); reused beyond six labels."""


def about_rows(data: HeadData, names: Sequence[str]) -> dict[str, Any]:
    """Count, positives per label and digests of the rows, as JSON."""
    n_positive = data.labels.sum(axis=0, dtype=int).tolist()
    return {
        "n_samples": len(data.labels),
        "n_positive": dict(zip(names, n_positive, strict=True)),
        "embeddings_sha256": sha256_of_array(data.embeddings),
        "labels_sha256": sha256_of_array(data.labels),
    }


def about_backbone(backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    """The backbone behind the embeddings, as JSON; each value None where it is unknown."""
    names = ("weights_sha256", "preprocessing", "engine", "precision")
    return {"backbone": backbone, **{name: backbone[name] if backbone else None for name in names}}


def training_table(summary: Mapping[str, Any]) -> str:
    """`train_summary.json` as text: best epoch, AUROC and threshold per label, files, disclaimer."""
    best = summary["history"][summary["best_epoch"] - 1]
    validated = f"validated on {summary['val']['n_samples']}" if summary["val"] else "no validation"
    lines = [
        f"trained on {summary['train']['n_samples']} rows, {validated}; kept epoch {summary['best_epoch']} of "
        f"{len(summary['history'])} ({summary['metric_name']} {_figure(summary['best_metric'])})",
        f"{'label':<18}{'val AUROC':>11}{'threshold':>11}",
    ]
    for label, auroc in best["val_per_class_auroc"].items():
        lines.append(f"{label:<18}{_figure(auroc):>11}{summary['thresholds'][label]:>11.4f}")
    files = [summary["checkpoints"]["best"], summary["checkpoints"]["last"], *summary["files"].values()]
    return "\n".join([*lines, *(f"wrote {path}" for path in files), DISCLAIMER])


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """`metrics.json` as text: macro AUROC, then AUROC, threshold, sensitivity and specificity per label."""
    lines = [
        f"{metrics['n_samples']} rows; macro AUROC {_figure(metrics['macro_auroc'])} over "
        f"{metrics['n_classes_in_macro']} of {len(metrics['per_class_auroc'])} labels; loss {metrics['loss']:.4f}",
        f"{'label':<18}{'positive':>9}{'AUROC':>9}{'threshold':>11}{'sensitivity':>13}{'specificity':>13}",
    ]
    for label, auroc in metrics["per_class_auroc"].items():
        point = metrics["operating_points"][label]
        lines.append(
            f"{label:<18}{metrics['n_positive'][label]:>9}{_figure(auroc):>9}{point['threshold']:>11.4f}"
            f"{_figure(point['sensitivity']):>13}{_figure(point['specificity']):>13}"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def training_curve_png(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """PNG of losses (left) and validation AUROC, macro and per label (right), with the best epoch marked.

    `history` is that of `train_summary.json`: epoch, train_loss, val_loss, val_macro_auroc, val_per_class_auroc.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    losses, aurocs = figure.subplots(1, 2)
    figure.supxlabel(DISCLAIMER, fontsize=7, color=TRAIN_COLOUR)
    epochs = [row["epoch"] for row in history]
    columns = {name: [row[name] for row in history] for name in ("train_loss", "val_loss", "val_macro_auroc")}

    def draw(axes: Axes, values: Sequence[Any], **style: Any) -> None:
        if values[0] is not None:
            axes.plot(epochs, values, **style)

    draw(losses, columns["train_loss"], color=TRAIN_COLOUR, marker=".", label="training")
    draw(losses, columns["val_loss"], color=VAL_COLOUR, marker=".", label="validation")
    for label, colour in zip(history[0]["val_per_class_auroc"], cycle(CLASS_COLOURS), strict=False):
        values = [row["val_per_class_auroc"][label] for row in history]
        draw(aurocs, values, color=colour, linewidth=1, alpha=0.75, label=label)
    draw(aurocs, columns["val_macro_auroc"], color=VAL_COLOUR, linewidth=2.5, marker=".", label="macro")
    if columns["val_macro_auroc"][0] is None:
        unvalidated = columns["val_loss"][0] is None
        reason = "no validation data" if unvalidated else "undefined: validation has one class only"
        aurocs.text(0.5, 0.5, reason, ha="center", transform=aurocs.transAxes)
    else:
        aurocs.axhline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    aurocs.set_ylim(top=1.005)
    for axes, name in ((losses, "weighted binary cross-entropy"), (aurocs, "validation AUROC")):
        axes.axvline(best_epoch, color="#222222", linewidth=1, linestyle="--", label=f"best epoch ({best_epoch})")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    FigureCanvasAgg(figure)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()
