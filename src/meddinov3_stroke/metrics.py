"""How good probabilities are: AUROC with patient-bootstrap intervals, losses, decision thresholds. numpy only.

Shapes of every function: `labels` 0 or 1 [row, label], `probabilities` of the same shape, `names` one for each column.
Where shapes differ or a score is NaN, they raise `DatasetError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError, UsageError
from meddinov3_stroke.types import Threshold

DEFAULT_THRESHOLD = 0.5  # used where validation gives no threshold
_LEVEL = 0.95
_LEAST_USABLE_SHARE = 0.5  # if fewer resamples than this hold both classes of every label, there is no interval
_RESAMPLES_AT_ONCE = 64
_CHALLENGE_CLIP = 1e-15  # RSNA 2019: probabilities are clipped to [1e-15, 1 - 1e-15] before the logarithm

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
    _check_scores(labels, probabilities, names)
    once = np.ones((1, len(labels)), dtype=np.int64)
    per_class: dict[str, float | None] = {}
    reasons = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        if reason := undefined_reason(truth):
            per_class[name], reasons[name] = None, reason
        else:
            per_class[name] = float(weighted_auroc(truth, scores, once)[0])
    return AurocReport(_mean(per_class.values()), per_class, reasons, len(per_class) - len(reasons))


def undefined_reason(truth: Int8[np.ndarray, " n"]) -> str | None:
    """Why this column has no AUROC, with its counts; None if it has one."""
    n_positive = int(truth.sum())
    if 0 < n_positive < len(truth):
        return None
    return f"no {'negative' if n_positive else 'positive'} among {len(truth)} rows"


def _check_scores(
    labels: Int8[np.ndarray, "a b"], probabilities: Float[np.ndarray, "c d"], names: Sequence[str]
) -> None:
    if labels.shape != probabilities.shape or labels.shape[1] != len(names):
        raise DatasetError(
            f"scores of shape {probabilities.shape} for labels of shape {labels.shape} and {len(names)} names; "
            "expected one score for each label of each row"
        )
    bad = np.nonzero(np.isnan(probabilities).any(axis=1))[0]
    if bad.size:
        raise DatasetError(f"NaN among the scores of {bad.size} rows, first row {bad[0]} (counted from 0)")


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval that resamples patients, because rows of one patient are not independent; None,
    with a reason, if there are too few data."""

    low: float | None
    high: float | None
    level: float
    n_resamples: int  # resamples used
    n_left_out: int = 0  # resamples without a positive or without a negative of some label of the macro
    unit: str = "patient"  # unit of resampling
    reason: str | None = None


def bootstrap_macro_auroc(
    labels: Labels, probabilities: Scores, groups: Sequence[str], n_resamples: int = 1000, seed: int = 42
) -> Interval:
    """The 95 % percentile interval of the macro AUROC over patients drawn with replacement.

    `groups` names the patient of each row. The macro covers the labels whose AUROC is defined on all rows; a resample
    that lacks a class of one of them is dropped and counted. Raises UsageError for fewer than one resample.
    """
    _check_scores(labels, probabilities, [""] * labels.shape[1])
    if len(groups) != len(labels):
        raise DatasetError(f"{len(groups)} patients for {len(labels)} rows; expected one for each row")
    if n_resamples < 1:
        raise UsageError(f"n_resamples {n_resamples}: expected at least 1")
    columns = [k for k in range(labels.shape[1]) if undefined_reason(labels[:, k]) is None]
    patients, patient = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    n_patients = len(patients)
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


def binary_cross_entropy(labels: Labels, logits: Scores, pos_weight: Float[np.ndarray, " label"]) -> float:
    """Mean over rows and labels of -(w y log p + (1 - y) log(1 - p)), as `torch.nn.BCEWithLogitsLoss(pos_weight=w)`."""
    scores, truth = logits.astype(np.float64), labels.astype(np.float64)
    return float(np.mean(pos_weight * truth * np.logaddexp(0, -scores) + (1 - truth) * np.logaddexp(0, scores)))


def weighted_log_loss(labels: Labels, probabilities: Scores, names: Sequence[str]) -> float:
    """The loss of the RSNA 2019 challenge, (2 any + the five subtypes) / 7, averaged over rows.

    The challenge scored slices of its own test set; figures on other data are not comparable with its leaderboard.
    """
    weights = [2.0 if name == "any" else 1.0 for name in names]
    clipped = np.clip(probabilities.astype(np.float64), _CHALLENGE_CLIP, 1 - _CHALLENGE_CLIP)
    losses = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return float(np.average(losses.mean(axis=0), weights=weights))


def youden_thresholds(labels: Labels, probabilities: Scores, names: Sequence[str]) -> dict[str, Threshold]:
    """The threshold of each label with the largest sensitivity + specificity - 1 (Youden 1950), and its origin.

    A row at or above the threshold is positive. The threshold lies halfway between two neighbouring scores; among
    equals the lowest is used, which has the highest sensitivity. 0.5, with the reason, if validation gives none.
    """
    _check_scores(labels, probabilities, names)
    return {name: _youden(truth, scores) for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True)}


def _youden(truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Threshold:
    default = f"default {DEFAULT_THRESHOLD}: "
    if reason := undefined_reason(truth):
        return Threshold(DEFAULT_THRESHOLD, f"{default}validation has {reason}")
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
        return Threshold(DEFAULT_THRESHOLD, f"{default}no threshold separates validation ({counts})")
    below, above = float(levels[best - 1]), float(levels[best])
    middle = (below + above) / 2  # adjacent floats have no midpoint
    return Threshold(middle if below < middle else above, f"validation Youden ({counts})")


def operating_points(
    labels: Labels, probabilities: Scores, thresholds: Mapping[str, Threshold]
) -> dict[str, dict[str, Any]]:
    """{label: {threshold, origin, sensitivity, specificity}} at thresholds in the order of the columns; a rate without
    rows is None."""
    _check_scores(labels, probabilities, list(thresholds))
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
    labels: Labels, probabilities: Scores, thresholds: float | Mapping[str, float], names: Sequence[str]
) -> dict[str, Any]:
    """{threshold, per_class: {label: metrics}, macro: metrics}: accuracy, precision, f1, sensitivity and, per class,
    threshold, tp, tn, fp, fn. An undefined rate (0/0) is None, has its counts under `reasons`, and is left out of the
    macro."""
    _check_scores(labels, probabilities, names)
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
        macro[rate] = _mean(counts[rate] for counts in per_class.values())
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
    } | {"tp": tp, "tn": tn, "fp": fp, "fn": fn}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
