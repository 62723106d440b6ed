"""Voxels that are not finite, or that are scanner padding."""

from __future__ import annotations

from pathlib import Path

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
    compares_as_stored = stored.dtype.kind in "iu" and slope == 1.0 and float(intercept).is_integer()
    for one_slice in stored:
        if compares_as_stored:  # the same answer as in float32, several times as fast
            n_padding += int(np.count_nonzero(one_slice < int(PADDING_BELOW_HU - intercept)))
            continue
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
