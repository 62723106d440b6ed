"""Figures of an evaluation against statsmodels and dcurves, which compute the same by other code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from dcurves import dca
from statsmodels.stats.proportion import proportion_confint

from meddinov3_stroke.metrics import fit_calibrator, patients_of
from meddinov3_stroke.metrics.curves import THRESHOLDS, curves
from meddinov3_stroke.metrics.intervals import rate, wilson


def scores(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """(labels, probabilities)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=n) - 1
    truth = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return truth, 1 / (1 + np.exp(-2 * logits - 0.3))


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (1, 9), (36, 40), (40, 40), (200, 1000)])
def test_wilsons_interval_is_that_of_statsmodels(part: int, whole: int) -> None:
    expected = proportion_confint(part, whole, method="wilson")
    assert wilson(part / whole, float(whole)) == pytest.approx(expected, abs=1e-6)


def test_a_rate_of_single_rows_is_wilsons_interval() -> None:
    patients, _ = patients_of(None, 400, 1, 0)
    part = np.repeat([1.0, 0.0], [360, 40])
    found = rate(part, np.ones(400), patients)
    expected = proportion_confint(360, 400, method="wilson")
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=2e-4)  # with the small-sample factor


def test_the_sigmoid_calibrator_is_statsmodels_logistic_regression() -> None:
    truth, probabilities = scores()
    logits = np.log(probabilities) - np.log1p(-probabilities)
    fitted = sm.Logit(truth, sm.add_constant(logits)).fit(disp=False)
    found = fit_calibrator("sigmoid", logits, truth)
    assert (found.intercept, found.slope) == pytest.approx(tuple(fitted.params), abs=1e-6)


def test_net_benefit_is_that_of_dcurves() -> None:
    truth, probabilities = scores()
    table = dca(
        data=pd.DataFrame({"any": truth.astype(int), "model": probabilities}),
        outcome="any",
        modelnames=["model"],
        thresholds=THRESHOLDS,
    ).set_index("model")
    found = curves(truth, probabilities, patients_of(None, len(truth), 20, 0)[0])["decision"]
    np.testing.assert_allclose(found["net_benefit"], table.loc["model", "net_benefit"], atol=1e-6)
    np.testing.assert_allclose(found["treat_all"], table.loc["all", "net_benefit"], atol=1e-6)
