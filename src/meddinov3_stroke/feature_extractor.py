"""From a volume to slice embeddings and patch tokens: a backbone, how it is fed, and nothing about a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.errors import NonFiniteEmbedding, UsageError
from meddinov3_stroke.explain import patch_similarity
from meddinov3_stroke.features import pool_slices, select_slices
from meddinov3_stroke.types import SliceEmbeddings, SliceSelection, SliceTokens, Volume

__all__ = [
    "EVERY_SLICE",
    "FeatureExtractor",
    "naming",
    "patch_similarity",
    "pool_slices",
    "select_slices",
    "squash_warnings",
]

EVERY_SLICE = SliceSelection()
"""No slice is left out."""


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen backbone with the size, batch and slices it is given; may be shared by any number of cases."""

    backbone: Backbone
    resize: int = 224
    """Side in pixels of the square the backbone sees; a multiple of its patch size."""
    batch: int = 8
    """Slices in a forward pass."""
    selection: SliceSelection = EVERY_SLICE
    """Which slices of a volume are embedded."""

    def embed(self, volume: Volume, on_batch: Callable[[int], None] | None = None) -> SliceEmbeddings:
        """Class tokens of the chosen slices; `on_batch` is told the number of slices just finished.

        Raises:
            UsageError: no slice is chosen, or `resize` or `batch` cannot be honoured.
            NonFiniteEmbedding: the backbone gave NaN or infinity.
        """
        chosen = self.chosen(volume)
        tokens = self.backbone.embed_windows(self._hu_windows(volume, chosen), self.resize, on_batch=on_batch)
        return self.finisher(volume, chosen)(tokens.cls)

    def tokens(self, volume: Volume, slice_indices: Sequence[int] | Int64[np.ndarray, " n"]) -> SliceTokens:
        """Class and patch tokens of the named slices, whatever the selection is.

        Raises:
            UsageError: no slice, or `resize` or `batch` cannot be honoured.
            NonFiniteEmbedding: the backbone gave NaN or infinity.
        """
        return self.backbone.embed(volume.hu_slices(slice_indices), self.resize, self.batch, patches=True)

    def chosen(self, volume: Volume) -> Int64[np.ndarray, " chosen"]:
        """The slices of a volume that are embedded, in ascending order.

        Raises:
            UsageError: none is left, or `batch` cannot be honoured.
        """
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: found {self.batch}, expected at least 1")
        return select_slices(volume.n_slices, self.selection)

    def windows(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Iterator[Float32[np.ndarray, "n 1 resize resize"]]:
        """The chosen slices as the backbone takes them, `batch` at a time; no more of them is ever float.

        Raises:
            UsageError: `resize` cannot be honoured.
        """
        self.backbone.side(self.resize)
        return (self.backbone.prepare(hu, self.resize) for hu in self._hu_windows(volume, chosen))

    def finisher(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings]:
        """Makes embeddings of the class tokens of the chosen slices; remembers the volume's origin, not its voxels."""
        return partial(
            SliceEmbeddings,
            slice_indices=chosen,
            n_slices=volume.n_slices,
            resize=self.resize,
            selection=self.selection,
            backbone=self.backbone.identity,
            source=volume.source,
            warnings=(*volume.warnings, *squash_warnings(volume, self.resize)),
        )

    def _hu_windows(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Iterator[Float32[np.ndarray, "n row col"]]:
        return (volume.hu_slices(chosen[start : start + self.batch]) for start in range(0, len(chosen), self.batch))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file in front of what a `NonFiniteEmbedding` within the block says."""
    try:
        yield
    except NonFiniteEmbedding as error:
        raise NonFiniteEmbedding(f"{path}: {error}") from error


def squash_warnings(volume: Volume, resize: int) -> tuple[str, ...]:
    """What to say of a volume whose slices are not square; nothing where they are."""
    n_rows, n_columns = volume.stored.shape[1:]
    if n_rows == n_columns:
        return ()
    return (f"slices of {n_rows} x {n_columns} pixels are squashed to {resize} x {resize}",)
