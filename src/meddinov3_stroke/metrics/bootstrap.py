"""Confidence intervals that resample patients, never rows: the rows of one patient are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError, UsageError
from meddinov3_stroke.metrics.auroc import check_scores, undefined_reason, weighted_auroc

LEVEL = 0.95
"""Share of the resamples between the two ends of an interval."""

LEAST_USABLE_SHARE = 0.5
"""Smallest share of resamples with both classes of every label that gives an interval."""

_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval; None, with the reason, if the data are too few for one."""

    low: float | None
    high: float | None
    level: float
    n_resamples: int
    """Resamples used."""
    n_left_out: int = 0
    """Resamples without a positive or without a negative of some label of the macro."""
    unit: str = "patient"
    """What was resampled."""
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        """The interval as JSON."""
        return asdict(self)


def bootstrap_macro_auroc(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    groups: Sequence[str],
    n_resamples: int = 1000,
    seed: int = 42,
) -> Interval:
    """The 95 % percentile interval of the macro AUROC over patients drawn with replacement.

    `groups` names the patient of each row. The macro covers the labels whose AUROC is defined on all rows; a resample
    that lacks a class of one of them is left out and counted.

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
        return Interval(None, None, LEVEL, 0, reason=f"{len(columns)} labels with an AUROC, {n_patients} patients")
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_resamples)
    macros = _macro_of_draws(labels[:, columns], probabilities[:, columns], patient, draws)
    return _percentile_interval(macros)


def _macro_of_draws(
    labels: Int8[np.ndarray, "n label"],
    probabilities: Float[np.ndarray, "n label"],
    patient: Int64[np.ndarray, " n"],
    draws: Int64[np.ndarray, "draw patient"],
) -> Float64[np.ndarray, " draw"]:
    parts = []
    for start in range(0, len(draws), _RESAMPLES_AT_ONCE):
        weights = draws[start : start + _RESAMPLES_AT_ONCE, patient]
        columns = [
            weighted_auroc(truth, scores, weights) for truth, scores in zip(labels.T, probabilities.T, strict=True)
        ]
        parts.append(np.mean(columns, axis=0))
    return np.concatenate(parts)


def _percentile_interval(macros: Float64[np.ndarray, " draw"]) -> Interval:
    usable = macros[~np.isnan(macros)]
    n_left_out = len(macros) - len(usable)
    if len(usable) < LEAST_USABLE_SHARE * len(macros):
        reason = f"{n_left_out} of {len(macros)} resamples lack a positive or a negative of some label"
        return Interval(None, None, LEVEL, len(usable), n_left_out, reason=reason)
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), LEVEL, len(usable), n_left_out)
