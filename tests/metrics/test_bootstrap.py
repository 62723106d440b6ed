from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from meddinov3_stroke.errors import DatasetError, UsageError
from meddinov3_stroke.metrics import auroc_report, bootstrap_macro_auroc, weighted_auroc


def cohort(n: int, seed: int, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (n, 2)).astype(np.int8)
    return truth, truth * shift + rng.normal(size=(n, 2))


def one_each(n: int) -> list[str]:
    return [f"patient {k}" for k in range(n)]


@settings(deadline=None)
@given(st.data())
def test_weighted_auroc_is_scikit_learns_on_the_repeated_rows(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 20))
    truth = data.draw(arrays(np.int8, n, elements=st.integers(0, 1)))
    scores = data.draw(arrays(np.float64, n, elements=st.integers(0, 5).map(float)))
    weights = data.draw(arrays(np.int64, (3, n), elements=st.integers(0, 3)))
    for found, multiplicity in zip(weighted_auroc(truth, scores, weights), weights, strict=True):
        repeated = np.repeat(truth, multiplicity)
        if 0 < repeated.sum() < len(repeated):
            assert found == pytest.approx(roc_auc_score(repeated, np.repeat(scores, multiplicity)))
        else:
            assert np.isnan(found)


def test_interval_has_the_width_of_hanley_and_mcneil() -> None:
    truth, scores = cohort(600, 0)
    interval = bootstrap_macro_auroc(truth[:, :1], scores[:, :1], one_each(600))
    area = roc_auc_score(truth[:, 0], scores[:, 0])
    n_positive, n_negative = truth[:, 0].sum(), (1 - truth[:, 0]).sum()
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n_positive - 1) * (q1 - area**2) + (n_negative - 1) * (q2 - area**2)
    standard_error = np.sqrt(variance / (n_positive * n_negative))
    assert interval.low < area < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.12)


def test_rows_of_one_patient_do_not_narrow_the_interval() -> None:
    truth, scores = cohort(60, 1)
    alone = bootstrap_macro_auroc(truth, scores, one_each(60))
    repeated = bootstrap_macro_auroc(
        np.repeat(truth, 10, 0), np.repeat(scores, 10, 0), list(np.repeat(one_each(60), 10))
    )
    as_rows = bootstrap_macro_auroc(np.repeat(truth, 10, 0), np.repeat(scores, 10, 0), one_each(600))
    assert (repeated.low, repeated.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert as_rows.high - as_rows.low < 0.5 * (alone.high - alone.low)


def test_interval_holds_the_macro_and_says_what_it_is() -> None:
    truth, scores = cohort(80, 2)
    interval = bootstrap_macro_auroc(truth, scores, one_each(80), n_resamples=200)
    assert interval.low < auroc_report(truth, scores, ("a", "b")).macro < interval.high
    assert (interval.level, interval.n_resamples, interval.unit) == (0.95, 200, "patient")


def test_same_seed_gives_the_same_interval_whatever_the_row_order() -> None:
    truth, scores = cohort(50, 3)
    groups = one_each(50)
    order = np.random.default_rng(0).permutation(50)
    first = bootstrap_macro_auroc(truth, scores, groups, 100, seed=7)
    assert bootstrap_macro_auroc(truth[order], scores[order], [groups[k] for k in order], 100, seed=7) == first
    assert bootstrap_macro_auroc(truth, scores, groups, 100, seed=8) != first


def test_label_without_positives_stays_out_of_the_macro() -> None:
    truth, scores = cohort(50, 4)
    none = np.c_[truth, np.zeros(50, dtype=np.int8)]
    with_it = bootstrap_macro_auroc(none, np.c_[scores, scores[:, 0]], one_each(50), 100)
    assert with_it == bootstrap_macro_auroc(truth, scores, one_each(50), 100)


def test_resamples_that_lose_a_class_are_left_out_and_counted() -> None:
    truth, scores = cohort(40, 5)
    truth[:, 1] = 0
    truth[:2, 1] = 1
    interval = bootstrap_macro_auroc(truth, scores, one_each(40), 400)
    assert interval.n_resamples + interval.n_left_out == 400
    assert 400 * 0.05 < interval.n_left_out < 400 * 0.25  # (1 - 2/40)^40 = 0.13
    assert interval.low is not None


def test_too_few_positive_patients_give_no_interval_but_a_reason() -> None:
    _, scores = cohort(30, 6)
    truth = np.zeros((30, 2), dtype=np.int8)
    truth[0, 0] = truth[1, 1] = 1  # both drawn in 0.4 of the resamples
    interval = bootstrap_macro_auroc(truth, scores, one_each(30), 300)
    assert (interval.low, interval.high) == (None, None)
    assert interval.reason == f"{interval.n_left_out} of 300 resamples lack a positive or a negative of some label"


def test_one_patient_gives_no_interval_but_a_reason() -> None:
    truth, scores = cohort(12, 6)
    interval = bootstrap_macro_auroc(truth, scores, ["one"] * 12, 300)
    assert (interval.low, interval.high, interval.reason) == (None, None, "2 labels with an AUROC, 1 patients")


def test_wrong_groups_or_resamples_are_refused() -> None:
    truth, scores = cohort(10, 7)
    with pytest.raises(DatasetError, match="9 patients for 10 rows"):
        bootstrap_macro_auroc(truth, scores, one_each(9))
    with pytest.raises(UsageError, match="n_resamples 0"):
        bootstrap_macro_auroc(truth, scores, one_each(10), 0)
