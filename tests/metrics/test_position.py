"""The position-matched AUROC, and the rules that stand beside a model's slice AUROC."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from meddinov3_stroke.metrics import MatchedPairs, Patients, cross_validated_scores, evaluate_slices, mid_stack
from meddinov3_stroke.metrics.position import _PAIRS_AT_ONCE, MATCH_TOLERANCE


def stacks(n_patients: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, Patients]:
    """(labels, heights, a score of the lesion, patients): lesions in the middle third of the stack."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        n_slices = int(rng.integers(24, 40))
        height = (np.arange(n_slices) + 0.5) / n_slices
        start = rng.uniform(0.3, 0.5)
        bleeds = (height > start) & (height < start + rng.uniform(0.1, 0.25))
        rows += [(bled, h, bled + rng.normal(), f"P{patient:03}") for bled, h in zip(bleeds, height, strict=True)]
    truth, heights, scores, groups = zip(*rows, strict=True)
    patients = Patients.of(groups, len(groups), 200)
    return np.array(truth).astype(np.int8), np.array(heights), np.array(scores), patients


def share_of_pairs(
    truth: np.ndarray, heights: np.ndarray, scores: np.ndarray, patients: Patients, weights: np.ndarray
) -> float:
    """The weighted share of matched pairs in order, by the definition."""
    won = pairs = 0.0
    for i in np.flatnonzero(truth == 1):
        for j in np.flatnonzero(truth == 0):
            apart = patients.index[i] != patients.index[j]
            if apart and abs(heights[i] - heights[j]) <= MATCH_TOLERANCE + 1e-9:
                weight = weights[patients.index[i]] * weights[patients.index[j]]
                pairs += weight
                won += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / pairs


def test_position_matched_auroc_is_its_definition() -> None:
    truth, heights, scores, patients = stacks(12)
    scores = np.round(scores, 1)
    (found,) = MatchedPairs(truth, heights, patients).auroc([scores])
    assert found["value"] == pytest.approx(share_of_pairs(truth, heights, scores, patients, np.ones(12)), abs=1e-12)


def test_its_standard_error_is_that_of_patients_drawn_again() -> None:
    truth, heights, scores, patients = stacks(12)
    patients = Patients(patients.index, patients.n, 60, 1)
    (found,) = MatchedPairs(truth, heights, patients).auroc([scores])
    drawn = [share_of_pairs(truth, heights, scores, patients, draw) for draw in patients.draws.astype(float)]
    value, low, high = found["value"], found["interval"]["low"], found["interval"]["high"]
    half = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / 2 * value * (1 - value)
    assert 2 <= half / np.std(drawn, ddof=1) <= 2.6  # Student's t of 5 to 12 effective patients, and its correction


def test_pairs_in_blocks_give_the_same_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, heights, scores, patients = stacks(20)
    whole = MatchedPairs(truth, heights, patients).auroc([scores, heights])
    assert _PAIRS_AT_ONCE > 1000
    monkeypatch.setattr("meddinov3_stroke.metrics.position._PAIRS_AT_ONCE", 100)
    blocks = MatchedPairs(truth, heights, patients).auroc([scores, heights])
    assert [one["n_pairs"] for one in blocks] == [one["n_pairs"] for one in whole]
    for one, other in zip(blocks, whole, strict=True):
        assert one["value"] == pytest.approx(other["value"])
        assert one["interval"]["low"] == pytest.approx(other["interval"]["low"])


def test_matching_takes_from_the_position_what_the_plain_auroc_gives_it() -> None:
    truth, heights, scores, patients = stacks(60)
    found = evaluate_slices(truth[:, None], scores[:, None], ("any",), patients, heights)["labels"]["any"]
    assert found["mid_stack"]["auroc"]["value"] > 0.8
    assert 0.45 < found["mid_stack"]["position_matched_auroc"]["value"] < 0.6  # 2 % of height remain
    assert 0.35 < found["position_only"]["position_matched_auroc"]["value"] < 0.55
    assert found["position_only"]["auroc"]["value"] > 0.8
    assert 0.7 < found["model"]["position_matched_auroc"]["value"] < 0.83  # two normals one apart: 0.76
    assert found["model"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))


def test_slices_of_one_patient_are_never_a_pair() -> None:
    truth, heights = np.array([1, 0], dtype=np.int8), np.array([0.5, 0.5])
    same, other = (Patients.of(groups, 2, 10) for groups in (["a", "a"], ["a", "b"]))
    assert MatchedPairs(truth, heights, same).auroc([heights])[0]["value"] is None
    assert MatchedPairs(truth, heights, other).auroc([heights])[0]["value"] == 0.5


def test_cross_validated_scores_rank_like_scikit_learns_on_the_other_folds() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(300, 6))
    truth = (features @ rng.normal(size=6) + rng.normal(size=300) > 0).astype(np.int8)
    patients = Patients.of([f"{k % 50:02}" for k in range(300)], 300, 1)
    found = cross_validated_scores(features, truth, patients)
    folds = (np.random.default_rng(patients.seed).permutation(50) % 5)[patients.index]
    held = folds == 2
    scaler = StandardScaler().fit(features[~held])
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(scaler.transform(features[~held]), truth[~held])
    fitted, expected = (model.decision_function(scaler.transform(features[rows])) for rows in (~held, held))
    np.testing.assert_allclose(found[held], [np.mean(fitted < one) for one in expected], atol=1e-9)


def test_a_patient_is_never_scored_by_a_model_that_saw_it() -> None:
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(100), 5)
    identity = np.eye(100)[patient]  # tells patients apart and nothing else
    truth = rng.integers(0, 2, 100).astype(np.int8)[patient]
    patients = Patients.of([f"{k:03}" for k in patient], 500, 1)
    assert roc_auc_score(truth, cross_validated_scores(identity, truth, patients)) < 0.6


def test_mid_stack_prefers_the_middle() -> None:
    assert mid_stack(np.array([0.1, 0.5, 0.8])).argsort().tolist() == [0, 2, 1]
