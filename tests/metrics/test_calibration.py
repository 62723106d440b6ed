"""Calibration against scikit-learn, and what it does to held-out probabilities."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.metrics import Patients, patients_of
from meddinov3_stroke.metrics.calibration import (
    KINDS,
    Calibrator,
    calibration_figures,
    choose_calibrator,
    fit_calibrator,
)


def head(n: int = 600, slope: float = 3.0, shift: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(logits, labels) of a head whose logits are too steep and shifted."""
    rng = np.random.default_rng(seed)
    true_logits = 1.5 * rng.normal(size=n) - 1
    return slope * true_logits + shift, (rng.random(n) < expit(true_logits)).astype(np.int8)


def alone(n: int) -> Patients:
    return patients_of(None, n, 200, 0)[0]


def test_sigmoid_is_scikit_learns_logistic_regression() -> None:
    logits, truth = head()
    found = fit_calibrator("sigmoid", logits, truth)
    expected = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10000).fit(logits[:, None], truth)
    assert (found.slope, found.intercept) == pytest.approx((expected.coef_[0, 0], expected.intercept_[0]), abs=1e-6)


def test_temperature_has_the_smallest_log_loss() -> None:
    logits, truth = head()
    found = fit_calibrator("temperature", logits, truth)
    best = minimize_scalar(
        lambda slope: np.mean(np.logaddexp(0, slope * logits) - truth * slope * logits), (0, 1), options={"xtol": 1e-12}
    )
    assert (found.slope, found.intercept) == (pytest.approx(best.x, abs=1e-6), 0)


def test_isotonic_is_scikit_learns() -> None:
    logits, truth = head(200)
    logits = np.round(logits, 1)  # ties
    places = np.linspace(-12, 12, 500)
    expected = IsotonicRegression(out_of_bounds="clip").fit(logits, truth).predict(places)
    found = fit_calibrator("isotonic", logits, truth).apply(places)
    np.testing.assert_allclose(found, np.clip(expected, 1e-6, 1 - 1e-6), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrator_keeps_the_order(kind: str) -> None:
    calibrator = fit_calibrator(kind, *head())
    assert (np.diff(calibrator.apply(np.linspace(-20, 20, 400))) >= 0).all()


def test_the_choice_lowers_the_held_out_ece_and_brier_score_of_overconfident_heads() -> None:
    for seed in range(5):
        chosen, losses = choose_calibrator(*head(seed=seed), alone(600))
        logits, truth = head(4000, seed=100 + seed)
        before, after = (
            calibration_figures(truth, one.apply(logits), alone(4000)) for one in (Calibrator("none"), chosen)
        )
        assert after["ece"] < 0.5 * before["ece"]
        assert after["brier"]["value"] < before["brier"]["value"]
        assert losses[chosen.kind] == min(losses.values())


def test_a_calibrated_head_is_left_alone_or_hardly_touched() -> None:
    logits, truth = head(2000, 1.0, 0.0)
    chosen, _ = choose_calibrator(logits, truth, alone(2000))
    assert np.abs(chosen.apply(logits) - expit(logits)).mean() < 0.02


def test_rows_of_a_patient_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(3)
    logits = np.repeat(rng.normal(size=40), 20)  # equal rows: isotonic regression learns each patient by heart
    truth = np.repeat((rng.random(40) < 0.5).astype(np.int8), 20)
    patients = Patients.of([f"{k // 20:02}" for k in range(800)], 800, 10)
    assert choose_calibrator(logits, truth, patients)[0].kind != "isotonic"
    assert choose_calibrator(logits, truth, alone(800))[0].kind == "isotonic"


def test_one_class_is_refused_and_too_few_patients_choose_nothing() -> None:
    logits = np.arange(4.0)
    with pytest.raises(DatasetError, match="no positive among 4 rows; expected both classes"):
        fit_calibrator("sigmoid", logits, np.zeros(4, dtype=np.int8))
    truth = np.array([0, 0, 1, 1], dtype=np.int8)
    chosen, losses = choose_calibrator(logits, truth, Patients.of(["a", "a", "b", "b"], 4, 10))
    assert (chosen, losses) == (Calibrator("none"), {})


def test_scores_that_rank_the_wrong_way_give_every_row_the_base_rate() -> None:
    logits, truth = np.array([2.0, 1.0, 0.5, -1.0, -2.0, -3.0]), np.array([0, 0, 0, 0, 1, 0], dtype=np.int8)
    assert fit_calibrator("sigmoid", logits, truth).apply(logits) == pytest.approx(np.full(6, 1 / 6))


def test_separable_rows_end_in_a_steep_finite_slope() -> None:
    found = fit_calibrator("sigmoid", np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1], dtype=np.int8))
    assert np.isfinite([found.slope, found.intercept]).all()
    assert found.apply(np.array([2.0]))[0] > 0.99


def test_brier_and_ece_are_their_definitions() -> None:
    logits, truth = head()
    probabilities = expit(logits)
    found = calibration_figures(truth, probabilities, alone(600))
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(truth, probabilities), abs=1e-12)
    assert found["brier"]["interval"]["low"] < found["brier"]["value"] < found["brier"]["interval"]["high"]
    edges = np.linspace(0, 1, 11)
    expected, n = 0.0, 0
    for low, high in pairwise(edges):
        inside = (probabilities >= low) & ((probabilities < high) | (high == 1))
        expected += abs(np.sum(probabilities[inside]) - truth[inside].sum()) / 600
        n += inside.sum()
    assert found["ece"] == pytest.approx(expected, abs=1e-9)
    assert sum(one["n"] for one in found["bins"]) == n == 600
