"""Slice figures and the position of the slice: the position-matched AUROC, and rules that a model has to beat.

Haemorrhage lies in mid-stack more often than at the ends, so a score that knows only where a slice is ranks slices
well. `heights` are relative: (slice index + 1/2) / slices of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.metrics.intervals import Patients, bootstrap_interval, figure
from meddinov3_stroke.metrics.ranking import placements

MATCH_TOLERANCE = 0.02  # largest difference in relative height of a pair
_PAIRS_AT_ONCE = 4_000_000
_FOLDS = 5
_RIDGE = 1.0  # penalty on the squared weights of standardised features

Heights = Float64[np.ndarray, " n"]


def mid_stack(heights: Heights) -> Float64[np.ndarray, " n"]:
    """The score of the rule 'the nearer to mid-stack, the more suspicious'."""
    return np.asarray(-np.abs(heights - 0.5))


def position_features(heights: Heights) -> Float64[np.ndarray, "n 4"]:
    """Height to the powers 1 to 4, about mid-stack: what the position-only model sees."""
    return np.stack([(heights - 0.5) ** power for power in (1, 2, 3, 4)], axis=1)


class MatchedPairs:
    """Pairs of a positive and a negative slice of different patients whose relative heights differ by at most
    `MATCH_TOLERANCE`."""

    def __init__(self, truth: Int8[np.ndarray, " n"], heights: Heights, patients: Patients) -> None:
        self.patients = patients
        negative = np.flatnonzero(truth == 0)
        self.negative = negative[np.argsort(heights[negative], kind="stable")]
        positive = np.flatnonzero(truth == 1)
        self.positive = positive[np.argsort(patients.index[positive], kind="stable")]
        ranked, around = heights[self.negative], heights[self.positive]
        slack = MATCH_TOLERANCE + 1e-9  # two hundredths apart are within two hundredths, whatever the rounding
        self.first = np.searchsorted(ranked, around - slack, "left")
        self.last = np.searchsorted(ranked, around + slack, "right")

    def auroc(self, scores: Sequence[Float[np.ndarray, " n"]]) -> list[dict[str, Any]]:
        """{value, interval, n_pairs, n_patients} of each score: the share of the pairs in the right order, ties half,
        with the bootstrap interval by patient, in which a pair counts the product of its patients' multiplicities."""
        n_scores, draws = len(scores), self.patients.draws.astype(np.float64)
        wins, drawn = np.zeros(n_scores), np.zeros((n_scores, len(draws)))
        n_pairs, drawn_pairs = 0.0, np.zeros(len(draws))
        in_pairs = np.zeros((2, self.patients.n))
        for blocks in self._blocks(scores):
            patient, counts, *won = blocks
            share = draws[:, patient]
            drawn_pairs += np.einsum("dp,dp->d", share, draws @ counts.T)
            n_pairs += counts.sum()
            in_pairs[0, patient] += counts.sum(axis=1)
            in_pairs[1] += counts.sum(axis=0)
            for k, block in enumerate(won):
                wins[k] += block.sum()
                drawn[k] += np.einsum("dp,dp->d", share, draws @ block.T)
        if not n_pairs:
            reason = "no positive and negative slice of different patients at the same height"
            return [{"value": None, "reason": reason, "n_pairs": 0, "n_patients": 0}] * n_scores
        effective = float(min(row.sum() ** 2 / (row**2).sum() for row in in_pairs))
        shares = np.where(drawn_pairs > 0, drawn / np.maximum(drawn_pairs, 1), np.nan)
        about = {"n_pairs": int(n_pairs), "n_patients": int((in_pairs > 0).any(axis=0).sum())}
        return [
            figure(wins[k] / n_pairs, bootstrap_interval(float(wins[k] / n_pairs), shares[k], effective)) | about
            for k in range(n_scores)
        ]

    def _blocks(self, scores: Sequence[Float[np.ndarray, " n"]]) -> Any:
        # (patients of some positives; [patient, patient of the negative] pairs; and pairs won by each score)
        sizes = np.cumsum(self.last - self.first)
        owner = self.patients.index[self.positive]
        start = 0
        while start < len(self.positive):
            before = sizes[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(sizes, before + _PAIRS_AT_ONCE, "right")))
            rows = np.arange(start, end)
            lengths = (self.last - self.first)[rows]
            positive = np.repeat(self.positive[rows], lengths)
            offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            negative = self.negative[np.repeat(self.first[rows], lengths) + offset]
            apart = self.patients.index[positive] != self.patients.index[negative]
            positive, negative = positive[apart], negative[apart]
            patient, row = np.unique(owner[rows], return_inverse=True)
            cell = row[np.repeat(rows - start, lengths)[apart]] * self.patients.n + self.patients.index[negative]
            won = [(one[positive] > one[negative]) + 0.5 * (one[positive] == one[negative]) for one in scores]
            yield patient, *(self._table(cell, weight, len(patient)) for weight in (None, *won))
            start = end

    def _table(
        self, cell: Int64[np.ndarray, " pair"], weight: Float64[np.ndarray, " pair"] | None, n_rows: int
    ) -> Float64[np.ndarray, "row patient"]:
        counted = np.bincount(cell, weight, n_rows * self.patients.n)
        return counted.reshape(n_rows, self.patients.n).astype(np.float64)


def cross_validated_scores(
    features: Float[np.ndarray, "n feature"], truth: Int8[np.ndarray, " n"], patients: Patients
) -> Float64[np.ndarray, " n"]:
    """The score of each row by a ridge logistic regression fitted on the rows of other patients (`_FOLDS` folds).

    It is the share of the fitted rows with lower log-odds, so that the folds, whose intercepts fall as the positives
    they hold out rise, share one scale. The fold of a patient depends on the patients' seed alone. 0.5 where
    the other folds lack a class.
    """
    fold_of = np.random.default_rng(patients.seed).permutation(patients.n) % _FOLDS
    folds = fold_of[patients.index]
    scores = np.full(len(truth), 0.5)
    for fold in range(_FOLDS):
        held = folds == fold
        if held.any() and 0 < truth[~held].sum() < (~held).sum():
            fitted = _log_odds(features[~held].astype(np.float64), truth[~held], features.astype(np.float64))
            scores[held] = placements(fitted[held], fitted[~held])
    return scores


def _log_odds(
    features: Float64[np.ndarray, "n feature"], truth: Int8[np.ndarray, " n"], wanted: Float64[np.ndarray, "m feature"]
) -> Float64[np.ndarray, " m"]:
    # Newton's method on the penalised likelihood; the intercept carries no penalty
    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs = np.column_stack([np.ones(len(features)), (features - centre) / spread])
    penalty = np.full(inputs.shape[1], _RIDGE)
    penalty[0] = 0.0
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        probabilities = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (truth - probabilities) - penalty * weights
        curvature = np.maximum(probabilities * (1 - probabilities), 1e-12)
        step = np.linalg.solve((inputs.T * curvature) @ inputs + np.diag(penalty + 1e-12), gradient)
        weights += step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(np.column_stack([np.ones(len(wanted)), (wanted - centre) / spread]) @ weights)
