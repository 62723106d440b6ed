"""The int8 graph: the slices it is made on, the graph, and its place in the models folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone import Backbone, GraphSource
from meddinov3_stroke.backbone.engines.openvino_engine import OpenVINOEngine
from meddinov3_stroke.backbone.engines.openvino_graph import save_graph
from meddinov3_stroke.backbone.quantization import quantize_graph
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.features import select_slices
from meddinov3_stroke.int8.volumes import CalibrationVolume
from meddinov3_stroke.models import BackbonePlan, WeightsFacts, write_graph
from meddinov3_stroke.types import BackboneIdentity, SliceSelection

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True, eq=False)
class CalibrationSlices:
    """Prepared slices, and which inputs they are of."""

    pixels: Float32[np.ndarray, "n 1 row col"]
    sources: tuple[str, ...]
    """Digest of each volume's file."""
    pixels_sha256: tuple[str, ...]
    """Digest of each volume's voxels."""


def calibration_slices(
    volumes: Sequence[CalibrationVolume], backbone: Backbone, resize: int, most: int
) -> CalibrationSlices:
    """About `most` slices, evenly from as many of the volumes as that reaches.

    Raises:
        InputError, OutOfScope: a volume that cannot be used.
    """
    chosen = volumes[:most]
    selection = SliceSelection(max_slices=math.ceil(most / len(chosen)))
    windows, sources, digests = [], [], []
    for each in chosen:
        volume = read_volume(each.input)
        windows.append(backbone.prepare(volume.hu_slices(select_slices(volume.n_slices, selection)), resize))
        sources.append(volume.source.sha256)
        digests.append(volume.source.pixels_sha256)
    return CalibrationSlices(np.concatenate(windows)[:most], tuple(sources), tuple(digests))


def quantized_graph(
    plan: BackbonePlan, facts: WeightsFacts, resize: int, pixels: Float32[np.ndarray, "n 1 row col"]
) -> openvino.Model:
    """The int8 graph of class tokens of a plan's backbone at `resize`, made on these slices."""
    return quantize_graph(GraphSource(plan, facts, None)(resize, "cls"), pixels)


def trial_backbone(graph: openvino.Model, identity: BackboneIdentity) -> Backbone:
    """A backbone that runs the graph as it is in memory, to be measured before anything is kept."""
    return Backbone(OpenVINOEngine(lambda side, view: graph, "int8"), identity, "cpu")


def keep_graph(plan: BackbonePlan, weights_sha256: str, graph: openvino.Model) -> str:
    """Digest of the int8 graph once it lies in the plan's folder; what lay there before is replaced.

    Raises:
        StorageError: the plan keeps nothing, or the folder cannot be written.
    """
    if plan.folder is None:
        raise StorageError("an int8 graph needs a models folder to lie in; set MODELS_DIR")
    return write_graph(plan.calibration_folder(weights_sha256), lambda path: save_graph(graph, path))
