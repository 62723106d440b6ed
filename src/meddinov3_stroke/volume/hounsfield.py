"""Judging voxel values once, as they will be read: no number, or scanner padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Real

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
    n_non_finite = n_padding = 0
    for one_slice in stored:
        hu = scaled_hu(one_slice, slope, intercept)
        finite = np.isfinite(hu)
        n_non_finite += hu.size - int(np.count_nonzero(finite))
        n_padding += int(np.count_nonzero(finite & (hu < PADDING_BELOW_HU)))
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
