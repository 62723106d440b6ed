"""The evaluation of a model on labelled rows, as JSON: every figure with its interval by patient and its counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.metrics.calibration import calibration_figures, shifted
from meddinov3_stroke.metrics.curves import curves
from meddinov3_stroke.metrics.intervals import (
    LEVEL,
    Patients,
    bootstrap_interval,
    figure,
    macro_interval,
    ranking_draws,
    undefined,
)
from meddinov3_stroke.metrics.losses import weighted_log_loss
from meddinov3_stroke.metrics.position import (
    MATCH_TOLERANCE,
    Heights,
    MatchedPairs,
    cross_validated_scores,
    mid_stack,
    position_features,
)
from meddinov3_stroke.metrics.ranking import Labels, Scores, check_scores, undefined_reason
from meddinov3_stroke.metrics.thresholds import rates_at
from meddinov3_stroke.types import LABELS, Threshold

NO_PATIENTS = (
    "the patients of the rows are unknown: every row counts as its own patient, so intervals are too narrow if a "
    "patient has several rows"
)
_MOST_GROUPS = 12  # values of a column before it is cut into quarters, or refused if it holds no numbers
_METHOD = (
    "95 % by patient; ranking figures: bootstrap standard error on the logit scale; rates: Wilson's interval with the "
    "effective number of rows; bands of curves: bootstrap percentiles"
)


def patients_of(
    groups: Sequence[str] | None, n_rows: int, n_resamples: int, seed: int
) -> tuple[Patients, tuple[str, ...]]:
    """The patients of the rows, and a warning if they are unknown: then every row is its own patient."""
    if groups is None:
        return Patients.of([f"{k:09}" for k in range(n_rows)], n_rows, n_resamples, seed), (NO_PATIENTS,)
    return Patients.of(groups, n_rows, n_resamples, seed), ()


def evaluate(
    labels: Labels,
    probabilities: Scores,
    names: Sequence[str],
    patients: Patients,
    thresholds: Mapping[str, Mapping[str, Threshold]],
    *,
    prevalence: float | None = None,
    subgroups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Discrimination, rates at operating points, curves, calibration, subgroups, as JSON.

    `thresholds` is {operating point: {label: threshold}}, fixed on other rows; `subgroups` {column: value of each row}.
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"--prevalence {prevalence:g}: expected a share above 0 and below 1")
    document = discrimination(labels, probabilities, names, patients)
    if set(names) == set(LABELS) and not without_probabilities(probabilities, names):
        document["weighted_log_loss"] = weighted_log_loss(labels, probabilities, names)
    columns = dict(zip(names, zip(labels.T, probabilities.T, strict=True), strict=True))
    document["operating_points"] = {
        point: {name: rates_at(*columns[name], value, patients, prevalence) for name, value in values.items()}
        for point, values in thresholds.items()
    }
    document["curves"] = {
        name: curves(truth, scores, patients)
        for name, (truth, scores) in columns.items()
        if undefined_reason(truth) is None
    }
    document["calibration"] = {
        name: calibration_figures(*columns[name], patients)
        for name in names
        if name not in without_probabilities(probabilities, names)
    }
    document["subgroups"] = {
        column: _by_group(labels, probabilities, names, patients, column, values)
        for column, values in (subgroups or {}).items()
    }
    return document


def evaluate_calibrated(
    labels: Labels,
    probabilities: Scores,
    names: Sequence[str],
    patients: Patients,
    fitted: Mapping[str, tuple[Float64[np.ndarray, " n"], Mapping[str, Any]]],
    thresholds: Mapping[str, Mapping[str, Threshold]],
    prevalence: float | None = None,
) -> dict[str, Any]:
    """{labels: {label: {method, brier, ece, bins, at_prevalence}}, operating_points} of calibrated probabilities.

    `fitted` is {label: (calibrated probability of each row, {method, reason, prevalence} of the calibration)}; of a
    label with a `reason` the probabilities as they are stand in. `thresholds` are on these.
    """
    by_label: dict[str, Any] = {}
    columns = dict(zip(names, zip(labels.T, probabilities.T, strict=True), strict=True))
    for name, (column, about) in fitted.items():
        truth, known = columns[name][0], about.get("prevalence")
        if "reason" in about:
            by_label[name] = {"method": None, "reason": about["reason"]}
            continue
        columns[name] = truth, column
        by_label[name] = {"method": about["method"], **calibration_figures(truth, column, patients)}
        if prevalence is None or undefined_reason(truth):
            continue
        moved = None if known is None else shifted(column, known, prevalence)
        figures = None if moved is None else calibration_figures(truth, moved, patients, prevalence)
        by_label[name]["at_prevalence"] = figures and {"prevalence": prevalence, "calibrated_at": known, **figures}
    points = {
        point: {name: rates_at(*columns[name], one, patients, prevalence) for name, one in values.items()}
        for point, values in thresholds.items()
    }
    return {"labels": by_label, "operating_points": points}


def confident_errors(
    labels: Labels, probabilities: Scores, names: Sequence[str], thresholds: Mapping[str, Threshold], most: int
) -> dict[str, Any]:
    """{label: {false_positives, false_negatives: [{index, score}]}}: rows (from 0) on the wrong side of the threshold,
    the farthest in rank first."""
    found: dict[str, Any] = {}
    for name, truth, scores in zip(names, labels.T, probabilities.T, strict=True):
        decided, order = scores >= thresholds[name].value, np.argsort(scores, kind="stable")
        sides = {"false_positives": (order[::-1], decided & (truth == 0))}
        sides["false_negatives"] = (order, ~decided & (truth == 1))
        found[name] = {
            side: [{"index": int(k), "score": float(scores[k])} for k in rows[is_wrong[rows]][:most]]
            for side, (rows, is_wrong) in sides.items()
        }
    return found


def without_probabilities(probabilities: Scores, names: Sequence[str]) -> list[str]:
    """Labels whose scores are not all from 0 to 1: they rank, but they are no probabilities."""
    return [name for name, column in zip(names, probabilities.T, strict=True) if column.min() < 0 or column.max() > 1]


def discrimination(labels: Labels, probabilities: Scores, names: Sequence[str], patients: Patients) -> dict[str, Any]:
    """{n_rows, n_patients, labels: {label: {n_positive, n_positive_patients, prevalence, auroc, auprc}}, macro}."""
    check_scores(labels, probabilities, names)
    once, drawn = ranking_draws(labels, probabilities, patients)
    by_label = {
        name: _label_figures(labels[:, k], once[:, k], drawn[:, :, k], patients) for k, name in enumerate(names)
    }
    defined = [k for k in range(len(names)) if undefined_reason(labels[:, k]) is None]
    macro: dict[str, Any] = {"labels": [names[k] for k in defined]}
    for row, measure in enumerate(("auroc", "auprc")):
        if defined:
            effective = [_effective(labels[:, k], measure, patients) for k in defined]
            interval = macro_interval(once[row, defined], drawn[:, row, defined], effective)
            macro[measure] = figure(float(once[row, defined].mean()), interval)
        else:
            macro[measure] = undefined("no label has both classes")
    return {**about_rows(patients), "labels": by_label, "macro": macro}


def about_rows(patients: Patients) -> dict[str, Any]:
    """{n_rows, n_patients, interval: {level, method, n_resamples, seed}} of an evaluation."""
    method = {"level": LEVEL, "method": _METHOD, "n_resamples": patients.n_resamples, "seed": patients.seed}
    return {"n_rows": len(patients.index), "n_patients": patients.n, "interval": method}


def _effective(truth: Int8[np.ndarray, " n"], measure: str, patients: Patients) -> float:
    # precision-recall depends on few negatives in the way a ROC curve does not
    return patients.effective_of(truth) if measure == "auroc" else patients.effective(truth == 1)


def _label_figures(
    truth: Int8[np.ndarray, " n"],
    once: Float64[np.ndarray, " 2"],
    drawn: Float64[np.ndarray, "draw 2"],
    patients: Patients,
) -> dict[str, Any]:
    positive = patients.sums(truth.astype(np.float64))
    found: dict[str, Any] = {
        "n_positive": int(truth.sum()),
        "n_positive_patients": int((positive > 0).sum()),
        "prevalence": float(truth.mean()),
    }
    reason = undefined_reason(truth)
    for row, measure in enumerate(("auroc", "auprc")):
        if reason:
            found[measure] = undefined(reason)
        else:
            effective = _effective(truth, measure, patients)
            interval = bootstrap_interval(float(once[row]), drawn[:, row], effective)
            found[measure] = figure(float(once[row]), interval)
    return found


def _by_group(
    labels: Labels,
    probabilities: Scores,
    names: Sequence[str],
    patients: Patients,
    column: str,
    values: Sequence[str],
) -> dict[str, Any]:
    groups = grouped(column, values)
    found = {}
    for value in dict.fromkeys(sorted(groups, key=_natural)):
        rows = np.flatnonzero(np.asarray(groups) == value)
        members = [f"{k:09}" for k in patients.index[rows].tolist()]
        within = Patients.of(members, len(rows), patients.n_resamples, patients.seed)
        found[value] = discrimination(labels[rows], probabilities[rows], names, within)
        del found[value]["interval"]
    return found


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value.split(" ")[0]), value
    except ValueError:
        return np.inf, value


def grouped(column: str, values: Sequence[str]) -> list[str]:
    """The group of each row: its cell, or where a column holds more than `_MOST_GROUPS` numbers, the quarter of the
    rows. Raises UsageError for a column with as many texts."""
    cells = [value or "(empty)" for value in values]
    if len(set(cells)) <= _MOST_GROUPS:
        return cells
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        raise UsageError(
            f"--subgroups {column}: found {len(set(cells))} different texts; expected numbers, or at most "
            f"{_MOST_GROUPS} different texts"
        ) from None
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    place = np.clip(np.searchsorted(edges, numbers, "left") - 1, 0, len(edges) - 2)
    return [
        "(empty)" if np.isnan(number) else f"{edges[k]:g} to {edges[k + 1]:g}"
        for k, number in zip(place.tolist(), numbers.tolist(), strict=True)
    ]


def evaluate_slices(
    labels: Labels,
    probabilities: Scores | None,
    names: Sequence[str],
    patients: Patients,
    heights: Heights,
    *,
    brightness: Float64[np.ndarray, " n"] | None = None,
    random_embeddings: np.ndarray | None = None,
) -> dict[str, Any]:
    """{tolerance, labels: {label: {scorer: {position_matched_auroc, auroc}}}}: the model, if there are probabilities,
    beside the mid-stack rule, the position-only model, the brightness rule and the random backbone, where given.

    The position-matched AUROC is the figure to quote: without it a score that knows only the position looks good.
    """
    found: dict[str, Any] = {}
    for k, name in enumerate(names):
        truth = labels[:, k]
        if reason := undefined_reason(truth):
            found[name] = {"reason": reason}
            continue
        scorers = {} if probabilities is None else {"model": probabilities[:, k].astype(np.float64)}
        scorers["mid_stack"] = mid_stack(heights)
        scorers["position_only"] = cross_validated_scores(position_features(heights), truth, patients)
        if brightness is not None:
            scorers["brightness"] = brightness
        if random_embeddings is not None:
            scorers["random_backbone"] = cross_validated_scores(random_embeddings, truth, patients)
        matched = MatchedPairs(truth, heights, patients).auroc(list(scorers.values()))
        columns = np.repeat(truth[:, None], len(scorers), axis=1)
        plain = discrimination(columns, np.stack(list(scorers.values()), axis=1), list(scorers), patients)["labels"]
        found[name] = {
            scorer: {"position_matched_auroc": figures, "auroc": plain[scorer]["auroc"]}
            for scorer, figures in zip(scorers, matched, strict=True)
        }
    return {"match_tolerance": MATCH_TOLERANCE, "labels": found}
