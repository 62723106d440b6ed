"""A frozen backbone with the size, batch and slices it is given; holds nothing about a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.errors import NonFiniteEmbedding, UsageError
from meddinov3_stroke.features.pooling import select_slices
from meddinov3_stroke.types import SliceEmbeddings, SliceSelection, SliceTokens, Volume

EVERY_SLICE = SliceSelection()
"""Every slice of a volume."""


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A backbone and how slices are given to it; any number of cases may share one."""

    backbone: Backbone
    resize: int = 224
    """Side in pixels of the square the backbone sees; a multiple of its patch size."""
    batch: int = 8
    """Slices in a forward pass."""
    selection: SliceSelection = EVERY_SLICE
    """Which slices of a volume are embedded."""

    def embed(self, volume: Volume) -> SliceEmbeddings:
        """Class tokens of the chosen slices of a volume in memory; `extract` is faster on files.

        Raises:
            UsageError: no slice is chosen, or `resize` or `batch` cannot be honoured.
            NonFiniteEmbedding: the backbone gave NaN or infinity.
        """
        chosen = self.chosen(volume)
        cls = np.concatenate([self.backbone.class_tokens(pixels) for pixels in self.windows(volume, chosen)])
        with naming(volume.source.path):
            self.backbone.refuse_non_finite(cls)
        return self.finisher(volume, chosen)(cls)

    def tokens(self, volume: Volume, slice_indices: Sequence[int] | Int64[np.ndarray, " n"]) -> SliceTokens:
        """Class and patch tokens of the given slices, whatever the selection is.

        Raises:
            UsageError: `resize` or `batch` cannot be honoured.
            NonFiniteEmbedding: the backbone gave NaN or infinity.
        """
        side = self.backbone.side(self.resize)
        windows = self.windows(volume, np.asarray(slice_indices, dtype=np.int64))
        parts = [self.backbone.tokens(pixels) for pixels in windows]
        cls, patches = (np.concatenate(some) for some in zip(*parts, strict=True))
        with naming(volume.source.path):
            self.backbone.refuse_non_finite(cls, patches)
        return SliceTokens(cls, patches, (side, side))

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Makes the engine in a background thread during the block, as the input is read."""
        blank = np.zeros((1, 1, self.resize, self.resize), dtype=np.float32)

        def warm_up() -> None:
            with suppress(Exception):  # raised again, where it matters, by the first pass
                self.backbone.side(self.resize)
                self.backbone.class_tokens(blank)
                self.backbone.tokens(blank)

        thread = Thread(target=warm_up, name="warm-up")
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def chosen(self, volume: Volume) -> Int64[np.ndarray, " chosen"]:
        """The slices of a volume that are embedded, in ascending order.

        Raises:
            UsageError: none is left.
        """
        return select_slices(volume.n_slices, self.selection)

    def windows(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Iterator[Float32[np.ndarray, "n 1 resize resize"]]:
        """The chosen slices as the backbone takes them, `batch` at a time; only those are in float at a time.

        Raises:
            UsageError: `resize` or `batch` cannot be honoured.
        """
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: expected at least 1")
        self.backbone.side(self.resize)
        starts = range(0, len(chosen), self.batch)
        hu = (volume.hu_slices(chosen[start : start + self.batch]) for start in starts)
        return (self.backbone.prepare(slices, self.resize) for slices in hu)

    def finisher(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings]:
        """Makes embeddings of the class tokens of the chosen slices; keeps the volume's origin, not its voxels."""
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's path in front of the message of a `NonFiniteEmbedding` raised in the block."""
    try:
        yield
    except NonFiniteEmbedding as error:
        raise NonFiniteEmbedding(f"{path}: {error}") from error


def squash_warnings(volume: Volume, resize: int) -> tuple[str, ...]:
    """The warning for a volume whose slices are not square."""
    n_rows, n_columns = volume.stored.shape[1:]
    if n_rows == n_columns:
        return ()
    return (f"slices of {n_rows} x {n_columns} pixels are squashed to {resize} x {resize}",)
