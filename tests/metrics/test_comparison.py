"""Paired comparison: the published example, the definition, and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.metrics import Patients, compare, delong, patients_of

# DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, K-G score, outcome of patients with all three
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0
2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1
4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1
3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1
3.6 6.6 5 1
"""


def ovarian() -> tuple[np.ndarray, np.ndarray]:
    """(outcome, scores of albumin, K-G and total protein)."""
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 3].astype(np.int8), np.stack([table[:, 0], -table[:, 2], table[:, 1]], axis=1)


def by_definition(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs and their covariance from the whole matrix of pairs."""
    positive, negative = scores[truth == 1], scores[truth == 0]
    wins = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])
    covariance = sum(np.cov(wins.mean(axis=1 - side).T) / wins.shape[side] for side in (0, 1))
    return wins.mean(axis=(0, 1)), covariance


def alone(n: int) -> Patients:
    return patients_of(None, n, 200, 0)[0]


def test_delong_of_the_published_example_gives_its_chi_square() -> None:
    truth, scores = ovarian()
    areas, covariance = delong(truth, scores, alone(len(truth)))
    assert areas == pytest.approx([roc_auc_score(truth, column) for column in scores.T], abs=1e-12)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    difference = contrast @ areas
    statistic = difference @ np.linalg.solve(contrast @ covariance @ contrast.T, difference)
    assert statistic == pytest.approx(2.5340, abs=5e-5)  # as SAS's PROC LOGISTIC documents it
    assert chi2.sf(statistic, 2) == pytest.approx(0.2817, abs=5e-5)


def test_delong_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60).astype(np.int8)
    scores = np.round(rng.normal(size=(60, 2)) + truth[:, None], 1)
    areas, covariance = delong(truth, scores, alone(60))
    expected = by_definition(truth, scores)
    np.testing.assert_allclose(areas, expected[0], atol=1e-12)
    cross = covariance - expected[1]  # the definition has no term of patients with both classes: none has
    np.testing.assert_allclose(cross, 0, atol=1e-12)


def test_repeated_rows_of_a_patient_do_not_shrink_the_covariance() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 60).astype(np.int8)
    scores = rng.normal(size=(60, 2)) + truth[:, None]
    once = delong(truth, scores, alone(60))[1]
    groups = [f"{k // 4:03}" for k in range(240)]
    repeated = delong(np.repeat(truth, 4), np.repeat(scores, 4, axis=0), Patients.of(groups, 240))[1]
    np.testing.assert_allclose(repeated, once, atol=1e-12)


def clustered(n_patients: int = 150, seed: int = 3) -> tuple[np.ndarray, np.ndarray, Patients]:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 4)
    truth = (rng.random(len(patient)) < 0.4).astype(np.int8)
    shared = rng.normal(size=(n_patients, 2))[patient]
    scores = 1.2 * truth[:, None] + shared + rng.normal(size=(len(patient), 2))
    return truth, scores, Patients.of([f"{k:04}" for k in patient], len(patient), 2000)


def test_the_clustered_standard_error_is_that_of_the_bootstrap() -> None:
    truth, scores, patients = clustered()
    found = compare(truth[:, None], scores[:, :1], scores[:, 1:], ("a",), patients)["a"]["auroc"]
    interval = found["interval"]
    width = 2 * 1.98 * found["delong"]["standard_error"]
    assert interval["high"] - interval["low"] == pytest.approx(width, rel=0.1)
    assert found["difference"] == pytest.approx(found["first"] - found["second"])


def test_a_model_does_not_differ_from_itself() -> None:
    truth, scores, patients = clustered()
    found = compare(truth[:, None], scores[:, :1], scores[:, :1], ("a",), patients)["a"]["auroc"]
    assert (found["difference"], found["interval"]["low"], found["interval"]["high"]) == (0, 0, 0)
    assert found["delong"]["p"] is None


def test_a_label_of_one_class_has_a_reason() -> None:
    found = compare(np.zeros((5, 1), np.int8), np.ones((5, 1)), np.ones((5, 1)), ("a",), alone(5))
    assert found == {"a": {"reason": "no positive among 5 rows"}}
