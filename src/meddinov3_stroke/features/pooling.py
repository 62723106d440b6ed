"""Which slices of a volume are embedded, and how their embeddings become one vector."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import SliceSelection

PoolMode = Literal["mean", "max", "mean_max"]
"""`mean` is the baseline; `max` keeps the strongest slice per dimension; `mean_max` is the two side by side (2 d)."""

POOL_MODES: tuple[str, ...] = get_args(PoolMode)
"""The names in `PoolMode`."""


def pool_mode_name(mode: str) -> PoolMode:
    """The pool mode by its own name; `meanmax` is another spelling of `mean_max`.

    Raises:
        UsageError: an unknown mode.
    """
    name = "mean_max" if mode == "meanmax" else mode
    if name not in POOL_MODES:
        raise UsageError(f"--pool-mode {mode!r}: expected one of {', '.join(POOL_MODES)}")
    return name  # type: ignore[return-value]


def pool_slices(cls: Float32[np.ndarray, "n dim"], mode: str) -> Float32[np.ndarray, " pooled"]:
    """One vector per volume: [dim] for mean and max, [2 dim] (mean, then max) for mean_max.

    The mean is summed in float64, so that rounding does not grow with the number of slices.

    Raises:
        UsageError: no slice (the mean of nothing), or an unknown mode.
    """
    name = pool_mode_name(mode)
    if cls.shape[0] == 0:
        raise UsageError("no slice embeddings to pool; the selection left no slice of the volume")
    mean = cls.mean(axis=0, dtype=np.float64).astype(np.float32)
    if name == "mean":
        return np.asarray(mean)
    return np.asarray(cls.max(axis=0)) if name == "max" else np.concatenate([mean, cls.max(axis=0)])


def select_slices(n_slices: int, selection: SliceSelection) -> Int64[np.ndarray, " chosen"]:
    """Ascending, distinct 0-based indices: every `stride`-th slice, then at most `max_slices` of those, evenly spaced.

    The evenly spaced ones are the middles of `max_slices` equal parts, so one slice is the middle one and neither end
    of the head is favoured.

    Raises:
        UsageError: `stride` below 1, `max_slices` below 0, or no slice to choose from.
    """
    if selection.stride < 1:
        raise UsageError(f"--stride {selection.stride}: expected 1 or more; use 1 to take every slice")
    if selection.max_slices < 0:
        raise UsageError(f"--max-slices {selection.max_slices}: expected 0 (no limit) or more")
    strided = np.arange(0, n_slices, selection.stride, dtype=np.int64)
    if strided.size == 0:
        raise UsageError(f"--stride {selection.stride} leaves none of {n_slices} slices to embed")
    if selection.max_slices == 0 or selection.max_slices >= strided.size:
        return strided
    middles = (2 * np.arange(selection.max_slices, dtype=np.int64) + 1) * strided.size // (2 * selection.max_slices)
    return strided[middles]
