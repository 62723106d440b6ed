"""Intervals by patient: against scipy, against closed forms, and how often they hold the true value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from meddinov3_stroke.metrics import Patients, evaluate, patients_of
from meddinov3_stroke.metrics.intervals import rate, ratio_limits, wilson

ROOT = Path(__file__).resolve().parents[2]


def one_each(n: int) -> Patients:
    return patients_of(None, n, 100, 0)[0]


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (41, 263)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, float(n)) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_rate_of_independent_rows_is_wilsons_of_one_row_fewer() -> None:
    part = np.r_[np.ones(30), np.zeros(20)]
    found = rate(part, np.ones(50), one_each(50))
    assert (found["value"], found["n"], found["n_patients"]) == (0.6, 50, 50)
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.6, 49.0))


def test_equal_rows_of_a_patient_count_as_one() -> None:
    part = np.repeat(np.r_[np.ones(30), np.zeros(20)], 7)
    patients = Patients.of([f"{k // 7}" for k in range(350)], 350)
    found, alone = rate(part, np.ones(350), patients), rate(part[::7], np.ones(50), one_each(50))
    assert found["high"] - found["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    as_rows = rate(part, np.ones(350), one_each(350))
    assert as_rows["high"] - as_rows["low"] < 0.5 * (found["high"] - found["low"])


def test_a_rate_of_one_has_an_interval_by_the_number_of_patients() -> None:
    patients = Patients.of([f"{k // 5}" for k in range(100)], 100)
    found = rate(np.ones(100), np.ones(100), patients)
    assert (found["low"], found["high"]) == pytest.approx(wilson(1.0, 20.0))


def test_a_rate_without_rows_is_none() -> None:
    assert rate(np.zeros(4), np.zeros(4), one_each(4))["value"] is None


def test_ppv_at_a_prevalence_is_bayes_rule_and_its_limits_those_of_the_likelihood_ratio() -> None:
    n, sensitivity, false_alarms, prevalence = 4000.0, 0.8, 0.1, 0.05
    above = {"value": false_alarms, **dict(zip(("low", "high"), wilson(false_alarms, n), strict=True))}
    below = {"value": sensitivity, **dict(zip(("low", "high"), wilson(sensitivity, n), strict=True))}
    value, low, high = ratio_limits(above, below, (1 - prevalence) / prevalence)
    assert value == pytest.approx(
        prevalence * sensitivity / (prevalence * sensitivity + 0.95 * false_alarms), abs=1e-12
    )
    error = np.sqrt((1 - sensitivity) / (n * sensitivity) + (1 - false_alarms) / (n * false_alarms))  # of the log ratio
    for limit, side in ((low, 1), (high, -1)):
        ratio = false_alarms / sensitivity * np.exp(side * norm.ppf(0.975) * error)
        assert limit == pytest.approx(1 / (1 + ratio * 19), rel=0.01)


def test_no_false_alarm_still_leaves_a_lower_limit() -> None:
    value, low, high = ratio_limits(
        {"value": 0.0, "low": 0.0, "high": 0.03}, {"value": 0.9, "low": 0.8, "high": 0.95}, 9.0
    )
    assert (value, high) == (1.0, 1.0)
    assert 0.7 < low < 0.8  # 1 / (1 + 9 * 0.03 / 0.9) = 0.77


def test_perfect_ranking_has_an_interval_below_one() -> None:
    truth = np.r_[np.ones(15), np.zeros(15)].astype(np.int8)[:, None]
    found = evaluate(truth, truth + 0.0, ("a",), one_each(30), {})["labels"]["a"]["auroc"]
    assert found["value"] == found["interval"]["high"] == 1.0
    assert found["interval"]["low"] == pytest.approx(wilson(1.0, 15.0)[0])


def test_positives_of_one_patient_give_no_interval_but_a_reason() -> None:
    truth = np.zeros((40, 1), dtype=np.int8)
    truth[:10] = 1
    groups = ["one"] * 10 + [f"{k}" for k in range(30)]
    found = evaluate(truth, np.random.default_rng(0).random((40, 1)), ("a",), Patients.of(groups, 40), {})
    interval = found["labels"]["a"]["auroc"]["interval"]
    assert (interval["low"], interval["reason"]) == (None, "the positives, or the negatives, are of one patient")


@pytest.mark.slow
@pytest.mark.parametrize("place", [1, 4])
def test_intervals_hold_the_true_value_as_often_as_they_say(place: int) -> None:
    code = f"from benchmarks.coverage import POPULATIONS, row; print(row(POPULATIONS[{place}], 600))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = eval(done.stdout)
    for figure in ("auroc", "auprc", "sensitivity"):
        assert 92.5 <= found[f"{figure}_percent"] <= 97.5, found  # 95 within three standard errors
