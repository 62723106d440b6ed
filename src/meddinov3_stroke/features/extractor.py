"""A frozen backbone with the size, batch and slices it is given; slice selection and pooling."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.backbone.architecture import ClassTokens, PatchTokens, Pixels
from meddinov3_stroke.ct.scope import judge, scope_warnings
from meddinov3_stroke.errors import NonFiniteEmbedding, UsageError
from meddinov3_stroke.types import BackboneIdentity, SliceEmbeddings, SliceSelection, SliceTokens, Volume
from meddinov3_stroke.views import WINDOWS_HU, View

PoolMode = Literal["mean", "max", "mean_max"]
"""`mean` is the baseline; `max` keeps the strongest slice per dimension; `mean_max` is the two side by side (2 d)."""

POOL_MODES: tuple[str, ...] = get_args(PoolMode)  # the names in `PoolMode`
SQUARE_TOLERANCE = 0.02  # relative difference of a slice's height and width in mm that is not worth a warning
Tokens = tuple[ClassTokens, PatchTokens | None, np.ndarray | None]
"""Class tokens; patch tokens, and class tokens after four blocks side by side, where a view needs them."""
TOP_SHARE = 0.05  # of a slice's patches, over which the third part of the view `stats` is the mean; 10 of 196
PASSES_SORTED = 16  # passes' worth of slices that are sorted by length where patches of air are left out
EVERY_SLICE = SliceSelection()  # every slice of a volume


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A backbone and how slices are given to it; any number of cases may share one."""

    backbone: Backbone
    resize: int = 224  # side in pixels of the square the backbone sees; a multiple of its patch size
    batch: int = 8  # slices in a forward pass
    selection: SliceSelection = EVERY_SLICE  # which slices of a volume are embedded
    views: tuple[View, ...] = (View(),)
    """What is taken of each slice; the first gives one row a slice, which is pooled."""

    def __post_init__(self) -> None:
        """Raise UsageError where a field cannot be honoured, before a volume is read."""
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: expected at least 1")
        self.backbone.side(self.resize)
        select_slices(1, self.selection)
        if not self.views or self.views[0].on_patches or len(set(self.views)) < len(self.views):
            raise UsageError("views: expected different ones, the first with one row a slice, such as cls")
        for view in self.views:
            self._require_feasible(view)

    def _require_feasible(self, view: View) -> None:
        identity = self.backbone.identity
        expected = (identity.embed_dim, view.n_components)
        found = None if view.basis is None else view.basis.components.shape
        if view.n_components and found != expected:
            raise UsageError(f"view {view.name}: found a basis of shape {found}, expected {expected}; fit one")
        if view.window == "neighbours" and identity.precision == "int8":
            raise UsageError(f"view {view.name} in int8, which is calibrated for equal channels; use --precision bf16")
        if view.head_only and identity.precision == "int8":
            raise UsageError(f"view {view.name} in int8, which is calibrated for all tokens; use --precision bf16")

    def embed(self, volume: Volume, scope: Mapping[str, Any] | None = None) -> SliceEmbeddings:
        """Class tokens of the chosen slices of a volume in memory; `extract` is faster on files.

        `scope` is its intended-use document if that is known. Raises NonFiniteEmbedding.
        """
        chosen, parts = self.chosen(volume), defaultdict[View, list[np.ndarray]](list)
        for inputs in self.inputs(volume, chosen, self.views):
            for name, pixels in inputs.items():
                views = [view for view in self.views if view.input == name]
                tokens = self.infer(pixels, views)
                for view in views:
                    parts[view].append(rows_of(view, tokens))
        first, *others = (np.concatenate(parts[view]) for view in self.views)
        with naming(volume.source.path):
            self.backbone.refuse_non_finite(first)
        found = self.finisher(volume, chosen, judge(volume).document() if scope is None else scope)(first)
        return replace(found, others={view.name: one for view, one in zip(self.views[1:], others, strict=True)})

    def tokens(self, volume: Volume, slice_indices: Sequence[int] | Int64[np.ndarray, " n"]) -> SliceTokens:
        """Class and patch tokens of the given slices, whatever the selection is; errors as for `embed`."""
        side = self.backbone.side(self.resize)
        windows = self.windows(volume, np.asarray(slice_indices, dtype=np.int64))
        parts = [self.backbone.tokens(pixels, **self._most) for pixels in windows]
        cls, patches = (np.concatenate(some) for some in zip(*parts, strict=True))
        with naming(volume.source.path):
            self.backbone.refuse_non_finite(cls, patches)
        return SliceTokens(cls, patches, (side, side))

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Makes the engine in a background thread during the block, while the input is read; the first pass raises
        what fails here."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self.backbone.warm_up, self.resize, *([True] if self._plain.head_only else []))
            yield

    def settings(self) -> dict[str, Any]:
        """What decides the embeddings of a volume, as JSON: backbone, side and slices."""
        backbone = asdict(self.backbone.identity)
        del backbone["name"], backbone["tokens"]
        return {
            "backbone": backbone,
            "resize": self.resize,
            "selection": asdict(self.selection),
            **self.views_document(),
        }

    def views_document(self) -> dict[str, Any]:
        """JSON: `view`, that of the rows, and `views`, those in the store; empty for class tokens alone."""
        if self.views == (View(),):
            return {}
        n_patches, dim = self.backbone.side(self.resize) ** 2, self.backbone.identity.embed_dim
        shapes = {view: view.shape(n_patches, dim) for view in self.views}
        return {
            "view": self.views[0].name,
            "views": [
                {
                    "name": view.name,
                    "shape_of_slice": list(shape),
                    "bytes_of_slice": math.prod(shape) * view.dtype.itemsize,
                    "basis_sha256": None if view.basis is None else view.basis.sha256,
                }
                for view, shape in shapes.items()
            ],
        }

    def chosen(self, volume: Volume) -> Int64[np.ndarray, " chosen"]:
        """The slices of a volume that are embedded, in ascending order."""
        return select_slices(volume.n_slices, self.selection)

    def windows(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"]
    ) -> Iterator[Float32[np.ndarray, "n 1 resize resize"]]:
        """The chosen slices as the backbone takes them, `in_window` at a time; only those are in float at a time."""
        return (inputs[self._plain.input] for inputs in self.inputs(volume, chosen, (self._plain,)))

    @property
    def identity(self) -> BackboneIdentity:
        """The backbone's, with the tokens that its rows were computed from."""
        return replace(self.backbone.identity, tokens="head" if self.views[0].head_only else "all")

    @property
    def in_window(self) -> int:
        """Slices that are prepared, and wait for the engine, together: a pass, or several to sort by length."""
        return self.batch * (PASSES_SORTED if any(view.head_only for view in self.views) else 1)

    @property
    def _most(self) -> dict[str, int]:
        """The limit of a pass, where windows are longer."""
        return {} if self.in_window == self.batch else {"most": self.batch}

    @property
    def _plain(self) -> View:
        """The class tokens of the input of the first view."""
        return View(window=self.views[0].window, head_only=self.views[0].head_only)

    def inputs(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"], views: tuple[View, ...] = (View(),)
    ) -> Iterator[dict[str, Pixels]]:
        """The chosen slices as the backbone takes them for these views (`View.input`), `in_window` at a time."""
        different = {view.input: view for view in views}
        for start in range(0, len(chosen), self.in_window):
            some = chosen[start : start + self.in_window]
            yield {name: self._pixels(volume, some, view) for name, view in different.items()}

    def _pixels(self, volume: Volume, some: Int64[np.ndarray, " n"], view: View) -> Pixels:
        prepare, hu = self.backbone.prepare, volume.hu_slices(some)
        if view.window == "neighbours":
            around = np.clip(some[:, None] + np.array([-1, 0, 1]), 0, volume.n_slices - 1)  # the end slices twice
            needed, places = np.unique(around, return_inverse=True)
            pixels: Pixels = prepare(volume.hu_slices(needed), self.resize)[places.reshape(around.shape), 0]
        else:
            window = WINDOWS_HU.get(view.window)
            pixels = prepare(hu, self.resize) if window is None else prepare(hu, self.resize, window)
        return self.backbone.without_air(pixels, hu) if view.head_only else pixels

    def infer(self, pixels: Pixels, views: Collection[View]) -> Tokens:
        """Class tokens of one input and, if one of the views needs them, patch tokens and block outputs."""
        if all(view.taken == "cls" for view in views):
            return self.backbone.class_tokens(pixels, **self._most), None, None
        return self.backbone.features(pixels, **self._most)

    def finisher(
        self, volume: Volume, chosen: Int64[np.ndarray, " chosen"], scope: Mapping[str, Any]
    ) -> Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings]:
        """Makes embeddings of the class tokens of the chosen slices; keeps the volume's origin, not its voxels."""
        return partial(
            SliceEmbeddings,
            slice_indices=chosen,
            n_slices=volume.n_slices,
            resize=self.resize,
            selection=self.selection,
            backbone=self.identity,
            source=volume.source,
            scope=scope,
            warnings=(*volume.warnings, *distortion_warning(volume), *scope_warnings(scope)),
        )


def rows_of(view: View, tokens: Tokens) -> np.ndarray:
    """What a view takes of the tokens of some slices: float32 [n, width]; of patches float16 or int8 [n, patch, k].

    Each slice is compressed by itself, so that no code depends on the others. Patches left out of the token sequence
    are zero in the patches, codes included, and no part of the statistics. Raises NonFiniteEmbedding for patch
    tokens beyond the range of float16.
    """
    cls, patches, blocks = tokens
    if view.taken == "cls":
        return cls
    assert patches is not None
    assert blocks is not None
    if view.taken == "blocks":
        return blocks
    if view.taken == "stats":
        return np.stack([patch_statistics(one[one.any(axis=1)] if view.head_only else one) for one in patches])
    if view.basis is not None:
        codes = np.stack([view.basis.codes(one) for one in patches])
        return codes * patches.any(axis=2, keepdims=True) if view.head_only else codes
    if np.abs(patches).max() > np.finfo(np.float16).max:
        raise NonFiniteEmbedding("patch tokens beyond the range of float16; use a view such as patches64")
    return patches.astype(np.float16)


def patch_statistics(patches: Float32[np.ndarray, "patch dim"]) -> Float32[np.ndarray, " three_dim"]:
    """Mean, maximum, and mean of the highest `TOP_SHARE` of the patches, each channel by itself."""
    n_top = max(1, round(TOP_SHARE * len(patches)))
    top = np.partition(patches, len(patches) - n_top, axis=0)[-n_top:]
    means = [part.mean(axis=0, dtype=np.float64).astype(np.float32) for part in (patches, top)]
    return np.concatenate([means[0], patches.max(axis=0), means[1]])


def distortion_warning(volume: Volume) -> tuple[str, ...]:
    """A warning if a slice is not square in mm, as the backbone's pixels are; the number of pixels does not matter."""
    _, n_rows, n_columns = volume.stored.shape
    height_mm, width_mm = n_rows * volume.spacing_mm[1], n_columns * volume.spacing_mm[2]
    if max(height_mm, width_mm) <= (1 + SQUARE_TOLERANCE) * min(height_mm, width_mm):
        return ()
    extent = f"slices of {height_mm:.1f} x {width_mm:.1f} mm (height x width)"
    return (f"{extent} are squashed to a square, so the head is distorted; crop or pad them to be square in mm",)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's path in front of the message of a `NonFiniteEmbedding` raised in the block."""
    try:
        yield
    except NonFiniteEmbedding as error:
        raise NonFiniteEmbedding(f"{path}: {error}") from error


def pool_mode_name(mode: str) -> PoolMode:
    """The pool mode by its own name; `meanmax` is another spelling of `mean_max`. Raises `UsageError` for others."""
    name = "mean_max" if mode == "meanmax" else mode
    if name not in POOL_MODES:
        raise UsageError(f"--pool-mode {mode!r}: expected one of {', '.join(POOL_MODES)}")
    return name  # type: ignore[return-value]


def pool_slices(cls: Float32[np.ndarray, "n dim"], mode: str) -> Float32[np.ndarray, " pooled"]:
    """One vector per volume: [dim] for mean and max, [2 dim] (mean, then max) for mean_max.

    The mean is summed in float64, so that rounding does not grow with the number of slices. Raises UsageError for no
    slice (the mean of nothing) or an unknown mode.
    """
    name = pool_mode_name(mode)
    if cls.shape[0] == 0:
        raise UsageError("no slice embeddings to pool; the selection left no slice of the volume")
    pooled = {"mean": cls.mean(axis=0, dtype=np.float64).astype(np.float32), "max": cls.max(axis=0)}
    return np.concatenate([pooled[part] for part in name.split("_")])


def select_slices(n_slices: int, selection: SliceSelection) -> Int64[np.ndarray, " chosen"]:
    """Ascending, distinct 0-based indices: every `stride`-th slice, then at most `max_slices` of those, evenly spaced.

    The evenly spaced ones are the middles of `max_slices` equal parts, so one slice is the middle one and neither end
    of the head is favoured. Raises UsageError for a `stride` below 1, `max_slices` below 0, or no slice.
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
