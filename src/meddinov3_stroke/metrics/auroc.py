"""Area under the ROC curve, per label and as their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.errors import DatasetError


@dataclass(frozen=True)
class AurocReport:
    """AUROC of each label; None, with the reason, where it is undefined."""

    macro: float | None
    """Unweighted mean over the labels where it is defined; None where it is so for none."""
    per_class: dict[str, float | None]
    reasons: dict[str, str]
    """Why a label's AUROC is None; one entry for each such label."""
    n_classes: int
    """Labels in the macro."""


def auroc_report(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> AurocReport:
    """AUROC by scikit-learn for each column, ties counted half; any score that ranks will do for `probabilities`.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    per_class: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        reason = undefined_reason(truth)
        per_class[name] = None if reason else float(roc_auc_score(truth, scores))
        if reason:
            reasons[name] = reason
    defined = [value for value in per_class.values() if value is not None]
    return AurocReport(float(np.mean(defined)) if defined else None, per_class, reasons, len(defined))


def undefined_reason(truth: Int8[np.ndarray, " n"]) -> str | None:
    """Why this column has no AUROC, with its counts; None where it has one."""
    n_positive = int(truth.sum())
    if 0 < n_positive < len(truth):
        return None
    return f"no {'negative' if n_positive else 'positive'} among {len(truth)} rows"


def check_scores(
    labels: Int8[np.ndarray, "a b"], probabilities: Float[np.ndarray, "c d"], names: Sequence[str]
) -> None:
    """Nothing, where labels, scores and names belong together.

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
