"""Integers are compared as stored, with the answer that float32 HU give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meddinov3_stroke.ct.geometry import check_voxels
from meddinov3_stroke.ct.nifti_header import MAX_INTERCEPT, SLOPE_RANGE
from meddinov3_stroke.types import PADDING_BELOW_HU, scaled_hu

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
slopes = st.floats(*SLOPE_RANGE) | st.sampled_from([1.0, 0.1, 1 / 3, *SLOPE_RANGE])
intercepts = st.floats(-MAX_INTERCEPT, MAX_INTERCEPT) | st.sampled_from([0.0, -1024.0, -8192.0, -1e6, 1e6])


def _voxels_about(dtype: str, bound: int, seed: int) -> np.ndarray:
    """The ends of the type, the neighbours of `bound` and some of all, as (slice, row, col)."""
    limits = np.iinfo(dtype)
    random = np.random.default_rng(seed).integers(limits.min, limits.max, 8 * 9, dtype=dtype, endpoint=True)
    near = [limits.min, limits.max, *(bound + step for step in range(-300, 301, 25)), bound - 1, bound + 1]
    chosen = [value for value in near if limits.min <= value <= limits.max]
    random[: len(chosen)] = chosen
    return random.reshape(2, 4, 9)


@given(dtype=st.sampled_from(INTEGERS), slope=slopes, intercept=intercepts, seed=st.integers(0, 99))
@example(dtype="i4", slope=1.0, intercept=0.0, seed=0)
@example(dtype="u8", slope=1.0, intercept=-1e6, seed=0)
@example(dtype="u1", slope=1.0, intercept=-1e6, seed=0)
@example(dtype="i4", slope=1.0, intercept=1e6, seed=0)
def test_as_many_integers_are_padding_as_read_below_it_in_float32(dtype, slope, intercept, seed) -> None:
    stored = _voxels_about(dtype, round((PADDING_BELOW_HU - intercept) / slope), seed)

    n_padding, _ = check_voxels(stored, slope, intercept, Path("case.nii"))

    assert n_padding == np.count_nonzero(scaled_hu(stored, slope, intercept) < PADDING_BELOW_HU)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "first_unpadded"),
    [("i2", 1.0, 0.0, -1024), ("u2", 1.0, -1024.0, 0), ("u2", 1.0, -8192.0, 7168), ("i2", 2.0, 0.0, -512),
     ("i1", 1.0, 0.0, -128), ("u1", 1.0, -1e6, 256), ("i2", 1.0, -1e6, 32768)],
)  # fmt: skip
def test_the_integers_below_the_first_that_is_not_padding_are_padding(dtype, slope, intercept, first_unpadded) -> None:
    limits = np.iinfo(dtype)
    stored = np.arange(limits.min, limits.max + 1, dtype=dtype).reshape(1, 16, -1)

    assert check_voxels(stored, slope, intercept, Path("case.nii"))[0] == first_unpadded - limits.min


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4"])
def test_a_type_without_a_value_above_padding_is_all_padding(dtype: str) -> None:
    stored = np.full((2, 3, 4), np.iinfo(dtype).max if dtype != "i4" else 900_000, dtype=dtype)

    n_padding, _ = check_voxels(stored, 1.0, -1e6, Path("case.nii"))

    assert n_padding == stored.size


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_are_compared_in_hounsfield_units(dtype: str) -> None:
    stored = np.array([[[0, 1, 2, 3]]], dtype=dtype)

    assert check_voxels(stored, 1.0, -1026.0, Path("case.nii"))[0] == 2
