"""Which slices of a volume are embedded."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import SliceSelection


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
        raise UsageError(f"no slice is left of {n_slices} with --stride {selection.stride}; nothing can be embedded")
    if selection.max_slices == 0 or selection.max_slices >= strided.size:
        return strided
    middles = (2 * np.arange(selection.max_slices, dtype=np.int64) + 1) * strided.size // (2 * selection.max_slices)
    return strided[middles]
