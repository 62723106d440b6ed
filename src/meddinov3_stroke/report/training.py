"""Summaries of training and test rows, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meddinov3_stroke.explain import is_demo
from meddinov3_stroke.system.digest import sha256_of_array
from meddinov3_stroke.system.provenance import ending
from meddinov3_stroke.types import HeadData


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
    """`train_summary.json` as text: best epoch, AUROC and threshold per label, files, last lines."""
    best = summary["history"][summary["best_epoch"] - 1]
    validated = f"validated on {summary['val']['n_samples']}" if summary["val"] else "no validation"
    kept = f"kept epoch {summary['best_epoch']} of {len(summary['history'])}"
    lines = [
        f"trained on {summary['train']['n_samples']} rows, {validated}; {kept} "
        f"({summary['metric_name']} {_figure(summary['best_metric'])})",
        f"{'label':<18}{'val AUROC':>11}{'threshold':>11}",
    ]
    for label, auroc in best["val_per_class_auroc"].items():
        lines.append(f"{label:<18}{_figure(auroc):>11}{summary['thresholds'][label]:>11.4f}")
    files = [summary["checkpoints"]["best"], summary["checkpoints"]["last"], *summary["files"].values()]
    backbone = summary["backbone"] or {"name": ""}
    last = ending(kept, files[0], len(summary["warnings"]), is_demo(backbone["name"]))
    return "\n".join([*lines, *(f"wrote {path}" for path in files), last])


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
