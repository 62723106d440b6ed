"""From a head's logits to probabilities that are frequencies: temperature, sigmoid or isotonic; ECE, Brier score and
reliability diagram. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int8

from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.metrics.intervals import Patients, bootstrap_interval, figure
from meddinov3_stroke.metrics.ranking import undefined_reason

Kind = Literal["none", "temperature", "sigmoid", "isotonic"]
KINDS: tuple[Kind, ...] = ("none", "temperature", "sigmoid", "isotonic")
"""From the simplest to the most flexible; of equal kinds the simplest is chosen."""

N_BINS = 10  # of equal width, behind the ECE and the reliability diagram
_FOLDS = 5
_FLOOR = 1e-6  # isotonic regression gives 0 and 1, whose logarithm is infinite

Logits = Float[np.ndarray, " n"]
Truth = Int8[np.ndarray, " n"]
Probabilities = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class Calibrator:
    """A rising map from logits to probabilities.

    `none`, `temperature` and `sigmoid` are 1 / (1 + exp(-(slope z + intercept))); `isotonic` is linear between knots.
    """

    kind: Kind
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # (logit, probability), rising

    def apply(self, logits: Logits) -> Probabilities:
        """The calibrated probabilities of some logits."""
        scores = logits.astype(np.float64)
        if self.kind != "isotonic":
            return _sigmoid(self.slope * scores + self.intercept)
        places, values = np.array(self.knots).T
        return np.asarray(np.clip(np.interp(scores, places, values), _FLOOR, 1 - _FLOOR))


def fit_calibrator(kind: Kind, logits: Logits, truth: Truth) -> Calibrator:
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


def choose_calibrator(logits: Logits, truth: Truth, patients: Patients) -> tuple[Calibrator, dict[str, float]]:
    """(the kind with the smallest cross-validated log loss, fitted on all rows; the log loss of each kind).

    Folds hold out patients, so that rows of one patient do not vouch for each other. A fold without both classes in the
    rest is left out; with fewer than two such folds no calibration is chosen.
    """
    fold_of = np.random.default_rng(patients.seed).permutation(patients.n) % _FOLDS
    folds = fold_of[patients.index]
    usable = [
        fold for fold in range(_FOLDS) if undefined_reason(truth[folds != fold]) is None and (folds == fold).any()
    ]
    if len(usable) < 2:
        return Calibrator("none"), {}
    losses: dict[str, float] = {}
    for kind in KINDS:
        held = [_held_out_loss(kind, logits, truth, folds == fold) for fold in usable]
        losses[kind] = float(np.concatenate(held).mean())
    best = min(KINDS, key=lambda kind: losses[kind])
    return fit_calibrator(best, logits, truth), losses


def _held_out_loss(kind: Kind, logits: Logits, truth: Truth, held: np.ndarray) -> Float64[np.ndarray, " m"]:
    probabilities = fit_calibrator(kind, logits[~held], truth[~held]).apply(logits[held])
    likelihood = np.where(truth[held] == 1, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.maximum(likelihood, 1e-15)))


def _sigmoid(scores: Float64[np.ndarray, " n"]) -> Probabilities:
    return np.asarray(np.exp(-np.logaddexp(0.0, -scores)))


def _logistic(logits: Float64[np.ndarray, " n"], truth: Truth, with_intercept: bool) -> tuple[float, float]:
    # Newton's method with halved steps; separable rows stop at a steep slope
    inputs = np.stack([logits, np.ones(len(logits)) * with_intercept], axis=1)

    def loss(weights: Float64[np.ndarray, " 2"]) -> float:
        scores = inputs @ weights
        return float(np.mean(np.logaddexp(0, scores) - truth * scores))

    weights = np.array([1.0, 0.0])
    for _ in range(100):
        probabilities = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (probabilities - truth) / len(truth)
        curvature = (inputs.T * (probabilities * (1 - probabilities))) @ inputs / len(truth) + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-10 or np.abs(weights).max() > 1e3:
            break
    return max(float(weights[0]), 0.0), float(weights[1])


def _isotonic(logits: Float64[np.ndarray, " n"], truth: Truth) -> tuple[tuple[float, float], ...]:
    # pool adjacent violators: blocks of (first logit, last logit, mean, rows)
    levels, index = np.unique(logits, return_inverse=True)
    rows, positive = np.bincount(index), np.bincount(index, truth)
    blocks: list[tuple[float, float, float, int]] = []
    for level, n, share in zip(levels.tolist(), rows.tolist(), (positive / rows).tolist(), strict=True):
        block = (level, level, share, n)
        while blocks and blocks[-1][2] >= block[2]:
            first, _, mean, count = blocks.pop()
            total = count + block[3]
            block = (first, block[1], (mean * count + block[2] * block[3]) / total, total)
        blocks.append(block)
    return tuple((place, mean) for first, last, mean, _ in blocks for place in dict.fromkeys((first, last)))


def calibration_figures(truth: Truth, probabilities: Float[np.ndarray, " n"], patients: Patients) -> dict[str, Any]:
    """{brier: {value, interval}, ece, bins: [{low, high, n, mean_probability, share_positive}]}.

    Brier score: mean squared difference (Brier 1950), its interval by patient. ECE: mean over rows of the difference
    between the mean probability and the share of positives of their bin, `N_BINS` of equal width (Naeini et al. 2015);
    it is biased upwards where bins hold few rows, so it has no interval.
    """
    squares = (probabilities.astype(np.float64) - truth) ** 2
    draws = patients.draws.astype(np.float64)
    drawn = (draws @ patients.sums(squares)) / (draws @ patients.sums(np.ones(len(truth))))
    interval = bootstrap_interval(float(squares.mean()), drawn, patients.effective(np.ones(len(truth))))
    place = np.clip((probabilities * N_BINS).astype(int), 0, N_BINS - 1)
    bins, ece = [], 0.0
    for k in range(N_BINS):
        if n := int((inside := place == k).sum()):
            mean, share = float(probabilities[inside].mean()), float(truth[inside].mean())
            bins.append({"low": k / N_BINS, "high": (k + 1) / N_BINS, "n": n})
            bins[-1] |= {"mean_probability": mean, "share_positive": share}
            ece += n / len(truth) * abs(mean - share)
    return {"brier": figure(float(squares.mean()), interval), "ece": ece, "bins": bins}
