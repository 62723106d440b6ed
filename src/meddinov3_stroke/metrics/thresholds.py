"""Decision thresholds from validation, and figures at given thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8

from meddinov3_stroke.metrics.auroc import check_scores, undefined_reason
from meddinov3_stroke.types import Threshold

DEFAULT_THRESHOLD = 0.5
"""Used if validation gives no threshold."""

FIGURES = ("accuracy", "precision", "f1", "sensitivity")
"""Of each label at a threshold."""


def youden_thresholds(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> dict[str, Threshold]:
    """The threshold of each label with the largest sensitivity + specificity - 1 (Youden 1950), and its origin.

    A row is positive from the threshold on. It lies halfway between two neighbouring scores; of equally good ones the
    lowest is taken, which has the highest sensitivity. 0.5, and the reason, if validation gives none.

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
    """For each label of `thresholds`, in their order: threshold, origin, sensitivity and specificity (None where there
    is no positive or no negative)."""
    check_scores(labels, probabilities, list(thresholds))
    points = {}
    for (name, threshold), truth, scores in zip(thresholds.items(), labels.T, probabilities.T, strict=True):
        decided = scores >= threshold.value
        points[name] = {
            "threshold": threshold.value,
            "origin": threshold.origin,
            "sensitivity": _share(decided[truth == 1]),
            "specificity": _share(~decided[truth == 0]),
        }
    return points


def threshold_report(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    thresholds: float | Mapping[str, float],
    names: Sequence[str],
) -> dict[str, Any]:
    """{per_class: {label: {threshold, figures, tp, tn, fp, fn, reasons}}, macro: {figures}} at one or each threshold.

    The figures are accuracy, precision, f1 and sensitivity; None, with the reason, without anything to divide by. The
    macro is the mean over labels with the figure, None if there are none.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    per_class = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        threshold = float(thresholds[name] if isinstance(thresholds, Mapping) else thresholds)
        per_class[name] = {"threshold": threshold, **_figures_at(truth == 1, scores >= threshold)}
    macro = {}
    for figure in FIGURES:
        defined = [row[figure] for row in per_class.values() if row[figure] is not None]
        macro[figure] = float(np.mean(defined)) if defined else None
    return {"per_class": per_class, "macro": macro}


def _figures_at(truth: Bool[np.ndarray, " n"], decided: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    tp, fp = int((decided & truth).sum()), int((decided & ~truth).sum())
    fn, tn = int((~decided & truth).sum()), int((~decided & ~truth).sum())
    parts = {
        "accuracy": (tp + tn, len(truth), "no rows"),
        "precision": (tp, tp + fp, "no row is decided positive"),
        "f1": (2 * tp, 2 * tp + fp + fn, "no row is positive or decided positive"),
        "sensitivity": (tp, tp + fn, "no positive row"),
    }
    figures = {name: part / whole if whole else None for name, (part, whole, _) in parts.items()}
    reasons = {name: reason for name, (_, whole, reason) in parts.items() if not whole}
    return {**figures, "tp": tp, "tn": tn, "fp": fp, "fn": fn, "reasons": reasons}


def _youden(truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Threshold:
    reason = undefined_reason(truth)
    if reason:
        return Threshold(DEFAULT_THRESHOLD, f"default {DEFAULT_THRESHOLD}: validation has {reason}")
    n_positive, n_negative = int(truth.sum()), int((truth == 0).sum())
    levels, positives, negatives = _counts_by_level(truth, scores)
    # Youden's J of "positive from levels[k] on", times n_positive * n_negative: whole numbers, so that ties are ties
    true_positives = positives[::-1].cumsum()[::-1]
    false_positives = negatives[::-1].cumsum()[::-1]
    gain = true_positives * n_negative - false_positives * n_positive
    best = int(gain.argmax())
    counts = f"{n_positive} positive of {len(truth)}"
    if gain[best] <= 0:
        return Threshold(
            DEFAULT_THRESHOLD, f"default {DEFAULT_THRESHOLD}: no threshold separates validation ({counts})"
        )
    return Threshold(_halfway(levels[best - 1], levels[best]), f"validation Youden ({counts})")


def _counts_by_level(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    levels, index = np.unique(scores, return_inverse=True)
    positives = np.bincount(index, weights=truth, minlength=len(levels)).astype(np.int64)
    return levels, positives, np.bincount(index, minlength=len(levels)).astype(np.int64) - positives


def _halfway(below: float, above: float) -> float:
    middle = (float(below) + float(above)) / 2
    return middle if below < middle else float(above)  # neighbouring floats have no middle


def _share(decided: np.ndarray) -> float | None:
    return float(decided.mean()) if decided.size else None
