"""Area under the ROC curve, per label and as their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError


@dataclass(frozen=True)
class AurocReport:
    """AUROC of each label; None, with the reason, if it is undefined."""

    macro: float | None
    """Unweighted mean over the labels with a defined AUROC; None if there are none."""
    per_class: dict[str, float | None]
    reasons: dict[str, str]
    """Why a label's AUROC is None; one entry for each such label."""
    n_classes: int
    """Labels in the macro."""


def auroc_report(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> AurocReport:
    """AUROC of each column, ties counted half; `probabilities` may be any score that ranks.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    per_class: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    once = np.ones((1, len(labels)), dtype=np.int64)
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        reason = undefined_reason(truth)
        per_class[name] = None if reason else float(weighted_auroc(truth, scores, once)[0])
        if reason:
            reasons[name] = reason
    defined = [value for value in per_class.values() if value is not None]
    return AurocReport(float(np.mean(defined)) if defined else None, per_class, reasons, len(defined))


def weighted_auroc(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Int64[np.ndarray, "draw n"]
) -> Float64[np.ndarray, " draw"]:
    """AUROC for each set of row multiplicities, ties counted half; NaN where a class has no weight.

    The share of (positive, negative) pairs in the right order (Mann and Whitney 1947), one sort for all draws.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    positive = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - truth[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def undefined_reason(truth: Int8[np.ndarray, " n"]) -> str | None:
    """Why this column has no AUROC, with its counts; None if it has one."""
    n_positive = int(truth.sum())
    if 0 < n_positive < len(truth):
        return None
    return f"no {'negative' if n_positive else 'positive'} among {len(truth)} rows"


def check_scores(
    labels: Int8[np.ndarray, "a b"], probabilities: Float[np.ndarray, "c d"], names: Sequence[str]
) -> None:
    """Return if labels, scores and names belong together.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    if labels.shape != probabilities.shape or labels.shape[1] != len(names):
        raise DatasetError(
            f"scores of shape {probabilities.shape} for labels of shape {labels.shape} and {len(names)} names; "
            "expected one score for each label of each row"
        )
    bad = np.nonzero(np.isnan(probabilities).any(axis=1))[0]
    if bad.size:
        raise DatasetError(f"NaN among the scores of {bad.size} rows, first row {bad[0]} (counted from 0)")
