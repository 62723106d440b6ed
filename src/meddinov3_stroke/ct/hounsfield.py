"""Judging voxel values once, as they will be read: no number, or scanner padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Real

from meddinov3_stroke.errors import CorruptInput
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU, scaled_hu

MAX_NON_FINITE_SHARE = 1e-3
"""Share of NaN and infinite voxels above which a volume is taken as damaged."""


def judge_voxels(
    stored: Real[np.ndarray, "slice row col"], slope: float, intercept: float, path: Path
) -> tuple[int, tuple[str, ...]]:
    """(padding voxels, warnings): voxels below `PADDING_BELOW_HU`, and what to tell of them and of non-finite ones.

    Raises:
        CorruptInput: more than 0.1 % of the voxels are NaN or infinite.
    """
    if stored.dtype.kind in "iu":  # finite at any slope that a header may have; compared without a float32 copy
        n_non_finite, n_padding = 0, _count_below(stored, first_unpadded(stored.dtype, slope, intercept))
    else:
        n_non_finite, n_padding = _count_in_hu(stored, slope, intercept)
    share = n_non_finite / stored.size
    if share > MAX_NON_FINITE_SHARE:
        raise CorruptInput(
            f"{path}: {n_non_finite} of {stored.size} voxels ({share:.1%}) are NaN or infinite; at most "
            f"{MAX_NON_FINITE_SHARE:.1%} are taken as air; the volume is damaged; convert it again"
        )
    warnings = []
    if n_non_finite:
        warnings.append(f"{n_non_finite} voxels are NaN or infinite and read as {AIR_HU:g} HU")
    if n_padding:
        warnings.append(f"{n_padding} voxels below {PADDING_BELOW_HU:g} HU are padding and read as {AIR_HU:g} HU")
    return n_padding, tuple(warnings)


def first_unpadded(dtype: np.dtype[Any], slope: float, intercept: float) -> int:
    """The least integer of `dtype` that reads as `PADDING_BELOW_HU` or more; one above its range where none does.

    A positive slope keeps the order of values, also in float32, so that bisection finds it.
    """
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max) + 1
    while low < high:
        middle = (low + high) // 2
        if scaled_hu(np.array([middle], dtype=dtype), slope, intercept)[0] < PADDING_BELOW_HU:
            low = middle + 1
        else:
            high = middle
    return low


def _count_below(stored: Integer[np.ndarray, "slice row col"], bound: int) -> int:
    return sum(int(np.count_nonzero(one_slice < bound)) for one_slice in stored)


def _count_in_hu(stored: Real[np.ndarray, "slice row col"], slope: float, intercept: float) -> tuple[int, int]:
    """(voxels that are no finite number in HU, finite voxels below `PADDING_BELOW_HU`)."""
    n_non_finite = n_padding = 0
    for one_slice in stored:
        hu = scaled_hu(one_slice, slope, intercept)
        finite = np.isfinite(hu)
        n_non_finite += hu.size - int(np.count_nonzero(finite))
        n_padding += int(np.count_nonzero(finite & (hu < PADDING_BELOW_HU)))
    return n_non_finite, n_padding
