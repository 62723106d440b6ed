"""What the rest of the backbone asks of an engine."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32


@runtime_checkable
class Engine(Protocol):
    """Runs a backbone on prepared one-channel pixels; answers are float32 on the CPU, after the final norm."""

    @property
    def independent_rows(self) -> bool:
        """Whether a slice's tokens have the same bits whatever other slices are in the pass."""
        ...

    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        """The class token of each slice."""
        ...

    def class_and_patch_tokens(
        self, pixels: Float32[np.ndarray, "n 1 row col"]
    ) -> tuple[Float32[np.ndarray, "n dim"], Float32[np.ndarray, "n patch dim"]]:
        """The class token and the patch tokens, row-major, of each slice."""
        ...
