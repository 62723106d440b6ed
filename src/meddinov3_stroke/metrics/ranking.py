"""How well scores rank: AUROC and AUPRC, for one set of row multiplicities or for many at once. numpy only.

Shapes of every function of this package: `labels` 0 or 1 [row, label], `probabilities` of the same shape, `names` one
for each column. Where shapes differ or a score is NaN, they raise `DatasetError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError

Labels = Int8[np.ndarray, "n label"]
Scores = Float[np.ndarray, "n label"]


@dataclass(frozen=True)
class AurocReport:
    """AUROC of each label; None, with a reason, where it is undefined."""

    macro: float | None  # unweighted mean over the labels with a defined AUROC; None if there are none
    per_class: dict[str, float | None]
    reasons: dict[str, str]  # reason for each undefined AUROC
    n_classes: int  # labels in the macro


def auroc_report(labels: Labels, probabilities: Scores, names: Sequence[str]) -> AurocReport:
    """AUROC of each column, ties counted half; `probabilities` may be any ranking score."""
    check_scores(labels, probabilities, names)
    once = np.ones((1, len(labels)), dtype=np.int64)
    per_class: dict[str, float | None] = {}
    reasons = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        if reason := undefined_reason(truth):
            per_class[name], reasons[name] = None, reason
        else:
            per_class[name] = float(weighted_auroc(truth, scores, once)[0])
    return AurocReport(mean_of_defined(per_class.values()), per_class, reasons, len(per_class) - len(reasons))


def undefined_reason(truth: Int8[np.ndarray, " n"]) -> str | None:
    """Why this column has no AUROC, with its counts; None if it has one."""
    n_positive = int(truth.sum())
    if 0 < n_positive < len(truth):
        return None
    return f"no {'negative' if n_positive else 'positive'} among {len(truth)} rows"


def check_scores(
    labels: Int8[np.ndarray, "a b"], probabilities: Float[np.ndarray, "c d"], names: Sequence[str]
) -> None:
    """Raise DatasetError unless there is a score, not NaN, for each label of each row and a name for each column."""
    if labels.shape != probabilities.shape or labels.shape[1] != len(names):
        raise DatasetError(
            f"scores of shape {probabilities.shape} for labels of shape {labels.shape} and {len(names)} names; "
            "expected one score for each label of each row"
        )
    bad = np.nonzero(np.isnan(probabilities).any(axis=1))[0]
    if bad.size:
        raise DatasetError(f"NaN among the scores of {bad.size} rows, first row {bad[0]} (counted from 0)")


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


class Ranking:
    """The rows of one label sorted by score, once for any number of row multiplicities."""

    def __init__(self, truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> None:
        self.order = np.argsort(scores, kind="stable")
        ranked = scores[self.order]
        self.starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of each run of equal scores
        self.truth = truth[self.order].astype(np.int64)

    def counts(
        self, weights: Int64[np.ndarray, "draw n"]
    ) -> tuple[Int64[np.ndarray, "draw level"], Int64[np.ndarray, "draw level"]]:
        """Weight of the positives and of the negatives at each score, lowest first, for each set of multiplicities."""
        sorted_weights = np.take(weights, self.order, axis=1)
        positive = np.add.reduceat(sorted_weights * self.truth, self.starts, axis=1)
        return positive, np.add.reduceat(sorted_weights, self.starts, axis=1) - positive

    def auroc_and_auprc(
        self, weights: Int64[np.ndarray, "draw n"]
    ) -> tuple[Float64[np.ndarray, " draw"], Float64[np.ndarray, " draw"]]:
        """AUROC and AUPRC for each set of multiplicities; NaN where a class has no weight."""
        positive, negative = self.counts(weights)
        return auroc_of_counts(positive, negative), average_precision_of_counts(positive, negative)


def auroc_of_counts(
    positive: Int64[np.ndarray, "draw level"], negative: Int64[np.ndarray, "draw level"]
) -> Float64[np.ndarray, " draw"]:
    """The share of (positive, negative) pairs in the right order, ties half (Mann and Whitney 1947)."""
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * (2 * below + negative)).sum(axis=1) / 2
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def average_precision_of_counts(
    positive: Int64[np.ndarray, "draw level"], negative: Int64[np.ndarray, "draw level"]
) -> Float64[np.ndarray, " draw"]:
    """The area under the precision-recall curve as its step sum, sum of (R_k - R_(k-1)) P_k over falling thresholds."""
    true = np.cumsum(positive[:, ::-1], axis=1)
    precision = true / np.maximum(true + np.cumsum(negative[:, ::-1], axis=1), 1)
    n_positive, n_negative = positive.sum(axis=1), negative.sum(axis=1)
    area = (positive[:, ::-1] * precision).sum(axis=1) / np.maximum(n_positive, 1)
    return np.where((n_positive > 0) & (n_negative > 0), area, np.nan)


def weighted_auroc(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Int64[np.ndarray, "draw n"]
) -> Float64[np.ndarray, " draw"]:
    """AUROC for each set of row multiplicities, ties counted half; NaN where a class has no weight."""
    return auroc_of_counts(*Ranking(truth, scores).counts(weights))


def weighted_average_precision(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Int64[np.ndarray, "draw n"]
) -> Float64[np.ndarray, " draw"]:
    """AUPRC (average precision) for each set of row multiplicities; NaN where a class has no weight."""
    return average_precision_of_counts(*Ranking(truth, scores).counts(weights))


def placements(scores: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " m"]:
    """The share of the others below each score, ties half."""
    ranked = np.sort(others)
    sides = (np.searchsorted(ranked, scores, side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(ranked)), dtype=np.float64)
