"""The models folder of one run: weights by the recipe and the graphs made of them, deleted when the run ends."""

from __future__ import annotations

import atexit
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.heads import noisy_head
from benchmarks.weights import write_published
from meddinov3_stroke.backbone import Backbone, load_backbone, load_weights, prepare_channel
from meddinov3_stroke.backbone.int8 import quantize_graph
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph

RESIZE = 224
"""Side in pixels at which the backbone sees a slice."""

BATCH = 16
"""Slices in a pass of the bare engine."""

MEASURED_SEED, CALIBRATION_SEED = 1, 2
"""Of the heads that are measured, and of those that int8 is made on."""

CALIBRATION_SLICES, QUICK_CALIBRATION_SLICES = 32, 4
"""Slices that int8 is made on."""


class Workspace:
    """A temporary folder with one weights file; backbones are loaded from it as users load theirs."""

    def __init__(self, quick: bool) -> None:
        self._temporary = TemporaryDirectory(prefix="benchmarks-")
        atexit.register(self._temporary.cleanup)
        self.quick = quick
        self.folder = Path(self._temporary.name)
        self.cache_dir = self.folder / "cache"
        self.weights = write_published(self.folder / "model.pth", quick)

    def load(self, engine: str = "auto", precision: str = "auto") -> Backbone:
        """A backbone on the CPU; int8 is the graph made in this run, whatever its fidelity."""
        if precision != "int8":
            return load_backbone(self.weights, engine, precision, "cpu", cache_dir=self.cache_dir)
        identity = replace(self.load("openvino", "fp32").identity, precision="int8")
        return Backbone(identity, "cpu", lambda: OpenVINOEngine(self.graph, "int8", lambda side: self.int8_graph))

    def graph(self, side: int) -> Any:
        """The plain OpenVINO graph at `side` pixels."""
        return build_graph(load_weights(self.weights), side)

    @cached_property
    def int8_graph(self) -> Any:
        """The quantized graph, made once in a run on slices that are never measured."""
        pixels = prepared(self.n_calibration_slices, CALIBRATION_SEED)
        return quantize_graph(build_graph(load_weights(self.weights), RESIZE, class_tokens_only=True), pixels)

    @property
    def n_calibration_slices(self) -> int:
        """Slices that int8 is made on."""
        return QUICK_CALIBRATION_SLICES if self.quick else CALIBRATION_SLICES


@cache
def workspace(quick: bool) -> Workspace:
    """The workspace of this run."""
    return Workspace(quick)


def prepared(n_slices: int, seed: int = MEASURED_SEED, resize: int = RESIZE) -> Float32[np.ndarray, "n 1 row col"]:
    """Pixels of a head's slices as an engine takes them."""
    return prepare_channel(noisy_head(n_slices, 512, seed).astype(np.float32), resize)
