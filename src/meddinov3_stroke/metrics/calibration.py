"""From a head's logits to probabilities that are frequencies: temperature, sigmoid or isotonic; ECE, Brier score and
reliability diagram. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.metrics.intervals import Patients, bootstrap_interval, figure
from meddinov3_stroke.metrics.ranking import undefined_reason
from meddinov3_stroke.types import Calibrator, logit, sigmoid

KINDS = ("none", "temperature", "sigmoid", "isotonic")
"""From the simplest to the most flexible; of equal kinds the simplest is chosen."""

N_BINS = 10  # of equal width, behind the ECE and the reliability diagram
N_REFITS = 200  # of a calibrator, each on a resample of the validation patients
LEAST_PATIENTS = 10  # with a positive row, and with a negative row, below which nothing is fitted
_FOLDS = 5

Logits = Float[np.ndarray, " n"]
Truth = Int8[np.ndarray, " n"]
Probabilities = Float64[np.ndarray, " n"]
Rows = Int64[np.ndarray, " held"]


def fit_calibrator(kind: str, logits: Logits, truth: Truth) -> Calibrator:
    """The calibrator of a kind with the smallest log loss (isotonic: least squares) on some rows.

    Temperature: Guo et al. (2017). Sigmoid: Platt (1999), without his smoothing of the labels. Isotonic: Zadrozny and
    Elkan (2002). Raises DatasetError where a class is missing.
    """
    if reason := undefined_reason(truth):
        raise DatasetError(f"calibration: {reason}; expected both classes")
    if kind == "none":
        return Calibrator(kind)
    if kind == "isotonic":
        return Calibrator(kind, knots=_isotonic(logits.astype(np.float64), truth))
    slope, intercept = _logistic(logits.astype(np.float64), truth, kind == "sigmoid")
    return Calibrator(kind, slope, intercept)


def choose_calibrator(
    logits: Logits, truth: Truth, patients: Patients, kinds: Sequence[str] = KINDS
) -> tuple[Calibrator, dict[str, float]]:
    """(the kind with the smallest cross-validated log loss, fitted on all rows; the log loss of each kind).

    Folds hold out patients, so that rows of one patient do not vouch for each other. A fold without both classes in the
    rest is left out; with fewer than two such folds no calibration is chosen.
    """
    losses: dict[str, float] = {}
    for kind in kinds:
        probabilities, held = _held_out(kind, logits, truth, patients)
        if not len(held):
            return Calibrator("none"), {}
        likelihood = np.where(truth[held] == 1, probabilities, 1 - probabilities)
        losses[kind] = float(-np.log(np.maximum(likelihood, 1e-15)).mean())
    best = min(kinds, key=lambda kind: losses[kind])
    return fit_calibrator(best, logits, truth), losses


def _held_out(kind: str, logits: Logits, truth: Truth, patients: Patients) -> tuple[Float64[np.ndarray, " held"], Rows]:
    # the probabilities of rows by a calibrator fitted on other patients, and those rows; none if fewer than two folds
    folds = (np.random.default_rng(patients.seed).permutation(patients.n) % _FOLDS)[patients.index]
    usable = [k for k in range(_FOLDS) if undefined_reason(truth[folds != k]) is None and (folds == k).any()]
    if len(usable) < 2:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    held = [np.flatnonzero(folds == k) for k in usable]
    fitted = [fit_calibrator(kind, np.delete(logits, rows), np.delete(truth, rows)) for rows in held]
    return np.concatenate([one.apply(logits[rows]) for one, rows in zip(fitted, held, strict=True)]), np.concatenate(
        held
    )


def calibrate(
    logits: Logits, truth: Truth, patients: Patients, n_refits: int = N_REFITS
) -> tuple[Calibrator | None, Float64[np.ndarray, "refit parameter"], dict[str, Any]]:
    """(calibrator, its refits, figures) of one label on validation; no calibrator, and a `reason` in the figures, where
    fewer than `LEAST_PATIENTS` patients have a positive row, or a negative one.

    Refits are of the same kind, on resamples of patients: slope and intercept, or the probabilities at the knots. The
    figures are counts and, cross-validated by patient, log losses of the kinds, Brier score and ECE before and after.
    """
    n_positive, n_negative = (int((patients.sums((truth == value).astype(float)) > 0).sum()) for value in (1, 0))
    figures: dict[str, Any] = {"n": len(truth), "n_positive": int(truth.sum()), "n_patients": patients.n}
    figures |= {"n_positive_patients": n_positive, "prevalence": float(truth.mean())}
    if min(n_positive, n_negative) < LEAST_PATIENTS:
        figures["reason"] = (
            f"validation has {n_positive} patients with a positive row and {n_negative} with a negative one; expected "
            f"at least {LEAST_PATIENTS} of each"
        )
        return None, np.zeros((0, 2)), figures
    chosen, losses = choose_calibrator(logits, truth, patients, KINDS[1:])
    after, held = _held_out(chosen.kind, logits, truth, patients)
    sides = {"before": sigmoid(logits[held]), "after": after}
    figures |= {"log_losses": losses, "brier": {}, "ece": {}}
    for side, probabilities in sides.items():
        figures["brier"][side] = float(np.mean((probabilities - truth[held]) ** 2))
        figures["ece"][side] = _reliability(truth[held].astype(float), probabilities, np.ones(len(held)))[0]
    return chosen, _refits(chosen, logits, truth, replace(patients, n_resamples=n_refits)), figures


def _refits(
    chosen: Calibrator, logits: Logits, truth: Truth, patients: Patients
) -> Float64[np.ndarray, "refit parameter"]:
    places = np.array([place for place, _ in chosen.knots])
    found = []
    for drawn in patients.draws:
        rows = np.repeat(np.arange(len(truth)), drawn[patients.index])
        if undefined_reason(truth[rows]) is None:
            one = fit_calibrator(chosen.kind, logits[rows], truth[rows])
            found.append(one.apply(places) if one.knots else np.array([one.slope, one.intercept]))
    return np.stack(found) if found else np.zeros((0, 2))


def _logistic(logits: Float64[np.ndarray, " n"], truth: Truth, with_intercept: bool) -> tuple[float, float]:
    # Newton's method with halved steps; separable rows stop at a steep slope
    inputs = np.stack([logits, np.ones(len(logits)) * with_intercept], axis=1)

    def loss(weights: Float64[np.ndarray, " 2"]) -> float:
        scores = inputs @ weights
        return float(np.mean(np.logaddexp(0, scores) - truth * scores))

    weights = np.array([1.0, 0.0])
    for _ in range(100):
        probabilities = sigmoid(inputs @ weights)
        gradient = inputs.T @ (probabilities - truth) / len(truth)
        curvature = (inputs.T * (probabilities * (1 - probabilities))) @ inputs / len(truth) + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-10 or np.abs(weights).max() > 1e3:
            break
    if weights[0] < 0:  # the rank of the logits says nothing: with an intercept, all rows have the base rate
        return 0.0, float(np.log(truth.mean() / (1 - truth.mean()))) if with_intercept else 0.0
    return float(weights[0]), float(weights[1])


def _isotonic(logits: Float64[np.ndarray, " n"], truth: Truth) -> tuple[tuple[float, float], ...]:
    from scipy.optimize import isotonic_regression

    levels, index = np.unique(logits, return_inverse=True)
    rows, positive = np.bincount(index), np.bincount(index, truth)
    fitted = isotonic_regression(positive / rows, weights=rows)
    ends = [(int(first), int(last) - 1) for first, last in pairwise(fitted.blocks)]
    return tuple((float(levels[k]), float(fitted.x[k])) for block in ends for k in dict.fromkeys(block))


def shifted(probabilities: Float[np.ndarray, " n"], prevalence: float, stated: float) -> Probabilities:
    """Calibrated probabilities moved from the prevalence they were calibrated at to a stated one (Bayes' rule; Saerens
    et al. 2002)."""
    odds = [one / (1 - one) for one in (stated, prevalence)]
    return sigmoid(logit(probabilities) + np.log(odds[0] / odds[1]))


def calibration_figures(
    truth: Truth, probabilities: Float[np.ndarray, " n"], patients: Patients, prevalence: float | None = None
) -> dict[str, Any]:
    """{brier: {value, interval}, ece, bins: [{low, high, n, mean_probability, share_positive}]}.

    Brier score: mean squared difference (Brier 1950), its interval by patient. ECE: mean over rows of the difference
    between the mean probability and the share of positives of their bin, `N_BINS` of equal width (Naeini et al. 2015);
    it is biased upwards where bins hold few rows, so it has no interval. With a prevalence, positives and negatives are
    weighted to it.
    """
    weights = np.ones(len(truth))
    if prevalence is not None:
        share = float(truth.mean())
        weights = np.where(truth == 1, prevalence / share, (1 - prevalence) / (1 - share))
    squares = weights * (probabilities.astype(np.float64) - truth) ** 2
    draws, value = patients.draws.astype(np.float64), float(squares.sum() / weights.sum())
    drawn = (draws @ patients.sums(squares)) / (draws @ patients.sums(weights))
    interval = bootstrap_interval(value, drawn, patients.effective(weights))
    ece, bins = _reliability(truth.astype(float), probabilities.astype(np.float64), weights)
    return {"brier": figure(value, interval), "ece": ece, "bins": bins}


def _reliability(
    truth: Float64[np.ndarray, " n"], probabilities: Probabilities, weights: Float64[np.ndarray, " n"]
) -> tuple[float, list[dict[str, Any]]]:
    place = np.clip((probabilities * N_BINS).astype(int), 0, N_BINS - 1)
    bins, ece = [], 0.0
    for k in range(N_BINS):
        if n := int((inside := place == k).sum()):
            mean, share = (float(np.average(one[inside], weights=weights[inside])) for one in (probabilities, truth))
            bins.append({"low": k / N_BINS, "high": (k + 1) / N_BINS, "n": n})
            bins[-1] |= {"mean_probability": mean, "share_positive": share}
            ece += float(weights[inside].sum() / weights.sum()) * abs(mean - share)
    return ece, bins
