"""95 % intervals by patient: bootstrap of ranking figures, Wilson intervals of rates. docs/evaluation.md has the
formulas; `python -m benchmarks coverage` measures how often they hold the true value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64

from meddinov3_stroke.errors import DatasetError, UsageError
from meddinov3_stroke.metrics.ranking import Labels, Ranking, Scores, check_scores, undefined_reason

LEVEL = 0.95
_LEAST_USABLE_SHARE = 0.5  # if fewer resamples than this hold both classes of every label, there is no interval
_RESAMPLES_AT_ONCE = 64

Draws = Float64[np.ndarray, " draw"]


@dataclass(frozen=True)
class Interval:
    """An interval that resamples patients, because rows of one patient are not independent; None, with a reason, if
    there are too few data."""

    low: float | None
    high: float | None
    level: float
    n_resamples: int  # resamples used
    n_left_out: int = 0  # resamples without a positive or without a negative of some label of the figure
    unit: str = "patient"  # unit of resampling
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Patients:
    """The patient of each row, and the multiplicities of rows where patients are drawn with replacement."""

    index: Int64[np.ndarray, " n"]
    n: int
    n_resamples: int
    seed: int

    @classmethod
    def of(cls, groups: Sequence[str], n_rows: int, n_resamples: int = 1000, seed: int = 42) -> Patients:
        """The patients that `groups` names, one for each row; the draws depend on the seed, not on the row order."""
        if len(groups) != n_rows:
            raise DatasetError(f"{len(groups)} patients for {n_rows} rows; expected one for each row")
        if n_resamples < 1:
            raise UsageError(f"n_resamples {n_resamples}: expected at least 1")
        names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        return cls(index.astype(np.int64), len(names), n_resamples, seed)

    @cached_property
    def draws(self) -> Int64[np.ndarray, "draw patient"]:
        """How often each patient is drawn."""
        generator = np.random.default_rng(self.seed)
        return generator.multinomial(self.n, np.full(self.n, 1 / self.n), size=self.n_resamples)

    def weights(self) -> Iterator[Int64[np.ndarray, "draw n"]]:
        """The multiplicity of each row, some resamples at a time."""
        for start in range(0, self.n_resamples, _RESAMPLES_AT_ONCE):
            yield self.draws[start : start + _RESAMPLES_AT_ONCE, self.index]

    def sums(self, values: Float[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " patient"]:
        """The sum of a value over the rows of each patient."""
        return np.bincount(self.index, values, self.n)

    def effective(self, counted: np.ndarray) -> float:
        """Kish's effective number of patients among the rows counted: (sum of rows)^2 / (sum of squared rows)."""
        rows = self.sums(counted.astype(np.float64))
        return float(rows.sum() ** 2 / max((rows**2).sum(), 1))

    def effective_of(self, truth: Int8[np.ndarray, " n"]) -> float:
        """The effective number of patients of the rarer class."""
        return min(self.effective(truth == 1), self.effective(truth == 0))


def bootstrap_macro_auroc(
    labels: Labels, probabilities: Scores, groups: Sequence[str], n_resamples: int = 1000, seed: int = 42
) -> Interval:
    """The 95 % interval of the macro AUROC over patients drawn with replacement.

    `groups` names the patient of each row. The macro covers the labels whose AUROC is defined on all rows; a resample
    that lacks a class of one of them is dropped and counted. Raises UsageError for fewer than one resample.
    """
    check_scores(labels, probabilities, [""] * labels.shape[1])
    patients = Patients.of(groups, len(labels), n_resamples, seed)
    columns = [k for k in range(labels.shape[1]) if undefined_reason(labels[:, k]) is None]
    if not columns or patients.n < 2:
        return Interval(None, None, LEVEL, 0, reason=f"{len(columns)} labels with an AUROC, {patients.n} patients")
    once, drawn = ranking_draws(labels[:, columns], probabilities[:, columns], patients)
    effective = [patients.effective_of(labels[:, k]) for k in columns]
    return macro_interval(once[0], drawn[:, 0], effective)


def ranking_draws(
    labels: Labels, probabilities: Scores, patients: Patients
) -> tuple[Float64[np.ndarray, "2 label"], Float64[np.ndarray, "draw 2 label"]]:
    """(AUROC, AUPRC) of each label on all rows, and in each resample; NaN where a class is missing."""
    rankings = [Ranking(truth, scores) for truth, scores in zip(labels.T, probabilities.T, strict=True)]
    once = np.ones((1, len(labels)), dtype=np.int64)

    def figures(weights: Int64[np.ndarray, "draw n"]) -> Float64[np.ndarray, "draw 2 label"]:
        return np.stack([np.stack(one.auroc_and_auprc(weights), axis=1) for one in rankings], axis=2)

    return figures(once)[0], np.concatenate([figures(weights) for weights in patients.weights()])


def macro_interval(
    values: Float64[np.ndarray, " label"], drawn: Float64[np.ndarray, "draw label"], effective: Sequence[float]
) -> Interval:
    """The interval of the mean of some labels' figures; its degrees of freedom after Satterthwaite (1946), the labels'
    variances weighted as if independent."""
    usable = drawn[~np.isnan(drawn).any(axis=1)]
    numbers = np.asarray(effective)
    if len(values) > 1 and len(usable) > 1 and (variances := usable.var(axis=0)).sum() > 0:
        spread = (variances**2 / np.maximum(numbers - 1, 1e-9)).sum()
        number = 1 + float(variances.sum() ** 2 / spread)
    else:
        number = float(numbers.min())
    return bootstrap_interval(float(values.mean()), np.asarray(drawn.mean(axis=1)), number)


def bootstrap_interval(value: float, drawn: Draws, effective: float) -> Interval:
    """The interval of a figure between 0 and 1 by the bootstrap's standard error on the logit scale.

    `drawn` is the figure in each resample, NaN where it is undefined; `effective` the effective number of patients k.
    logit(value) +- t(k - 1) SE sqrt(k / (k - 1)) / (value (1 - value)). At 0 or 1, where the standard error is 0, it is
    Wilson's interval for k patients.
    """
    usable = drawn[~np.isnan(drawn)]
    n_left_out = len(drawn) - len(usable)
    reason = None
    if len(usable) < max(2, _LEAST_USABLE_SHARE * len(drawn)):
        reason = f"{n_left_out} of {len(drawn)} resamples lack a positive or a negative of some label"
    elif effective <= 1:
        reason = "the positives, or the negatives, are of one patient"
    if reason:
        return Interval(None, None, LEVEL, len(usable), n_left_out, reason=reason)
    error = float(usable.std(ddof=1)) * np.sqrt(effective / (effective - 1))
    if 0 < value < 1 and error > 0:
        half = student(effective - 1) * error / (value * (1 - value))
        low, high = (float(1 / (1 + np.exp(-(np.log(value / (1 - value)) + side)))) for side in (-half, half))
    else:
        low, high = wilson(value, effective)
    return Interval(low, high, LEVEL, len(usable), n_left_out)


def difference_interval(value: float, drawn: Draws, effective: float) -> Interval:
    """The interval of a difference: value +- t(k - 1) SE sqrt(k / (k - 1)), the standard error by the bootstrap."""
    usable = drawn[~np.isnan(drawn)]
    n_left_out = len(drawn) - len(usable)
    if len(usable) < max(2, _LEAST_USABLE_SHARE * len(drawn)) or effective <= 1:
        reason = f"{n_left_out} of {len(drawn)} resamples lack a class; {effective:.1f} effective patients"
        return Interval(None, None, LEVEL, len(usable), n_left_out, reason=reason)
    half = student(effective - 1) * float(usable.std(ddof=1)) * np.sqrt(effective / (effective - 1))
    return Interval(value - half, value + half, LEVEL, len(usable), n_left_out)


def student(degrees: float) -> float:
    """The two-sided 95 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of `n` trials, which need not be whole."""
    squared = student(1e9) ** 2
    middle = (share + squared / (2 * n)) / (1 + squared / n)
    half = np.sqrt(squared * (share * (1 - share) / n + squared / (4 * n * n))) / (1 + squared / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def order_statistic(share: float, n: float) -> tuple[float, float]:
    """The interval of the true share above a threshold that was placed so that this share of `n` scores is above it: of
    the distribution Beta(k, n + 1 - k) of an order statistic, k = share n (Wilks 1941)."""
    from scipy.special import betaincinv

    low, high = (float(betaincinv(share * n, n + 1 - share * n, q)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return low, high


def rate(
    part: Float[np.ndarray, " n"],
    whole: Float[np.ndarray, " n"],
    patients: Patients,
    limits: Callable[[float, float], tuple[float, float]] = wilson,
) -> dict[str, Any]:
    """{value, low, high, n, n_patients}: the ratio of two sums over rows with an interval by patient.

    Wilson's interval takes the effective number of trials, value (1 - value) / SE^2, with the standard error of a ratio
    of patient sums and the factor of Korn and Graubard (1998) for few patients, and never more than there are. Where no
    row or every row counts, the effective number of patients takes its place. None for 0/0.
    """
    parts, wholes = patients.sums(part), patients.sums(whole)
    n, n_patients = float(wholes.sum()), int((wholes > 0).sum())
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "n_patients": 0}
    value, effective = float(parts.sum() / n), float(n * n / (wholes**2).sum())
    squares = float(((parts - value * wholes) ** 2).sum())
    if effective <= 1 or not 0 < value < 1 or squares == 0:
        trials = effective
    else:
        error_squared = squares / (n * n) * effective / (effective - 1)
        small_sample = (student(max(n - 1, 1)) / student(effective - 1)) ** 2
        trials = min(value * (1 - value) / error_squared * small_sample, n)
    low, high = limits(value, trials)
    return {"value": value, "low": low, "high": high, "n": round(n), "n_patients": n_patients}


def figure(value: float, interval: Interval) -> dict[str, Any]:
    """A figure and its interval, as JSON; None where the figure is undefined."""
    return {"value": None if np.isnan(value) else float(value), "interval": asdict(interval)}


def undefined(reason: str) -> dict[str, Any]:
    """The JSON of a figure that is undefined."""
    return {"value": None, "interval": asdict(Interval(None, None, LEVEL, 0, reason=reason))}


def ratio_limits(
    above: Mapping[str, Any], below: Mapping[str, Any], factor: float
) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of 1 / (1 + factor * above / below), two rates with intervals.

    The limits of the ratio by Donner and Zou's (2012) method of variance estimates recovery, the rates taken as
    independent. None where both rates are 0.
    """
    a, b = above["value"], below["value"]
    if a is None or b is None or (a == 0 and b == 0):
        return None, None, None
    low = _ratio_limit(a, b, above["low"], below["high"], -1)
    high = _ratio_limit(a, b, above["high"], below["low"], 1)
    value = np.inf if b == 0 else a / b
    shares = [float(1 / (1 + factor * one)) for one in (value, high, low)]
    return shares[0], shares[1], shares[2]


def _ratio_limit(a: float, b: float, limit_a: float, limit_b: float, sign: int) -> float:
    denominator = limit_b * (2 * b - limit_b)
    root = (a * b) ** 2 - limit_a * (2 * a - limit_a) * denominator
    if denominator == 0:
        return np.inf if sign > 0 else limit_a * (2 * a - limit_a) / (2 * a * b)
    return max(0.0, float((a * b + sign * np.sqrt(max(root, 0.0))) / denominator))
