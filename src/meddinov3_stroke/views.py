"""What is taken of each slice for the cache, and how its patch tokens are compressed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int8

from meddinov3_stroke.errors import UsageError

WINDOWS_HU: dict[str, tuple[float, float]] = {
    "brain": (0.0, 80.0),
    "subdural": (-20.0, 180.0),
    "bone": (-800.0, 2000.0),
}
"""Lowest and highest HU of the windows (width and level 80/40, 200/80 and 2800/600), mapped to the range of the
weights."""

WINDOWS: tuple[str, ...] = ("native", *WINDOWS_HU, "neighbours")
"""Inputs of the backbone: the HU range of its weights; a window; or the slices below, itself and above as channels."""

TAKEN: tuple[str, ...] = ("cls", "stats", "blocks", "patches")
LIMIT = 127
"""Largest code of a compressed component, and with a minus sign the least."""

GRAMMAR = re.compile(r"(?P<taken>[a-z]+)(?P<k>\d+)?(@(?P<window>[a-z]+))?(?P<head>\+head)?")


@dataclass(frozen=True)
class View:
    """What is taken of each slice: written TAKEN[@WINDOW][+head], such as cls, stats@brain or patches64."""

    taken: str = "cls"
    """`cls`: class token [dim]. `stats`: mean, maximum and mean of the highest patches of each channel [3 dim].
    `blocks`: class tokens after four evenly spaced blocks [4 dim]. `patches`: patch tokens [patch, dim]."""
    n_components: int = 0
    """Of `patches`: principal components that are kept, as int8; 0 keeps all channels, as float16."""
    window: str = "native"
    head_only: bool = False
    """Whether patches of pure air are left out of the token sequence."""
    basis: PatchBasis | None = field(default=None, compare=False, repr=False)
    """Of `patchesK`, once it is known."""

    @classmethod
    def parse(cls, text: str) -> View:
        """The view of this name; raises UsageError."""
        match = GRAMMAR.fullmatch(text.strip())
        found = match and cls(match["taken"], int(match["k"] or 0), match["window"] or "native", bool(match["head"]))
        is_known = found and found.taken in TAKEN and found.window in WINDOWS
        if not (match and found and is_known) or (match["k"] and (found.taken != "patches" or not found.n_components)):
            raise UsageError(
                f"view {text!r}: expected {'|'.join(TAKEN)} or patchesK (K components, such as patches64), then "
                f"optionally @{'|@'.join(WINDOWS)}, then optionally +head"
            )
        return found

    @property
    def name(self) -> str:
        """The view in its shortest spelling."""
        window = "" if self.window == "native" else f"@{self.window}"
        return f"{self.taken}{self.n_components or ''}{window}{'+head' if self.head_only else ''}"

    @property
    def input(self) -> str:
        """What the backbone is given; views with the same input are computed in one pass."""
        return f"{self.window}{'+head' if self.head_only else ''}"

    @property
    def on_patches(self) -> bool:
        """Whether a slice gives several rows, one a patch, instead of one."""
        return self.taken == "patches"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its values in the store."""
        return np.dtype(np.float32 if not self.on_patches else np.int8 if self.n_components else np.float16)

    def shape(self, n_patches: int, dim: int) -> tuple[int, ...]:
        """Shape of what it takes of a slice."""
        widths = {"cls": dim, "stats": 3 * dim, "blocks": 4 * dim, "patches": self.n_components or dim}
        return (n_patches, widths[self.taken]) if self.on_patches else (widths[self.taken],)

    @property
    def key(self) -> str:
        """The view in a cache key: its name and, of compressed patches, the digest of the basis."""
        return self.name if self.basis is None else f"{self.name}:{self.basis.sha256}"


@dataclass(frozen=True, eq=False)
class PatchBasis:
    """Principal components of patch tokens, fitted on training series only, and the step of the codes of each."""

    mean: Float32[np.ndarray, " dim"]
    components: Float32[np.ndarray, "dim k"]  # orthonormal columns, by falling variance
    scale: Float32[np.ndarray, " k"]

    @cached_property
    def sha256(self) -> str:
        """Digest of the three arrays and their shapes."""
        arrays = [np.ascontiguousarray(one, dtype="<f4") for one in (self.mean, self.components, self.scale)]
        content = repr([one.shape for one in arrays]).encode("ascii") + b"".join(one.tobytes() for one in arrays)
        return hashlib.sha256(content).hexdigest()

    def codes(self, patches: Float[np.ndarray, "*n patch dim"]) -> Int8[np.ndarray, "*n patch k"]:
        """Patch tokens as multiples of `scale` along the components, within -127 and 127.

        In float64: the float32 product depends on the number of BLAS threads, which would flip a code in a million.
        """
        steps = ((patches.astype(np.float64) - self.mean) @ self.components.astype(np.float64)) / self.scale
        return np.asarray(np.clip(np.rint(steps), -LIMIT, LIMIT).astype(np.int8))

    def values(self, codes: Int8[np.ndarray, "*n patch k"]) -> Float32[np.ndarray, "*n patch k"]:
        """What heads see of codes: the coordinates along the components."""
        return np.asarray(codes * self.scale)

    def patches(self, codes: Int8[np.ndarray, "*n patch k"]) -> Float32[np.ndarray, "*n patch dim"]:
        """The patch tokens that codes stand for."""
        return np.asarray(self.values(codes) @ self.components.T + self.mean)
