"""ROC, precision-recall and decision curves, each with the band that 95 % of resamples of patients lie in."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.metrics.intervals import LEVEL, Patients
from meddinov3_stroke.metrics.ranking import Ranking

GRID = np.arange(101) / 100
"""False-positive rates of a ROC curve and sensitivities of a precision-recall curve."""
THRESHOLDS = np.arange(1, 100) / 100
"""Threshold probabilities of a decision curve."""


def curves(truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], patients: Patients) -> dict[str, Any]:
    """{roc: {false_positive_rate, sensitivity, low, high}, precision_recall: {sensitivity, precision, low, high},
    decision: {threshold, net_benefit, low, high, treat_all}}; bands are pointwise.

    Net benefit is tp/n - fp/n p/(1 - p) at the threshold probability p (Vickers and Elkin 2006); that of treating none
    is 0. Both classes must be present.
    """
    ranking = Ranking(truth, scores)
    at = np.searchsorted(np.unique(scores), THRESHOLDS)  # scores from this one on are at or above the threshold
    once = _on_grids(ranking, np.ones((1, len(truth)), dtype=np.int64), at)[0]
    drawn = np.concatenate([_on_grids(ranking, weights, at) for weights in patients.weights()])
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    share, n = float(truth.mean()), len(GRID)
    names = ("roc", "precision_recall", "decision")
    found: dict[str, Any] = {
        name: {value: side[part].tolist() for value, side in ((value, once), ("low", low), ("high", high))}
        for name, value, part in zip(
            names,
            ("sensitivity", "precision", "net_benefit"),
            (slice(0, n), slice(n, 2 * n), slice(2 * n, None)),
            strict=True,
        )
    }
    found["roc"]["false_positive_rate"] = found["precision_recall"]["sensitivity"] = GRID.tolist()
    found["decision"]["threshold"] = THRESHOLDS.tolist()
    found["decision"]["treat_all"] = (share - (1 - share) * THRESHOLDS / (1 - THRESHOLDS)).tolist()
    return found


def _on_grids(
    ranking: Ranking, weights: Int64[np.ndarray, "draw n"], at: Int64[np.ndarray, " threshold"]
) -> Float64[np.ndarray, "draw point"]:
    # sensitivity, precision and net benefit side by side; NaN where a resample lacks a class
    true, false = (np.pad(np.cumsum(one[:, ::-1], axis=1), ((0, 0), (1, 0))) for one in ranking.counts(weights))
    n_true, n_false = true[:, -1:], false[:, -1:]
    decided = true.shape[1] - 1 - at
    benefit = (true[:, decided] - false[:, decided] * THRESHOLDS / (1 - THRESHOLDS)) / (n_true + n_false)
    rows = []
    for k in range(len(weights)):
        if not (n_true[k] and n_false[k]):
            rows.append(np.full(2 * len(GRID), np.nan))
            continue
        last = np.searchsorted(false[k], GRID * n_false[k] + 1e-9, "right") - 1
        first = np.searchsorted(true[k], np.maximum(GRID * n_true[k], 1) - 1e-9)  # precision needs a positive
        precision = true[k, first] / np.maximum(true[k, first] + false[k, first], 1)
        rows.append(np.concatenate([true[k, last] / n_true[k], precision]))
    return np.column_stack([np.stack(rows), benefit])
