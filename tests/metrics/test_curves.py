from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score, roc_curve

from meddinov3_stroke.metrics import patients_of
from meddinov3_stroke.metrics.curves import curves


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = (rng.random(300) < 0.3).astype(np.int8)
    return truth, np.round(1 / (1 + np.exp(-(2 * truth - 1.5 + rng.normal(size=300)))), 2)


def test_net_benefit_is_its_definition(rows: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = rows
    found = curves(truth, scores, patients_of(None, 300, 100, 0)[0])["decision"]
    for threshold, benefit, everyone in zip(found["threshold"], found["net_benefit"], found["treat_all"], strict=True):
        treated, odds = scores >= threshold, threshold / (1 - threshold)
        expected = np.mean(treated & (truth == 1)) - np.mean(treated & (truth == 0)) * odds
        assert benefit == pytest.approx(expected, abs=1e-12)
        assert everyone == pytest.approx(truth.mean() - (1 - truth.mean()) * odds, abs=1e-12)


def test_roc_is_scikit_learns_at_every_hundredth(rows: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = rows
    found = curves(truth, scores, patients_of(None, 300, 50, 0)[0])["roc"]
    false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
    expected = [true_positive[false_positive <= at + 1e-9].max() for at in found["false_positive_rate"]]
    assert found["sensitivity"] == pytest.approx(expected, abs=1e-12)


def test_precision_is_that_of_the_highest_threshold_with_the_sensitivity(rows: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = rows
    found = curves(truth, scores, patients_of(None, 300, 50, 0)[0])["precision_recall"]
    sensitivity = {t: recall_score(truth, scores >= t) for t in np.unique(scores)}
    for wanted, precision in zip(found["sensitivity"][1:], found["precision"][1:], strict=True):
        threshold = max(t for t, share in sensitivity.items() if share >= wanted - 1e-9)
        assert precision == pytest.approx(precision_score(truth, scores >= threshold), abs=1e-12)


def test_the_band_holds_the_curve_and_narrows_with_patients(rows: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = rows
    few = curves(truth, scores, patients_of(None, 300, 200, 0)[0])
    many = curves(np.tile(truth, 9), np.tile(scores, 9), patients_of(None, 2700, 200, 0)[0])
    for name, value in (("roc", "sensitivity"), ("precision_recall", "precision"), ("decision", "net_benefit")):
        low, middle, high = (np.array(few[name][side]) for side in ("low", value, "high"))
        assert np.mean((low <= middle) & (middle <= high)) > 0.97
        assert np.mean(np.subtract(many[name]["high"], many[name]["low"])) < 0.5 * np.mean(high - low)
