from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.features import select_slices
from meddinov3_stroke.types import SliceSelection


def test_default_selection_takes_every_slice() -> None:
    np.testing.assert_array_equal(select_slices(5, SliceSelection()), [0, 1, 2, 3, 4])


def test_stride_comes_before_the_limit() -> None:
    np.testing.assert_array_equal(select_slices(20, SliceSelection(stride=2, max_slices=5)), [2, 6, 10, 14, 18])


def test_one_slice_is_the_middle_one() -> None:
    np.testing.assert_array_equal(select_slices(31, SliceSelection(max_slices=1)), [15])


@given(n=st.integers(1, 400), stride=st.integers(1, 50), limit=st.integers(0, 60))
def test_selection_is_ascending_distinct_within_bounds_and_as_many_as_allowed(n: int, stride: int, limit: int) -> None:
    chosen = select_slices(n, SliceSelection(stride, limit))
    strided = len(range(0, n, stride))
    assert chosen.size == (min(limit, strided) if limit else strided)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < n
    assert (chosen % stride == 0).all()


@given(n=st.integers(1, 400), limit=st.integers(1, 60))
def test_gaps_between_chosen_slices_differ_by_at_most_one(n: int, limit: int) -> None:
    gaps = np.diff(select_slices(n, SliceSelection(max_slices=limit)))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("n", "stride", "limit"), [(0, 1, 0), (5, 0, 0), (5, -2, 0), (5, 1, -1)])
def test_selection_of_nothing_is_a_usage_error(n: int, stride: int, limit: int) -> None:
    with pytest.raises(UsageError):
        select_slices(n, SliceSelection(stride, limit))
