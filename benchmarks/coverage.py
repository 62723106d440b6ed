"""How often the 95 % intervals of an evaluation, and of what an operating point promises, hold the true value, on
simulated cohorts whose rows cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from benchmarks.table import Table
from meddinov3_stroke.metrics import Patients, promised_rates, validation_thresholds
from meddinov3_stroke.metrics.intervals import bootstrap_interval, ranking_draws
from meddinov3_stroke.metrics.thresholds import rates_at
from meddinov3_stroke.types import Threshold

N_COHORTS, N_RESAMPLES = 2000, 500
SENSITIVITY = 0.9
"""True sensitivity at the threshold of every cohort."""


@dataclass(frozen=True)
class Population:
    """Patients with a random number of rows whose labels and scores share an effect of the patient."""

    n_patients: int
    mean_rows: int  # of a patient; 1, or uniform from 1 to twice the mean - 1
    prevalence: float
    auroc: float
    score_sd: float  # of a patient's effect on the scores, whose noise has 1
    label_correlation: float  # between the latent labels of a patient's rows, squared root

    @property
    def sd(self) -> float:
        """Standard deviation of the scores of one class."""
        return float(np.hypot(1, self.score_sd))

    @property
    def shift(self) -> float:
        """Mean score of positives; that of negatives is 0."""
        return float(ndtri(self.auroc) * np.sqrt(2) * self.sd)

    @property
    def threshold(self) -> float:
        """The score that `SENSITIVITY` of the positives exceed."""
        return float(self.shift - ndtri(SENSITIVITY) * self.sd)

    @property
    def auprc(self) -> float:
        """The area under the precision-recall curve, by quadrature over the threshold."""
        x = np.linspace(-9 * self.sd, self.shift + 9 * self.sd, 40001)
        true = self.prevalence * ndtr((self.shift - x) / self.sd)
        false = (1 - self.prevalence) * ndtr(-x / self.sd)
        density = np.exp(-0.5 * ((x - self.shift) / self.sd) ** 2) / (self.sd * np.sqrt(2 * np.pi))
        return float(np.trapezoid(density * true / np.maximum(true + false, 1e-300), x))

    def cohort(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(labels, scores, patient of each row)."""
        top = 2 * self.mean_rows
        rows = np.ones(self.n_patients, int) if self.mean_rows == 1 else rng.integers(1, top, self.n_patients)
        patient = np.repeat(np.arange(self.n_patients), rows)
        shared = rng.normal(size=(2, self.n_patients))[:, patient]
        own = np.sqrt(1 - self.label_correlation**2) * rng.normal(size=len(patient))
        labels = (own + self.label_correlation * shared[0] < ndtri(self.prevalence)).astype(np.int8)
        scores = self.shift * labels + self.score_sd * shared[1] + rng.normal(size=len(patient))
        return labels, scores, [f"{k:06}" for k in patient]


POPULATIONS = (
    Population(100, 1, 0.3, 0.90, 0.0, 0.0),
    Population(100, 3, 0.3, 0.90, 0.7, 0.7),
    Population(200, 2, 0.1, 0.90, 0.7, 0.5),
    Population(300, 2, 0.3, 0.95, 0.7, 0.7),
    Population(40, 25, 0.2, 0.85, 0.5, 0.4),
)
"""Series of 100 to 300 patients, and slices of 40."""


def measure(quick: bool) -> Table:
    """Share of cohorts whose interval holds the true AUROC, AUPRC and sensitivity."""
    n_cohorts = 50 if quick else N_COHORTS
    rows = [row(population, n_cohorts) for population in POPULATIONS]
    notes = [
        f"{n_cohorts} cohorts a row, {N_RESAMPLES} resamples of patients; the simulation's own error is "
        f"{100 * np.sqrt(0.95 * 0.05 / n_cohorts):.1f} points",
        "aim: 94 to 96.5 %",
    ]
    return Table("coverage", "Coverage of 95 % intervals", rows, notes)


def row(population: Population, n_cohorts: int) -> dict[str, Any]:
    """A row of the table."""
    rng = np.random.default_rng(0)
    truth = {"auroc": population.auroc, "auprc": population.auprc, "sensitivity": SENSITIVITY}
    truth["percentile"] = population.auroc
    held: dict[str, list[bool]] = {name: [] for name in (*truth, "sensitivity_95", "sensitivity_98")}
    for seed in range(n_cohorts):
        labels, scores, groups = population.cohort(rng)
        if labels.min() == labels.max():
            continue
        for name, (low, high) in intervals(labels, scores, groups, population.threshold, seed).items():
            held[name].append(low <= truth[name] <= high)
        for name, (low, true, high) in promises(population, labels, scores, groups).items():
            held[name].append(low <= true <= high)
    return {
        "patients": population.n_patients,
        "rows_a_patient": population.mean_rows,
        "prevalence": population.prevalence,
        "true_auroc": population.auroc,
        **{f"{name}_percent": round(100 * float(np.mean(held[name])), 1) for name in held},
    }


def promises(
    population: Population, labels: np.ndarray, scores: np.ndarray, groups: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """{operating point: (low, true value, high)} of the sensitivity it promises, if this cohort fixes its threshold."""
    patients = Patients.of(groups, len(labels), 1)
    points = validation_thresholds(labels[:, None], scores[:, None], ["any"])
    fixed = {name: one["any"] for name, one in points.items() if name != "youden"}
    rates = promised_rates(labels, scores, fixed, patients)
    sides = {name: one["sensitivity"] for name, one in rates.items()}
    true = {name: float(ndtr((population.shift - one.value) / population.sd)) for name, one in fixed.items()}
    return {name: (one["low"], true[name], one["high"]) for name, one in sides.items()}


def intervals(
    labels: np.ndarray, scores: np.ndarray, groups: Sequence[str], threshold: float, seed: int
) -> dict[str, tuple[float, float]]:
    """{figure: (low, high)} of one cohort; (0, 1) where there is none. `percentile` is that of the AUROC by the plain
    percentiles of its resamples, which the package does not use."""
    patients = Patients.of(groups, len(labels), N_RESAMPLES, seed)
    once, drawn = ranking_draws(labels[:, None], scores[:, None], patients)
    effective = {"auroc": patients.effective_of(labels), "auprc": patients.effective(labels == 1)}
    found = {
        name: bootstrap_interval(float(once[row, 0]), drawn[:, row, 0], number)
        for row, (name, number) in enumerate(effective.items())
    }
    sensitivity = rates_at(labels, scores, Threshold(threshold, "known"), patients)["sensitivity"]
    low, high = np.nanquantile(drawn[:, 0, 0], [0.025, 0.975])
    limits = {name: (0.0, 1.0) if one.low is None else (one.low, one.high) for name, one in found.items()}
    return {**limits, "sensitivity": (sensitivity["low"], sensitivity["high"]), "percentile": (low, high)}
