"""Where the OpenVINO engine gets its graphs from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke.backbone.engines.openvino_graph import (
    View,
    converter_version,
    openvino_graph,
    read_graph,
    save_graph,
)
from meddinov3_stroke.backbone.folding import FoldedTransformer
from meddinov3_stroke.backbone.weight_file import Weights, build_module, load_weights, weights_sha256
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.models import (
    BackbonePlan,
    Calibration,
    GraphCache,
    WeightsFacts,
    graph_key,
    graph_sha256,
    verified_graph,
)

if TYPE_CHECKING:
    import openvino

LOGGER = logging.getLogger("meddinov3_stroke")


class GraphSource:
    """Gives the graphs of a backbone: the calibrated one, one kept from before, or one converted now and kept."""

    def __init__(self, plan: BackbonePlan, facts: WeightsFacts, calibration: Calibration | None) -> None:
        self._plan, self._facts, self._calibration = plan, facts, calibration
        self._cache = GraphCache(plan.folder)

    def __call__(self, side: int, view: View) -> openvino.Model:
        if self._calibration is not None and view == "cls":
            return self._calibrated(self._calibration, side)
        key = graph_key(self._facts.weights_sha256, side, view, converter_version())
        found = self._cache.find(key)
        if found is not None:
            return read_graph(found)
        LOGGER.info("converting %s for %d x %d slices (%s)", self._plan.name, side, side, view)
        graph = openvino_graph(FoldedTransformer(build_module(weights_with(self._facts, self._plan.path))), side, view)
        self._cache.keep(key, lambda path: save_graph(graph, path))
        return graph

    def _calibrated(self, calibration: Calibration, side: int) -> openvino.Model:
        if side != calibration.resize:
            raise UsageError(
                f"--resize {side}: the int8 calibration was made at {calibration.resize}; use that, calibrate again, "
                "or use --precision auto"
            )
        folder = self._plan.calibration_folder(self._facts.weights_sha256)
        path = verified_graph(folder)
        if path is None or graph_sha256(folder) != calibration.graph_sha256:
            raise WeightsError(f"the int8 graph of {self._plan.name} is damaged, gone or another one; calibrate again")
        return read_graph(path)


def weights_with(facts: WeightsFacts, path: Path) -> Weights:
    """The weights in a file whose facts are known.

    Raises:
        WeightsMismatch: the file was changed since it was opened.
    """
    weights = load_weights(path)
    if facts_of(weights) != facts:
        raise WeightsMismatch(f"{path} was changed since it was opened; load the backbone anew")
    return weights


def facts_of(weights: Weights) -> WeightsFacts:
    """What these tensors decide of a backbone's identity."""
    return WeightsFacts(
        weights_sha256=weights_sha256(weights.state, weights.architecture),
        embed_dim=weights.architecture.embed_dim,
        patch_size=weights.architecture.patch_size,
        rope_dtype=weights.architecture.rope_dtype,
        preprocessing=weights.preprocessing,
    )
