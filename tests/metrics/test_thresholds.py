from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score, roc_curve

from meddinov3_stroke.metrics import operating_points, threshold_report, youden_thresholds
from meddinov3_stroke.types import Threshold


def youden_index(truth: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    decided = scores >= threshold
    return float(decided[truth == 1].mean() + (~decided)[truth == 0].mean() - 1)


@settings(deadline=None)
@given(st.data())
def test_no_threshold_beats_the_chosen_one_and_of_equals_it_is_the_most_sensitive(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 25))
    truth = data.draw(arrays(np.int8, n, elements=st.integers(0, 1)))
    scores = data.draw(arrays(np.float64, n, elements=st.floats(0, 1)))
    chosen = youden_thresholds(truth[:, None], scores[:, None], ("a",))["a"]
    if not 0 < truth.sum() < n:
        assert chosen.value == 0.5
        return
    candidates = {score: youden_index(truth, scores, score) for score in scores.tolist()}
    best = max(candidates.values())
    if best <= 1e-12:
        assert chosen == Threshold(
            0.5, f"default 0.5: no threshold separates validation ({truth.sum()} positive of {n})"
        )
        return
    assert youden_index(truth, scores, chosen.value) == pytest.approx(best)
    lowest = min(score for score, index in candidates.items() if index > best - 1e-12)
    assert ((scores >= chosen.value) == (scores >= lowest)).all()


def test_best_youden_index_is_that_of_scikit_learns_roc_curve() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 300).astype(np.int8)
    scores = 1 / (1 + np.exp(-(truth + rng.normal(size=300))))
    chosen = youden_thresholds(truth[:, None], scores[:, None], ("a",))["a"]
    false_positive, true_positive, _ = roc_curve(truth, scores)
    assert youden_index(truth, scores, chosen.value) == pytest.approx((true_positive - false_positive).max())


def test_threshold_lies_halfway_between_the_classes() -> None:
    truth = np.array([[0], [0], [1], [1]], dtype=np.int8)
    chosen = youden_thresholds(truth, np.array([[0.1], [0.2], [0.6], [0.9]]), ("a",))["a"]
    assert (chosen.value, chosen.origin) == (pytest.approx(0.4), "validation Youden (2 positive of 4)")


@pytest.mark.parametrize("low", [0.3, float(np.nextafter(0.3, 1))])  # of two neighbours one has an even last bit
def test_neighbouring_floats_are_still_separated(low: float) -> None:
    scores = np.array([[low], [np.nextafter(low, 1)]])
    chosen = youden_thresholds(np.array([[0], [1]], dtype=np.int8), scores, ("a",))["a"]
    assert (scores[:, 0] >= chosen.value).tolist() == [False, True]


@pytest.mark.parametrize(("value", "word"), [(0, "no positive among 3 rows"), (1, "no negative among 3 rows")])
def test_single_class_falls_back_to_one_half_and_says_why(value: int, word: str) -> None:
    chosen = youden_thresholds(np.full((3, 1), value, dtype=np.int8), np.array([[0.1], [0.2], [0.3]]), ("a",))["a"]
    assert chosen == Threshold(0.5, f"default 0.5: validation has {word}")


def test_sensitivity_and_specificity_are_scikit_learns_recalls() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (80, 2)).astype(np.int8)
    scores = rng.random((80, 2))
    points = operating_points(truth, scores, {"a": Threshold(0.4, "x"), "b": Threshold(0.7, "y")})
    for column, (name, threshold) in enumerate((("a", 0.4), ("b", 0.7))):
        decided = scores[:, column] >= threshold
        assert points[name]["sensitivity"] == pytest.approx(recall_score(truth[:, column], decided))
        assert points[name]["specificity"] == pytest.approx(recall_score(truth[:, column], decided, pos_label=0))
    assert (points["b"]["threshold"], points["b"]["origin"]) == (0.7, "y")


def test_sensitivity_without_positives_is_none() -> None:
    (point,) = operating_points(
        np.zeros((2, 1), dtype=np.int8), np.array([[0.1], [0.9]]), {"a": Threshold(0.5, "x")}
    ).values()
    assert (point["sensitivity"], point["specificity"]) == (None, 0.5)


@pytest.mark.parametrize("thresholds", [0.5, {"a": 0.4, "b": 0.7}], ids=["one", "own"])
def test_figures_at_thresholds_are_scikit_learns(thresholds: float | dict[str, float]) -> None:
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(0, 2, (80, 2)).astype(np.int8), rng.random((80, 2))
    report = threshold_report(truth, scores, thresholds, ("a", "b"))
    measures = {
        "accuracy": accuracy_score,
        "precision": precision_score,
        "f1": f1_score,
        "sensitivity": recall_score,
    }
    for column, name in enumerate(("a", "b")):
        row = report["per_class"][name]
        decided = scores[:, column] >= row["threshold"]
        assert row["threshold"] == (thresholds if isinstance(thresholds, float) else thresholds[name])
        for figure, measure in measures.items():
            assert row[figure] == pytest.approx(measure(truth[:, column], decided)), figure
        expected = confusion_matrix(truth[:, column], decided).ravel().tolist()
        assert [row[count] for count in ("tn", "fp", "fn", "tp")] == expected
    for figure in measures:
        both = [report["per_class"][name][figure] for name in ("a", "b")]
        assert report["macro"][figure] == pytest.approx(np.mean(both))


def test_undefined_figures_are_none_with_a_reason_and_out_of_the_macro() -> None:
    truth = np.array([[0, 1], [0, 0]], dtype=np.int8)
    report = threshold_report(truth, np.array([[0.1, 0.9], [0.2, 0.1]]), 0.5, ("a", "b"))
    row = report["per_class"]["a"]
    assert (row["accuracy"], row["precision"], row["f1"], row["sensitivity"]) == (1.0, None, None, None)
    assert set(row["reasons"]) == {"precision", "f1", "sensitivity"}
    assert report["macro"] == {"accuracy": 1.0, "precision": 1.0, "f1": 1.0, "sensitivity": 1.0}


def test_a_score_at_the_threshold_is_positive() -> None:
    report = threshold_report(np.array([[1]], dtype=np.int8), np.array([[0.5]]), 0.5, ("a",))
    assert report["per_class"]["a"]["tp"] == 1
