"""The frozen backbone as the rest of the house sees it: HU slices in, tokens out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from meddinov3_stroke.backbone.engines import Engine
from meddinov3_stroke.backbone.preprocessing import prepare_slices
from meddinov3_stroke.errors import MachineError, NonFiniteEmbedding, UsageError
from meddinov3_stroke.types import BackboneIdentity, SliceTokens

LOGGER = logging.getLogger("meddinov3_stroke")


class Backbone:
    """An engine and its identity; holds the model and nothing about a case."""

    def __init__(self, engine: Engine, identity: BackboneIdentity, device: str) -> None:
        self.identity = identity
        self.device = device
        self._engine = engine
        self._told_of_squashing = False

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
        halved when memory runs out; `on_batch` is told the number of slices just finished.

        Raises:
            UsageError: no slices, a batch below 1, or a resize that is no multiple of the patch size.
            NonFiniteEmbedding: the tokens of a slice are NaN or infinite.
            MachineError: one slice alone does not fit in memory.
        """
        side = self._check(hu, resize, batch)
        self._warn_of_squashing(hu.shape[1], hu.shape[2], resize)
        found_cls, found_patches = [], []
        for start, (cls, patch_tokens) in self._batches(hu, resize, batch):
            self._refuse_non_finite(cls, patch_tokens, start)
            found_cls.append(cls.numpy())
            if patches:
                found_patches.append(patch_tokens.numpy())
            if on_batch is not None:
                on_batch(len(cls))
        return SliceTokens(
            cls=np.concatenate(found_cls),
            patches=np.concatenate(found_patches) if patches else None,
            grid=(side, side),
        )

    def _check(self, hu: Float32[np.ndarray, "n row col"], resize: int, batch: int) -> int:
        patch = self.identity.patch_size
        if resize < patch or resize % patch:
            nearest = max(patch, round(resize / patch) * patch)
            raise UsageError(
                f"--resize {resize}: found {resize}, expected a multiple of {patch}; the nearest is {nearest}"
            )
        if batch < 1:
            raise UsageError(f"--batch {batch}: found {batch}, expected at least 1")
        if hu.ndim != 3 or 0 in hu.shape:
            raise UsageError(f"slices to embed: found an array of shape {hu.shape}, expected [n, row, col] with n >= 1")
        return resize // patch

    def _batches(
        self, hu: Float32[np.ndarray, "n row col"], resize: int, batch: int
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """(first slice, its batch's tokens), in order; the batch halves for good when memory runs out."""
        start = 0
        while start < len(hu):
            tokens = self._tokens_or_none(hu[start : start + batch], resize, batch)
            if tokens is None:
                batch = max(1, min(batch, len(hu) - start) // 2)
                LOGGER.warning("%s ran out of memory; going on with %d slice(s) in a pass", self.device, batch)
                continue
            yield start, tokens
            start += len(tokens[0])

    def _tokens_or_none(
        self, hu: Float32[np.ndarray, "n row col"], resize: int, batch: int
    ) -> tuple[Tensor, Tensor] | None:
        try:
            return self._engine.tokens(prepare_slices(hu, resize, self.identity.preprocessing))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(hu) == 1:
                raise MachineError(
                    f"{self.device} has too little memory for one slice at --resize {resize}; use a smaller --resize, "
                    "free memory, or --device cpu"
                ) from error
        release_cached_memory(self.device)  # outside the handler: the error's frames hold the tensors of the pass
        return None

    def _refuse_non_finite(self, cls: Tensor, patch_tokens: Tensor, start: int) -> None:
        finite = cls.isfinite().all(dim=1) & patch_tokens.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            rows = (start + torch.nonzero(~finite).flatten()).tolist()
            raise NonFiniteEmbedding(
                f"backbone {self.identity.name} gave NaN or infinity for {len(rows)} of the slices given, first at "
                f"position {rows[0]} (engine {self.identity.engine}, precision {self.identity.precision}); check the "
                "HU of the slice, or use --precision fp32"
            )

    def _warn_of_squashing(self, n_rows: int, n_columns: int, resize: int) -> None:
        if n_rows != n_columns and not self._told_of_squashing:
            LOGGER.warning("slices of %d x %d are squashed to %d x %d", n_rows, n_columns, resize, resize)
            self._told_of_squashing = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the host, had no memory left for a forward pass."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_cached_memory(device: str) -> None:
    """Hand the device memory that torch keeps for later back, so that a smaller pass finds room."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
