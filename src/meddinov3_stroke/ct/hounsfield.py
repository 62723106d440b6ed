"""Voxels that are not finite, or that are scanner padding, counted without a float copy of the volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.errors import CorruptInput
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU, scaled_hu

MAX_NON_FINITE_SHARE = 1e-3
"""A volume with a larger share of NaN and infinite voxels counts as damaged."""


def check_voxels(
    stored: Real[np.ndarray, "slice row col"], slope: float, intercept: float, path: Path
) -> tuple[int, tuple[str, ...]]:
    """(number of voxels below `PADDING_BELOW_HU`, warnings about them and about non-finite ones).

    Raises:
        CorruptInput: more than 0.1 % of the voxels are NaN or infinite in HU.
    """
    n_non_finite = n_padding = 0
    if stored.dtype.kind in "iu":  # finite with any slope a header may have
        bound = first_unpadded(stored.dtype, slope, intercept)
        n_padding = sum(int(np.count_nonzero(one_slice < bound)) for one_slice in stored)
    else:
        for one_slice in stored:
            hu = scaled_hu(one_slice, slope, intercept)
            finite = np.isfinite(hu)
            n_non_finite += hu.size - int(np.count_nonzero(finite))
            n_padding += int(np.count_nonzero(finite & (hu < PADDING_BELOW_HU)))
    share = n_non_finite / stored.size
    if share > MAX_NON_FINITE_SHARE:
        raise CorruptInput(
            f"{path}: {n_non_finite} of {stored.size} voxels ({share:.1%}) are NaN or infinite; at most "
            f"{MAX_NON_FINITE_SHARE:.1%} are replaced by air; the volume is damaged; convert it again"
        )
    warnings = []
    if n_non_finite:
        warnings.append(f"{n_non_finite} voxels are NaN or infinite and read as {AIR_HU:g} HU")
    if n_padding:
        warnings.append(f"{n_padding} voxels below {PADDING_BELOW_HU:g} HU are padding and read as {AIR_HU:g} HU")
    return n_padding, tuple(warnings)


def first_unpadded(dtype: np.dtype[Any], slope: float, intercept: float) -> int:
    """The least integer of `dtype` that reads as `PADDING_BELOW_HU` or more; one above its range if there is none.

    Found by bisection, since a positive slope keeps the order of values in float32 too.
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
