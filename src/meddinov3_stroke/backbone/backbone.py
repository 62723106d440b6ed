"""The frozen backbone: HU slices in, tokens out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.architecture import ClassTokens, Features, Kept, PatchTokens, Pixels
from meddinov3_stroke.backbone.head_patches import kept_patches, leave_out, passes, spread
from meddinov3_stroke.backbone.preprocessing import prepare_channel
from meddinov3_stroke.errors import MachineError, NonFiniteEmbedding, UsageError
from meddinov3_stroke.system.progress import read_ahead
from meddinov3_stroke.types import BackboneIdentity, SliceTokens

LOGGER = logging.getLogger("meddinov3_stroke")

WINDOWS_AHEAD = 2
"""Windows of prepared slices that wait for the engine while it works."""

Infer = Callable[[Pixels, Kept | None], tuple[np.ndarray, ...]]
"""One pass: tokens of slices, or of the same number of patches of each."""


class Backbone:
    """A frozen transformer and its identity; its engine is made at first use. Holds nothing about a case.

    `make_engine` gives a `TorchEngine` or an `OpenVINOEngine`, or anything with their `class_tokens`, `tokens` and, for
    views other than class tokens, `features`.
    """

    def __init__(
        self, identity: BackboneIdentity, device: str, make_engine: Callable[[], Any], warnings: tuple[str, ...] = ()
    ) -> None:
        self.identity = identity
        self.device = device
        self.warnings = warnings
        """What every output of this backbone must state."""
        self._make_engine = make_engine
        self._made_engine: Any = None
        self._lock = Lock()
        self._most_slices: int | None = None
        """Slices in a pass, once memory has run out."""
        self._shares_bits: dict[tuple[int, ...], bool] = {}
        """Shape of a pass -> whether the class tokens of `features` are those of `class_tokens` to the last bit."""

    def __repr__(self) -> str:
        return f"Backbone({self.identity.name!r}, {self.identity.engine} {self.identity.precision} on {self.device})"

    @property
    def independent_rows(self) -> bool:
        """Whether a slice's tokens have the same bits whatever other slices are in the pass.

        In torch the last bits of a product depend on how its rows are tiled (3e-7).
        """
        return self.identity.engine == "openvino"

    @property
    def _engine(self) -> Any:
        with self._lock:
            if self._made_engine is None:
                self._made_engine = self._make_engine()
            return self._made_engine

    def embed(
        self,
        hu: Float32[np.ndarray, "n row col"],
        resize: int = 224,
        batch: int = 8,
        patches: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> SliceTokens:
        """Class tokens, and patch tokens on request, of HU slices in canonical orientation.

        `resize` is the side in pixels of the square the slices are brought to; `batch` the slices of a forward pass,
        halved when memory runs out; `on_batch` is called with the number of slices just finished. Raises UsageError,
        NonFiniteEmbedding for tokens that are NaN or infinite, MachineError if one slice alone does not fit in memory.
        """
        if batch < 1:
            raise UsageError(f"--batch {batch}: found {batch}, expected at least 1")
        if hu.ndim != 3 or 0 in hu.shape:
            raise UsageError(f"slices to embed: found an array of shape {hu.shape}, expected [n, row, col] with n >= 1")
        side = self.side(resize)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        windows = (self.prepare(hu[start : start + batch], resize) for start in range(0, len(hu), batch))
        with closing(read_ahead(windows, WINDOWS_AHEAD)) as prepared:
            for cls, patch_tokens in chain.from_iterable(self._passes(pixels, patches) for pixels in prepared):
                self.refuse_non_finite(cls, patch_tokens, first=sum(len(before) for before, _ in found))
                found.append((cls, patch_tokens))
                if on_batch is not None:
                    on_batch(len(cls))
        all_cls, all_patches = map(np.concatenate, zip(*found, strict=True))
        return SliceTokens(all_cls, all_patches if patches else None, (side, side))

    def prepare(
        self, hu: Float32[np.ndarray, "n row col"], resize: int, window: tuple[float, float] | None = None
    ) -> Float32[np.ndarray, "n 1 resize resize"]:
        """Pixels as the engine takes them, from HU in canonical orientation; a slice fills the square, whatever its
        proportions (`distortion_warning` compares them in mm). A `window` in HU is mapped to the range of the weights.
        """
        recipe = self.identity.preprocessing
        if window is not None:
            low, high = window
            shares = (np.clip(hu, low, high) - np.float32(low)) / np.float32(high - low)
            hu = shares * np.float32(recipe.hu_max - recipe.hu_min) + np.float32(recipe.hu_min)
        return prepare_channel(hu, resize, recipe)

    def without_air(self, pixels: Pixels, hu: Float32[np.ndarray, "n height width"]) -> Pixels:
        """The pixels of these slices with patches of pure air marked, so that `class_tokens`, `tokens` and `features`
        leave them out of the token sequence (`head_patches`)."""
        patch = self.identity.patch_size
        return leave_out(pixels, kept_patches(hu, pixels.shape[-1], patch), patch)

    def class_tokens(self, pixels: Pixels, most: int | None = None) -> ClassTokens:
        """Class tokens of prepared pixels, `most` slices in a pass, or fewer if memory runs out; they may be NaN.

        They differ from those of `tokens` in their last bits (3e-7), because the last block computes nothing else.
        Embeddings, cached or not, are always these. Raises MachineError if one slice alone does not fit in memory.
        """
        return self._by_length(pixels, lambda some, kept: (self._engine.class_tokens(*_given(some, kept)),), most)[0]

    def features(self, pixels: Pixels, most: int | None = None) -> Features:
        """Class tokens to the bits of `class_tokens`, patch tokens, and class tokens after four blocks, in one pass."""
        cls, patches, blocks = self._by_length(pixels, self._features, most)
        return cls, patches, blocks

    def _features(self, pixels: Pixels, kept: Kept | None) -> Features:
        cls, patches, blocks = self._engine.features(*_given(pixels, kept))
        shape = (*pixels.shape, 0 if kept is None else kept.shape[1])
        if not self._shares_bits.get(shape):  # always so on CPUs in fp32 and bf16, which tests pin; checked once
            expected = self._engine.class_tokens(*_given(pixels, kept))
            self._shares_bits.setdefault(shape, np.array_equal(cls, expected))
            cls = expected
        return cls, patches, blocks

    def tokens(self, pixels: Pixels, most: int | None = None) -> tuple[ClassTokens, PatchTokens]:
        """Class tokens and patch tokens (row-major) of prepared pixels; otherwise as `class_tokens`."""
        cls, patches = self._by_length(pixels, lambda *some: self._engine.tokens(*_given(*some)), most)
        return cls, patches

    def _by_length(self, pixels: Pixels, infer: Infer, most: int | None = None) -> tuple[np.ndarray, ...]:
        """What `infer` gives for the slices: those with patches `LEFT_OUT` in passes of one length, whose patch tokens
        are spread over the grid, with zeros for the patches left out."""
        patch = self.identity.patch_size
        found: tuple[np.ndarray, ...] = ()
        for rows, kept in passes(pixels, patch):
            some = tuple(map(np.concatenate, zip(*self._split(pixels[rows], infer, kept, most), strict=True)))
            if len(rows) == len(pixels) and kept is None:
                return some
            if kept is not None:
                grid = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
                some = tuple(spread(part, kept, grid) if part.ndim == 3 else part for part in some)
            found = found or tuple(np.empty((len(pixels), *part.shape[1:]), part.dtype) for part in some)
            for part, of_rows in zip(found, some, strict=True):
                part[rows] = of_rows
        return found

    def warm_up(self, resize: int, head_only: bool = False) -> None:
        """Make the engine and its graphs for slices of `resize` pixels, or some patches of them, ahead of the first
        pass."""
        kept = np.zeros((1, 1), dtype=np.int64) if head_only else None
        engine, blank = self._engine, np.zeros((1, 1, resize, resize), dtype=np.float32)
        engine.class_tokens(*_given(blank, kept))
        engine.tokens(*_given(blank, kept))

    def side(self, resize: int) -> int:
        """Patches along a side of the square; raises UsageError unless `resize` is a multiple of the patch size."""
        patch = self.identity.patch_size
        if resize < patch or resize % patch:
            nearest = max(patch, round(resize / patch) * patch)
            raise UsageError(
                f"--resize {resize}: found {resize}, expected a multiple of {patch}; the nearest is {nearest}"
            )
        return resize // patch

    def refuse_non_finite(self, cls: ClassTokens, patches: np.ndarray | None = None, *, first: int = 0) -> None:
        """Raise NonFiniteEmbedding unless all tokens are finite; `first` is the position of the first slice."""
        finite = np.isfinite(cls).all(axis=1)
        if patches is not None and patches.size:
            finite &= np.isfinite(patches).all(axis=(1, 2))
        if not finite.all():
            rows = first + np.nonzero(~finite)[0]
            raise NonFiniteEmbedding(
                f"backbone {self.identity.name} gave NaN or infinity for {len(rows)} of the slices given, first at "
                f"position {rows[0]} (engine {self.identity.engine}, precision {self.identity.precision}); check the "
                "HU of the slice, or use --precision fp32"
            )

    def _passes(self, pixels: np.ndarray, patches: bool) -> Iterator[tuple[np.ndarray, ...]]:
        no_patches = np.empty(0, dtype=np.float32)
        return self._split(
            pixels,
            lambda some, _: self._engine.tokens(some) if patches else (self._engine.class_tokens(some), no_patches),
        )

    def _split(
        self, pixels: np.ndarray, infer: Infer, kept: Kept | None = None, most: int | None = None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """What `infer` gives for the slices, in smaller passes if memory runs out."""
        start = 0
        while start < len(pixels):
            some = pixels[start : start + min(self._most_slices or len(pixels), most or len(pixels))]
            tokens: tuple[np.ndarray, ...] | None = None
            try:
                tokens = infer(some, None if kept is None else kept[start : start + len(some)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(some) == 1:
                    raise MachineError(
                        f"{self.device} has too little memory for one slice at --resize {some.shape[-1]}; use a "
                        "smaller --resize, free memory, or --device cpu"
                    ) from error
            if tokens is not None:
                yield tokens
                start += len(some)
            else:  # outside the handler: the error's frames hold the tensors of the pass
                release_cached_memory(self.device)
                self._most_slices = n = len(some) // 2
                LOGGER.warning("%s ran out of memory; continuing with %d slice(s) in a pass", self.device, n)


def _given(pixels: Pixels, kept: Kept | None) -> tuple[Any, ...]:
    """Arguments of an engine, of which only those that can leave patches out take `kept`."""
    return (pixels,) if kept is None else (pixels, kept)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the host, had no memory left for a forward pass."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return True
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "bad_alloc", "bad allocation", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def release_cached_memory(device: str) -> None:
    """Return the device memory that torch keeps for later, so that a smaller pass finds room."""
    torch = sys.modules.get("torch")
    if torch is not None and device != "cpu":
        (torch.mps if device == "mps" else torch.cuda).empty_cache()
