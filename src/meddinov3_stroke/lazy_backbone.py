"""A backbone that is known by its identity and loaded when the first slice asks for it.

A cohort whose embeddings are all cached needs no more than the identity: neither torch nor an engine is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.models import BackbonePlan
from meddinov3_stroke.types import BackboneIdentity, SliceTokens

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone

LOGGER = logging.getLogger("meddinov3_stroke")


@runtime_checkable
class SliceEncoder(Protocol):
    """What stages ask of a backbone; `backbone.Backbone` says what each gives."""

    @property
    def identity(self) -> BackboneIdentity: ...
    @property
    def device(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def independent_rows(self) -> bool: ...
    def embed(
        self,
        hu: Float32[np.ndarray, "n row col"],
        resize: int = 224,
        batch: int = 8,
        patches: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> SliceTokens: ...
    def embed_windows(
        self,
        windows: Iterable[Float32[np.ndarray, "some row col"]],
        resize: int,
        patches: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> SliceTokens: ...
    def prepare(
        self, hu: Float32[np.ndarray, "n row col"], resize: int
    ) -> Float32[np.ndarray, "n 1 resize resize"]: ...
    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]: ...
    def side(self, resize: int) -> int: ...
    def refuse_non_finite(
        self, cls: Float32[np.ndarray, "n dim"], patches: np.ndarray | None = None, *, first: int = 0
    ) -> None: ...


class LazyBackbone:
    """A `SliceEncoder` with a settled identity whose engine is made at the first use."""

    def __init__(self, plan: BackbonePlan, identity: BackboneIdentity) -> None:
        self._plan, self.identity = plan, identity
        self.device = plan.execution.device
        self.warnings = plan.warnings(identity)
        self._backbone: Backbone | None = None
        self._lock = Lock()

    @property
    def loaded(self) -> Backbone:
        """The backbone itself; the first call takes seconds."""
        from meddinov3_stroke.backbone import load_planned

        with self._lock:
            if self._backbone is None:
                self._backbone = load_planned(self._plan)
            return self._backbone

    @property
    def independent_rows(self) -> bool:
        """As `Backbone.independent_rows`, known of the engine before it is made."""
        return self.identity.engine == "openvino"

    def embed(
        self,
        hu: Float32[np.ndarray, "n row col"],
        resize: int = 224,
        batch: int = 8,
        patches: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> SliceTokens:
        """As `Backbone.embed`."""
        return self.loaded.embed(hu, resize, batch, patches, on_batch)

    def embed_windows(
        self,
        windows: Iterable[Float32[np.ndarray, "some row col"]],
        resize: int,
        patches: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> SliceTokens:
        """As `Backbone.embed_windows`."""
        return self.loaded.embed_windows(windows, resize, patches, on_batch)

    def prepare(self, hu: Float32[np.ndarray, "n row col"], resize: int) -> Float32[np.ndarray, "n 1 resize resize"]:
        """As `Backbone.prepare`."""
        return self.loaded.prepare(hu, resize)

    def class_tokens(self, pixels: Float32[np.ndarray, "n 1 row col"]) -> Float32[np.ndarray, "n dim"]:
        """As `Backbone.class_tokens`."""
        return self.loaded.class_tokens(pixels)

    def side(self, resize: int) -> int:
        """As `Backbone.side`."""
        return self.loaded.side(resize)

    def refuse_non_finite(
        self, cls: Float32[np.ndarray, "n dim"], patches: np.ndarray | None = None, *, first: int = 0
    ) -> None:
        """As `Backbone.refuse_non_finite`."""
        self.loaded.refuse_non_finite(cls, patches, first=first)


def open_backbone(plan: BackbonePlan) -> SliceEncoder:
    """The backbone of a plan, loaded at its first use where its identity is on record already.

    Raises:
        WeightsError: as `load_backbone` says.
    """
    identity = plan.known_identity()
    if identity is None:
        from meddinov3_stroke.backbone import load_planned

        return load_planned(plan)
    return LazyBackbone(plan, identity)
