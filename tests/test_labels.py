from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from meddinov3_stroke.errors import LabelError
from meddinov3_stroke.labels import apply_label_policy, contradicts_any, label_names, name_rows
from meddinov3_stroke.types import LABELS

six_columns = arrays(np.int8, st.tuples(st.integers(1, 12), st.just(6)), elements=st.integers(0, 1))


def test_six_labels_take_the_six_names_and_other_numbers_do_not() -> None:
    assert label_names(6) == LABELS
    assert label_names(2) == ("class_0", "class_1")


@settings(deadline=None)
@given(six_columns)
def test_contradiction_is_any_against_the_or_of_the_rest(labels: np.ndarray) -> None:
    expected = [bool(row[0]) != any(row[1:]) for row in labels.tolist()]
    assert contradicts_any(labels, LABELS).tolist() == expected


@settings(deadline=None)
@given(six_columns)
def test_fix_any_changes_the_any_column_only_and_leaves_no_contradiction(labels: np.ndarray) -> None:
    before = labels.copy()
    fixed, warnings = apply_label_policy(labels, LABELS, "fix-any", "here")
    assert not contradicts_any(fixed, LABELS).any()
    np.testing.assert_array_equal(fixed[:, 1:], before[:, 1:])
    np.testing.assert_array_equal(labels, before)
    assert bool(warnings) == bool(contradicts_any(before, LABELS).any())


def test_any_is_found_by_its_name_not_by_its_place() -> None:
    names = (*LABELS[1:], "any")
    labels = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]], dtype=np.int8)
    assert contradicts_any(labels, names).tolist() == [False, True]


def test_strict_refuses_with_rows_and_names_the_flag() -> None:
    labels = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=np.int8)
    with pytest.raises(LabelError, match=r"rows 1, 2 \(counted from 0\).*--label-policy fix-any"):
        apply_label_policy(labels, LABELS, "strict", "here")
    with pytest.raises(LabelError, match=r"rows line 3, line 4;"):
        apply_label_policy(labels, LABELS, "strict", "here", ["line 2", "line 3", "line 4"])


def test_ignore_keeps_the_labels_and_warns() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 0]], dtype=np.int8)
    kept, (warning,) = apply_label_policy(labels, LABELS, "ignore", "here")
    np.testing.assert_array_equal(kept, labels)
    assert "kept as they are" in warning


def test_other_label_sets_know_no_any() -> None:
    labels = np.array([[1, 0]], dtype=np.int8)
    assert apply_label_policy(labels, ("class_0", "class_1"), "strict", "here") == (labels, [])


def test_many_rows_are_counted_not_listed() -> None:
    assert name_rows(list(range(20))) == "rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more (counted from 0)"
