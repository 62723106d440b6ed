from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.metrics import auroc_report


def mann_whitney(truth: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties half."""
    differences = scores[truth == 1][:, None] - scores[truth == 0][None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


rows = st.integers(2, 30)


@settings(deadline=None)
@given(st.data())
def test_auroc_is_the_share_of_pairs_in_order_with_ties_half(data: st.DataObject) -> None:
    n = data.draw(rows)
    truth = data.draw(arrays(np.int8, (n, 2), elements=st.integers(0, 1)))
    scores = data.draw(arrays(np.float64, (n, 2), elements=st.integers(0, 8).map(lambda k: k / 8)))  # many ties
    report = auroc_report(truth, scores, ("a", "b"))
    for column, name in enumerate(("a", "b")):
        if 0 < truth[:, column].sum() < n:
            assert report.per_class[name] == pytest.approx(mann_whitney(truth[:, column], scores[:, column]))
        else:
            assert report.per_class[name] is None


def test_macro_is_the_mean_over_labels_where_auroc_is_defined() -> None:
    truth = np.array([[0, 0, 1], [1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=np.int8)
    scores = np.array([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5], [0.3, 0.5, 0.5], [0.2, 0.5, 0.5]])
    report = auroc_report(truth, scores, ("a", "b", "c"))
    assert report.per_class == {"a": pytest.approx(0.75), "b": None, "c": None}
    assert (report.macro, report.n_classes) == (pytest.approx(0.75), 1)
    assert report.reasons == {"b": "no positive among 4 rows", "c": "no negative among 4 rows"}


def test_macro_is_none_where_no_label_has_an_auroc() -> None:
    report = auroc_report(np.zeros((3, 1), dtype=np.int8), np.zeros((3, 1)), ("a",))
    assert (report.macro, report.n_classes, set(report.reasons)) == (None, 0, {"a"})


def test_nan_scores_are_refused_with_the_row() -> None:
    truth = np.array([[0], [1], [1]], dtype=np.int8)
    with pytest.raises(DatasetError, match="NaN among the scores of 1 rows, first row 1"):
        auroc_report(truth, np.array([[0.1], [np.nan], [0.3]]), ("a",))


def test_names_must_match_the_columns() -> None:
    with pytest.raises(DatasetError, match="2 names"):
        auroc_report(np.array([[0], [1]], dtype=np.int8), np.array([[0.1], [0.2]]), ("a", "b"))


def test_infinite_scores_tie() -> None:
    truth = np.array([[1], [0], [1], [0]], dtype=np.int8)
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        scores = np.array([[np.inf], [np.inf], [-np.inf], [-np.inf]])
        assert auroc_report(truth[order], scores, ("a",)).macro == 0.5


def test_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (500, 3)).astype(np.int8)
    scores = np.round(rng.normal(size=(500, 3)) + truth, 1).astype(np.float32)
    report = auroc_report(truth, scores, ("a", "b", "c"))
    expected = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(3)]
    assert list(report.per_class.values()) == pytest.approx(expected, abs=1e-12)


def test_metrics_import_no_scikit_learn() -> None:
    code = "import sys, meddinov3_stroke.metrics; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
