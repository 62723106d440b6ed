"""Decision thresholds from validation, and what they do on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from meddinov3_stroke.metrics.auroc import check_scores, undefined_reason
from meddinov3_stroke.types import Threshold

DEFAULT_THRESHOLD = 0.5
"""Where validation cannot give a threshold."""


def youden_thresholds(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> dict[str, Threshold]:
    """The threshold of each label with the largest sensitivity + specificity - 1 (Youden 1950), and its origin.

    A row is positive from the threshold on. It lies halfway between two neighbouring scores; of equally good ones the
    lowest is taken, which has the highest sensitivity. 0.5, and the reason, where validation cannot give one.

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
