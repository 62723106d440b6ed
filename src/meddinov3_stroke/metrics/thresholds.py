"""Decision thresholds and what they give: rates, with intervals by patient. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from meddinov3_stroke.metrics.intervals import Patients, order_statistic, rate, ratio_limits, wilson
from meddinov3_stroke.metrics.ranking import Labels, Scores, check_scores, mean_of_defined, undefined_reason
from meddinov3_stroke.types import Threshold

DEFAULT_THRESHOLD = 0.5  # used where validation gives no threshold
SENSITIVITIES = (0.95, 0.98)
"""Sensitivities on validation that operating points are fixed at, beside Youden's."""


def youden_thresholds(labels: Labels, probabilities: Scores, names: Sequence[str]) -> dict[str, Threshold]:
    """The threshold of each label with the largest sensitivity + specificity - 1 (Youden 1950), and its origin.

    A row at or above the threshold is positive. The threshold lies halfway between two neighbouring scores; among
    equals the lowest is used, which has the highest sensitivity. 0.5, with the reason, if validation gives none.
    """
    check_scores(labels, probabilities, names)
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


def sensitivity_thresholds(
    labels: Labels, probabilities: Scores, names: Sequence[str], sensitivity: float
) -> dict[str, Threshold]:
    """The highest threshold of each label that finds at least this share of validation's positives, and its origin.

    It lies halfway between the score of a positive row, which still counts, and the next lower score. 0.5, with the
    reason, if validation has no positive.
    """
    check_scores(labels, probabilities, names)
    found = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        positives = np.sort(scores[truth == 1])[::-1]
        if not len(positives):
            origin = f"default {DEFAULT_THRESHOLD}: validation has {undefined_reason(truth)}"
            found[name] = Threshold(DEFAULT_THRESHOLD, origin)
            continue
        needed = int(np.ceil(sensitivity * len(positives) - 1e-9))
        origin = f"validation sensitivity {sensitivity:.0%} ({needed} of {len(positives)} positives)"
        last = float(positives[max(needed, 1) - 1])
        middle = (last + float(scores[scores < last].max(initial=-np.inf))) / 2
        found[name] = Threshold(middle if -np.inf < middle < last else last, origin)
    return found


def validation_thresholds(
    labels: Labels, probabilities: Scores, names: Sequence[str]
) -> dict[str, dict[str, Threshold]]:
    """{operating point: {label: threshold}} on validation: Youden's, and each of `SENSITIVITIES`."""
    points = {"youden": youden_thresholds(labels, probabilities, names)}
    for share in SENSITIVITIES:
        points[f"sensitivity_{100 * share:.0f}"] = sensitivity_thresholds(labels, probabilities, names, share)
    return points


def promised_rates(
    truth: Int8[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    thresholds: Mapping[str, Threshold],
    patients: Patients,
) -> dict[str, Any]:
    """{operating point: {sensitivity, specificity}} on the rows that fixed the thresholds, each with its interval; that
    of a sensitivity that was aimed at takes into account that these rows placed the threshold."""
    positive, found = truth == 1, {}
    for point, threshold in thresholds.items():
        decided = scores >= threshold.value
        limits = order_statistic if point.startswith("sensitivity") and (decided & positive).any() else wilson
        sides = {"sensitivity": (decided & positive, positive), "specificity": (~decided & ~positive, ~positive)}
        found[point] = {
            name: rate(part.astype(float), whole.astype(float), patients, limits if name == "sensitivity" else wilson)
            for name, (part, whole) in sides.items()
        }
    return found


def rates_at(
    truth: Int8[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    threshold: Threshold,
    patients: Patients,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """{threshold, origin, tp, tn, fp, fn, accuracy, f1, sensitivity, specificity, ppv, npv}, each rate with its
    interval by patient (`intervals.rate`); with a stated prevalence, also PPV and NPV at it (Bayes' rule)."""
    positive, decided = truth == 1, scores >= threshold.value
    tp, tn, fp, fn = (
        cell.astype(np.float64)
        for cell in (positive & decided, ~positive & ~decided, ~positive & decided, positive & ~decided)
    )
    shares = {
        "accuracy": (tp + tn, np.ones(len(truth))),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
    }
    counts = {name: int(cell.sum()) for name, cell in (("tp", tp), ("tn", tn), ("fp", fp), ("fn", fn))}
    found: dict[str, Any] = {"threshold": threshold.value, "origin": threshold.origin, **counts}
    found |= {name: rate(part, whole, patients) for name, (part, whole) in shares.items()}
    if prevalence is not None:
        odds = prevalence / (1 - prevalence)
        missed, false_alarms = rate(fn, tp + fn, patients), rate(fp, tn + fp, patients)
        predictive = {
            "ppv": (false_alarms, found["sensitivity"], 1 / odds),
            "npv": (missed, found["specificity"], odds),
        }
        found["at_prevalence"] = {"prevalence": prevalence} | {
            name: dict(zip(("value", "low", "high"), ratio_limits(*sides), strict=True))
            for name, sides in predictive.items()
        }
    return found


def operating_points(
    labels: Labels, probabilities: Scores, thresholds: Mapping[str, Threshold]
) -> dict[str, dict[str, Any]]:
    """{label: {threshold, origin, sensitivity, specificity}} at thresholds in the order of the columns; a rate without
    rows is None."""
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
    labels: Labels, probabilities: Scores, thresholds: float | Mapping[str, float], names: Sequence[str]
) -> dict[str, Any]:
    """{threshold, per_class: {label: metrics}, macro: metrics}: accuracy, precision, f1, sensitivity and, per class,
    threshold, tp, tn, fp, fn. An undefined rate (0/0) is None, has its counts under `reasons`, and is left out of the
    macro."""
    check_scores(labels, probabilities, names)
    values = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(names, thresholds)
    per_class: dict[str, dict[str, Any]] = {
        name: {"threshold": values[name], **_confusion(truth == 1, scores >= values[name])}
        for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True)
    }
    macro = {}
    for name in ("accuracy", "precision", "f1", "sensitivity"):
        for row in per_class.values():
            if row[name] is None:
                row.setdefault("reasons", {})[name] = f"0/0: tp {row['tp']}, fp {row['fp']}, fn {row['fn']}"
        macro[name] = mean_of_defined(counts[name] for counts in per_class.values())
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
