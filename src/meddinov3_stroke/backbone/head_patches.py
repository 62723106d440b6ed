"""Which patches of a slice show the head or anything else that is not air, and passes over these alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int64

from meddinov3_stroke.backbone.architecture import Kept, Pixels
from meddinov3_stroke.backbone.preprocessing import prepare_channel
from meddinov3_stroke.types import Preprocessing

AIR_HU = -900.0
"""A patch whose resized slice is below this throughout is pure air."""

LEFT_OUT = np.float32(-np.inf)
"""Value of the pixels of patches that are not in the token sequence; clipped HU never have it."""

LENGTHS = 24
"""Sequence lengths of a side, about: the number of kept patches is rounded up to a multiple of a 24th of the grid (8 of
14 x 14), so that slices of one length share a pass without a mask."""

HU_AS_STORED = Preprocessing(hu_min=-1000.0, hu_max=1000.0, mean=0.0, std=1.0, version="hu")
"""HU resized as the backbone's pixels are, whatever window its weights expect."""


def kept_patches(hu: Float32[np.ndarray, "n row col"], resize: int, patch_size: int) -> Bool[np.ndarray, "n patch"]:
    """Whether each patch (row-major) stays in the token sequence, which depends on nothing but its slice.

    All that are not pure air stay and, to make the number a multiple of the step of `LENGTHS`, the first of the others:
    at least one step, so a slice of nothing but air has a sequence too.
    """
    side = resize // patch_size
    pixels = prepare_channel(hu, resize, HU_AS_STORED).reshape(len(hu), side, patch_size, side, patch_size)
    is_head = ~(pixels.max(axis=(2, 4)).reshape(len(hu), side * side) < AIR_HU)  # NaN stays, and is found later
    step = max(1, side * side // LENGTHS)
    n_kept = np.clip(-(-is_head.sum(axis=1) // step), 1, None) * step
    order = np.argsort(~is_head, axis=1, kind="stable")  # those with head first, then air, each row-major
    kept = np.zeros(is_head.shape, dtype=bool)
    np.put_along_axis(kept, order, np.arange(side * side) < n_kept[:, None], axis=1)
    return kept


def leave_out(pixels: Pixels, kept: Bool[np.ndarray, "n patch"], patch_size: int) -> Pixels:
    """The pixels with the patches that are not kept marked as `LEFT_OUT`."""
    n, channels, resize, _ = pixels.shape
    side = resize // patch_size
    patches = pixels.reshape(n, channels, side, patch_size, side, patch_size)
    marks = kept.reshape(n, 1, side, 1, side, 1)
    marked: Pixels = np.where(marks, patches, LEFT_OUT).reshape(pixels.shape)
    return marked


def passes(pixels: Pixels, patch_size: int) -> Iterator[tuple[Int64[np.ndarray, " some"], Kept | None]]:
    """(positions of slices with sequences of one length, patches of each), by rising length; None: all patches."""
    in_sequence = (pixels[:, 0, ::patch_size, ::patch_size] != LEFT_OUT).reshape(len(pixels), -1)
    counts = in_sequence.sum(axis=1)
    for n_kept in np.unique(counts):
        rows = np.nonzero(counts == n_kept)[0]
        everything = n_kept == in_sequence.shape[1]
        yield rows, None if everything else np.nonzero(in_sequence[rows])[1].reshape(len(rows), n_kept)


def spread(tokens: Float32[np.ndarray, "n kept dim"], kept: Kept, n_patches: int) -> Float32[np.ndarray, "n patch dim"]:
    """The tokens at their places in the whole grid; patches left out are zero."""
    whole = np.zeros((len(tokens), n_patches, tokens.shape[2]), dtype=np.float32)
    np.put_along_axis(whole, kept[..., None], tokens, axis=1)
    return whole
