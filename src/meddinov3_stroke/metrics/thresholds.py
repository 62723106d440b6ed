"""Decision thresholds from validation, and performance at thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from meddinov3_stroke.metrics.discrimination import check_scores, undefined_reason
from meddinov3_stroke.types import Threshold

DEFAULT_THRESHOLD = 0.5
"""Used where validation gives no threshold."""


def youden_thresholds(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> dict[str, Threshold]:
    """The threshold of each label with the largest sensitivity + specificity - 1 (Youden 1950), and its origin.

    A row at or above the threshold is positive. The threshold lies halfway between two neighbouring scores; among
    equals the lowest is used, which has the highest sensitivity. 0.5, with the reason, if validation gives none.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    return {name: _youden(truth, scores) for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True)}


def operating_points(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    thresholds: Mapping[str, Threshold],
) -> dict[str, dict[str, Any]]:
    """{label: {threshold, origin, sensitivity, specificity}}; a rate without rows is None.

    `thresholds` are in the order of the columns.
    """
    check_scores(labels, probabilities, list(thresholds))
    points = {}
    for (name, threshold), truth, scores in zip(thresholds.items(), labels.T, probabilities.T, strict=True):
        counts = _confusion(truth == 1, scores >= threshold.value)
        points[name] = {
            "threshold": threshold.value,
            "origin": threshold.origin,
            "sensitivity": counts["sensitivity"],
            "specificity": _share(counts["tn"], counts["tn"] + counts["fp"]),
        }
    return points


def threshold_report(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    thresholds: float | Mapping[str, float],
    names: Sequence[str],
) -> dict[str, Any]:
    """{threshold, per_class: {label: metrics}, macro: metrics}: accuracy, precision, f1, sensitivity and, per class,
    threshold, tp, tn, fp, fn. An undefined rate (0/0) is None, has its counts
    under `reasons`, and is left out of the macro.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    values = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(names, thresholds)
    per_class: dict[str, dict[str, Any]] = {
        name: {"threshold": values[name], **_confusion(truth == 1, scores >= values[name])}
        for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True)
    }
    macro = {}
    for rate in ("accuracy", "precision", "f1", "sensitivity"):
        for row in per_class.values():
            if row[rate] is None:
                row.setdefault("reasons", {})[rate] = f"0/0: tp {row['tp']}, fp {row['fp']}, fn {row['fn']}"
        defined = [counts[rate] for counts in per_class.values() if counts[rate] is not None]
        macro[rate] = float(np.mean(defined)) if defined else None
    stated = dict(values) if isinstance(thresholds, Mapping) else thresholds
    return {"threshold": stated, "per_class": per_class, "macro": macro}


def _confusion(truth: np.ndarray, decided: np.ndarray) -> dict[str, Any]:
    tp, tn = int((truth & decided).sum()), int((~truth & ~decided).sum())
    fp, fn = int((~truth & decided).sum()), int((truth & ~decided).sum())
    return {
        "accuracy": _share(tp + tn, len(truth)),
        "precision": _share(tp, tp + fp),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "sensitivity": _share(tp, tp + fn),
        "tp": tp,
        "tn": tn,
        "fp": fp,
        "fn": fn,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _youden(truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Threshold:
    reason = undefined_reason(truth)
    if reason:
        return Threshold(DEFAULT_THRESHOLD, f"default {DEFAULT_THRESHOLD}: validation has {reason}")
    n_positive, n_negative = int(truth.sum()), int((truth == 0).sum())
    levels, index = np.unique(scores, return_inverse=True)
    true_positives, false_positives = (
        np.bincount(index[truth == value], minlength=len(levels))[::-1].cumsum()[::-1] for value in (1, 0)
    )
    # Youden's J at each level times n_positive * n_negative: integers, so that ties are exact
    gain = true_positives * n_negative - false_positives * n_positive
    best = int(gain.argmax())
    counts = f"{n_positive} positive of {len(truth)}"
    if gain[best] <= 0:
        return Threshold(
            DEFAULT_THRESHOLD, f"default {DEFAULT_THRESHOLD}: no threshold separates validation ({counts})"
        )
    return Threshold(_halfway(levels[best - 1], levels[best]), f"validation Youden ({counts})")


def _halfway(below: float, above: float) -> float:
    middle = (float(below) + float(above)) / 2
    return middle if below < middle else float(above)  # adjacent floats have no midpoint
