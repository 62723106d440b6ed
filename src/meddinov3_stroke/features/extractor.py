"""What the loop over volumes needs of a `FeatureExtractor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.types import BackboneIdentity, SliceEmbeddings, SliceSelection, Volume


@runtime_checkable
class Encoder(Protocol):
    """A backbone, as far as the loop needs it."""

    @property
    def identity(self) -> BackboneIdentity:
        """What decides its output."""
        ...

    @property
    def device(self) -> str:
        """Where it computes."""
        ...

    @property
    def independent_rows(self) -> bool:
        """Whether a slice's token has the same bits whatever other slices are in the pass."""
        ...

    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        """Class tokens of prepared slices."""
        ...

    def refuse_non_finite(self, cls: Float32[np.ndarray, "n dim"], *, first: int = 0) -> None:
        """Raise `NonFiniteEmbedding` where a token is no number."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """A backbone with the size, batch and slices it is given."""

    @property
    def backbone(self) -> Encoder:
        """The backbone."""
        ...

    @property
    def resize(self) -> int:
        """Side of the square in pixels."""
        ...

    @property
    def batch(self) -> int:
        """Slices in a forward pass."""
        ...

    @property
    def selection(self) -> SliceSelection:
        """Which slices."""
        ...

    def chosen(self, volume: Volume) -> Int64[np.ndarray, " chosen"]:
        """The slices of a volume that are embedded."""
        ...

    def windows(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Iterator[Float32[np.ndarray, "n 1 resize resize"]]:
        """Those slices, prepared, `batch` at a time."""
        ...

    def finisher(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings]:
        """Makes embeddings of their class tokens, without holding the volume."""
        ...
