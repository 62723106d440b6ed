"""Two models on the same rows: DeLong's test, with patients as clusters, and the bootstrap of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8

from meddinov3_stroke.metrics.intervals import Patients, difference_interval, ranking_draws
from meddinov3_stroke.metrics.ranking import Labels, Scores, check_scores, placements, undefined_reason


def delong(
    truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, "n model"], patients: Patients
) -> tuple[Float64[np.ndarray, " model"], Float64[np.ndarray, "model model"]]:
    """(AUROC of each model, their covariance): DeLong, DeLong and Clarke-Pearson (1988), and with several rows of a
    patient Obuchowski (1997), which sums the structural components within patients."""
    positive = truth == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    above = np.stack([placements(column[positive], column[~positive]) for column in scores.T])
    below = np.stack([1 - placements(column[~positive], column[positive]) for column in scores.T])
    areas = above.mean(axis=1)
    by_positive, by_negative = (
        np.stack([np.bincount(patients.index[rows], one, patients.n) for one in parts - areas[:, None]])
        for rows, parts in ((positive, above), (~positive, below))
    )
    with_positive, with_negative = (len(np.unique(patients.index[rows])) for rows in (positive, ~positive))
    covariance = _scaled(by_positive, n_positive, with_positive) + _scaled(by_negative, n_negative, with_negative)
    both = by_positive @ by_negative.T * patients.n / (max(patients.n - 1, 1) * n_positive * n_negative)
    return areas, covariance + both + both.T


def _scaled(sums: Float64[np.ndarray, "model patient"], n_rows: int, n_patients: int) -> Float64[np.ndarray, "a b"]:
    return np.asarray(sums @ sums.T * n_patients / (max(n_patients - 1, 1) * n_rows**2))


def compare(
    labels: Labels, first: Scores, second: Scores, names: Sequence[str], patients: Patients
) -> dict[str, dict[str, Any]]:
    """{label: {auroc: {first, second, difference, interval, delong: {...}}, auprc: {...}}}: the difference is first -
    second. Each resample of patients is applied to both models. A label without an AUROC has its `reason`."""
    check_scores(labels, second, names)
    (once, drawn), (other_once, other_drawn) = (ranking_draws(labels, one, patients) for one in (first, second))
    found: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        if reason := undefined_reason(labels[:, k]):
            found[name] = {"reason": reason}
            continue
        effective = patients.effective_of(labels[:, k])
        found[name] = {}
        for row, measure in enumerate(("auroc", "auprc")):
            one, other = float(once[row, k]), float(other_once[row, k])
            interval = difference_interval(one - other, drawn[:, row, k] - other_drawn[:, row, k], effective)
            values = {"first": one, "second": other, "difference": one - other}
            found[name][measure] = {**values, "interval": asdict(interval)}
        found[name]["auroc"]["delong"] = _test(labels[:, k], np.stack([first[:, k], second[:, k]], axis=1), patients)
    return found


def _test(truth: Int8[np.ndarray, " n"], scores: Float[np.ndarray, "n 2"], patients: Patients) -> dict[str, Any]:
    from scipy.special import ndtr

    areas, covariance = delong(truth, scores, patients)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-18:
        return {"standard_error": 0.0, "z": None, "p": None}
    error = float(np.sqrt(variance))
    z = float(areas[0] - areas[1]) / error
    return {"standard_error": error, "z": z, "p": float(2 * ndtr(-abs(z)))}
