"""AUROC with patient-bootstrap intervals, and losses of given scores. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError, UsageError

_LEVEL = 0.95
_LEAST_USABLE_SHARE = 0.5
"""If fewer resamples than this hold both classes of every label, there is no interval."""
_RESAMPLES_AT_ONCE = 64
_CHALLENGE_CLIP = 1e-15
"""RSNA 2019: probabilities are clipped to [1e-15, 1 - 1e-15] before the logarithm."""


@dataclass(frozen=True)
class AurocReport:
    """AUROC of each label; None, with a reason, where it is undefined."""

    macro: float | None
    """Unweighted mean over the labels with a defined AUROC; None if there are none."""
    per_class: dict[str, float | None]
    reasons: dict[str, str]
    """Reason for each undefined AUROC."""
    n_classes: int
    """Labels in the macro."""


def auroc_report(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> AurocReport:
    """AUROC of each column, ties counted half; `probabilities` may be any ranking score.

    Raises:
        DatasetError: the shapes differ, or a score is NaN.
    """
    check_scores(labels, probabilities, names)
    found = {name: undefined_reason(truth) for name, truth in zip(names, labels.T, strict=True)}
    reasons = {name: reason for name, reason in found.items() if reason}
    once = np.ones((1, len(labels)), dtype=np.int64)
    per_class = {
        name: None if name in reasons else float(weighted_auroc(truth, scores, once)[0])
        for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True)
    }
    defined = [value for value in per_class.values() if value is not None]
    return AurocReport(float(np.mean(defined)) if defined else None, per_class, reasons, len(defined))


def undefined_reason(truth: Int8[np.ndarray, " n"]) -> str | None:
    """Why this column has no AUROC, with its counts; None if it has one."""
    n_positive = int(truth.sum())
    if 0 < n_positive < len(truth):
        return None
    return f"no {'negative' if n_positive else 'positive'} among {len(truth)} rows"


def check_scores(
    labels: Int8[np.ndarray, "a b"], probabilities: Float[np.ndarray, "c d"], names: Sequence[str]
) -> None:
    """Check that labels, scores and names match.

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


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval that resamples patients, because rows of one patient are not independent; None,
    with a reason, if there are too few data."""

    low: float | None
    high: float | None
    level: float
    n_resamples: int
    """Resamples used."""
    n_left_out: int = 0
    """Resamples without a positive or without a negative of some label of the macro."""
    unit: str = "patient"
    """Unit of resampling."""
    reason: str | None = None


def bootstrap_macro_auroc(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    groups: Sequence[str],
    n_resamples: int = 1000,
    seed: int = 42,
) -> Interval:
    """The 95 % percentile interval of the macro AUROC over patients drawn with replacement.

    `groups` names the patient of each row. The macro covers the labels whose AUROC is defined on all rows; a resample
    that lacks a class of one of them is dropped and counted.

    Raises:
        DatasetError: shapes differ, or not one group for each row.
        UsageError: fewer than one resample.
    """
    check_scores(labels, probabilities, [""] * labels.shape[1])
    if len(groups) != len(labels):
        raise DatasetError(f"{len(groups)} patients for {len(labels)} rows; expected one for each row")
    if n_resamples < 1:
        raise UsageError(f"n_resamples {n_resamples}: expected at least 1")
    columns = [k for k in range(labels.shape[1]) if undefined_reason(labels[:, k]) is None]
    _, patient = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    n_patients = int(patient.max()) + 1 if len(patient) else 0
    if not columns or n_patients < 2:
        return Interval(None, None, _LEVEL, 0, reason=f"{len(columns)} labels with an AUROC, {n_patients} patients")
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_resamples)
    parts = []
    for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
        weights = draws[start : start + _RESAMPLES_AT_ONCE, patient]
        aurocs = [weighted_auroc(labels[:, k], probabilities[:, k], weights) for k in columns]
        parts.append(np.mean(aurocs, axis=0))
    return _percentile_interval(np.concatenate(parts))


def weighted_auroc(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Int64[np.ndarray, "draw n"]
) -> Float64[np.ndarray, " draw"]:
    """AUROC for each set of row multiplicities, ties counted half; NaN where a class has no weight.

    The share of (positive, negative) pairs in the right order (Mann and Whitney 1947), one sort for all draws.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positive = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - truth[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def _percentile_interval(macros: Float64[np.ndarray, " draw"]) -> Interval:
    usable = macros[~np.isnan(macros)]
    n_left_out = len(macros) - len(usable)
    if len(usable) < _LEAST_USABLE_SHARE * len(macros):
        reason = f"{n_left_out} of {len(macros)} resamples lack a positive or a negative of some label"
        return Interval(None, None, _LEVEL, len(usable), n_left_out, reason=reason)
    low, high = np.quantile(usable, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(low), float(high), _LEVEL, len(usable), n_left_out)


def binary_cross_entropy(
    labels: Int8[np.ndarray, "n label"],
    logits: Float[np.ndarray, "n label"],
    pos_weight: Float[np.ndarray, " label"],
) -> float:
    """Mean over rows and labels of -(w y log p + (1 - y) log(1 - p)), as `torch.nn.BCEWithLogitsLoss(pos_weight=w)`."""
    scores, truth = logits.astype(np.float64), labels.astype(np.float64)
    return float(np.mean(pos_weight * truth * np.logaddexp(0, -scores) + (1 - truth) * np.logaddexp(0, scores)))


def weighted_log_loss(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> float:
    """The loss of the RSNA 2019 challenge, (2 any + the five subtypes) / 7, averaged over rows.

    The challenge scored slices of its own test set; figures on other data are not comparable with its leaderboard.
    """
    weights = [2.0 if name == "any" else 1.0 for name in names]
    clipped = np.clip(probabilities.astype(np.float64), _CHALLENGE_CLIP, 1 - _CHALLENGE_CLIP)
    losses = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return float(np.average(losses.mean(axis=0), weights=weights))
