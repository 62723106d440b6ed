"""From the embeddings of slices to one vector per volume."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.errors import UsageError

PoolMode = Literal["mean", "max", "mean_max"]
"""`mean` is the baseline; `max` keeps the strongest slice per dimension; `mean_max` is the two side by side (2 d)."""

POOL_MODES: tuple[str, ...] = get_args(PoolMode)
"""The names in `PoolMode`."""


def pool_slices(cls: Float32[np.ndarray, "n dim"], mode: PoolMode) -> Float32[np.ndarray, " pooled"]:
    """One vector per volume: [dim] for mean and max, [2 dim] (mean, then max) for mean_max.

    The mean is summed in float64, so that it does not depend on the number of slices' rounding.

    Raises:
        UsageError: no slice (the mean of nothing), or an unknown mode.
    """
    if mode not in POOL_MODES:
        raise UsageError(f"pool mode {mode!r}: expected one of {', '.join(POOL_MODES)}")
    if cls.shape[0] == 0:
        raise UsageError("no slice embedding to pool; the selection left no slice of the volume")
    if mode == "mean":
        return _mean(cls)
    if mode == "max":
        return np.asarray(cls.max(axis=0))
    return np.concatenate([_mean(cls), cls.max(axis=0)])


def _mean(cls: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, " dim"]:
    return np.asarray(cls.mean(axis=0, dtype=np.float64).astype(np.float32))
