"""From a path or a registered name to a `Backbone`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.engines import Engine, TorchEngine
from meddinov3_stroke.backbone.engines.openvino_engine import OpenVINOEngine
from meddinov3_stroke.backbone.engines.openvino_graph import (
    View,
    converter_version,
    openvino_graph,
    read_graph,
    save_graph,
)
from meddinov3_stroke.backbone.fidelity import measure_fidelity
from meddinov3_stroke.backbone.folding import FoldedTransformer
from meddinov3_stroke.backbone.weight_file import Weights, build_module, load_weights, weights_sha256
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.models import (
    BackbonePlan,
    Calibration,
    GraphCache,
    WeightsFacts,
    graph_key,
    plan_backbone,
    verified_graph,
)
from meddinov3_stroke.runtime.device import use_available_cpus

if TYPE_CHECKING:
    import openvino

LOGGER = logging.getLogger("meddinov3_stroke")


def load_backbone(
    source: str | Path,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    *,
    models_dir: Path | None = None,
    torch_compile: bool = False,
    accept_int8: bool = False,
) -> Backbone:
    """The frozen backbone of a weights file or a registered name (`demo`), ready to embed.

    `engine` is auto, torch or openvino, `precision` auto, fp32 (torch's is the reference), bf16 or int8; `auto` takes
    the fastest that keeps fidelity here and says which. A name in the register wins over a file of that name; write
    `./demo` for the file. What need not be worked out twice is kept in `<models_dir>/engine_cache` (by default beside
    the weights). On the CPU the threads are those of this process's affinity.

    Raises:
        UsageError: no such engine, precision or device name, or three that do not go together.
        DeviceUnavailable: the device is not there.
        WeightsError: and its kinds, for weights that are missing, unsafe, damaged or do not fit, and for int8 that was
            not calibrated or does not earn its use.
    """
    plan = plan_backbone(
        source,
        engine,
        precision,
        device,
        models_dir=models_dir,
        torch_compile=torch_compile,
        accept_int8=accept_int8,
    )
    return load_planned(plan)


def load_planned(plan: BackbonePlan) -> Backbone:
    """The backbone of a plan, its weights read where no record and no graph stands for them.

    Raises:
        WeightsError: and its kinds, as `load_backbone` says.
    """
    return _Loading(plan).backbone()


class _Loading:
    """One load under way: a plan and, once something needed them, the tensors."""

    def __init__(self, plan: BackbonePlan) -> None:
        self.plan = plan
        self._weights: Weights | None = None
        self._tried: Engine | None = None
        """The engine whose fidelity was measured, where it was found good."""

    def backbone(self) -> Backbone:
        if self.plan.execution.device == "cpu":
            use_available_cpus()
        facts = self.plan.known_facts() or self._learn_facts()
        precision = self.plan.known_precision(facts) or self._measured_precision(facts)
        identity = self.plan.identity(facts, precision)
        calibration = self.plan.calibration(facts.weights_sha256) if precision == "int8" else None
        run = self.plan.execution
        LOGGER.info("backbone %s on %s: %s, %s (%s)", identity.name, run.device, run.engine, precision, run.reason)
        engine = self._tried or self._engine(facts, precision, calibration)
        return Backbone(engine, identity, run.device, self.plan.warnings(identity))

    def weights(self) -> Weights:
        if self._weights is None:
            self._weights = load_weights(self.plan.path)
        return self._weights

    def _learn_facts(self) -> WeightsFacts:
        facts = facts_of(self.weights())
        self.plan.records.keep_facts(self.plan.file_sha256, facts)
        return facts

    def _measured_precision(self, facts: WeightsFacts) -> str:
        """What `auto` comes to for these weights, tried once on sample slices."""
        lower, way = self.plan.execution.precision, self.plan.fidelity_way
        assert way is not None  # otherwise the precision was known
        engine = self._engine(facts, lower, None)
        cosine = measure_fidelity(engine, self.weights())
        self.plan.records.keep_fidelity(facts.weights_sha256, way, cosine)
        taken = self.plan.precision_at(cosine)
        if taken == lower:
            self._tried = engine
        else:
            LOGGER.warning("%s: CLS cosine %.6f to fp32 in %s; %s is taken", self.plan.name, cosine, lower, taken)
        return taken

    def _engine(self, facts: WeightsFacts, precision: str, calibration: Calibration | None) -> Engine:
        run = self.plan.execution
        if run.engine == "torch":
            module = build_module(self.weights())
            return TorchEngine(module, run.device, precision, compiled=self.plan.torch_compile)
        return OpenVINOEngine(_Graphs(self.plan, facts, calibration), precision)


class _Graphs:
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
        graph = openvino_graph(FoldedTransformer(build_module(self._weights())), side, view)
        self._cache.keep(key, lambda path: save_graph(graph, path))
        return graph

    def _weights(self) -> Weights:
        weights = load_weights(self._plan.path)
        if facts_of(weights) != self._facts:
            raise WeightsMismatch(f"{self._plan.path} was changed since it was opened; load the backbone anew")
        return weights

    def _calibrated(self, calibration: Calibration, side: int) -> openvino.Model:
        if side != calibration.resize:
            raise UsageError(
                f"--resize {side}: the int8 calibration was made at {calibration.resize}; use that, calibrate again, "
                "or use --precision auto"
            )
        path = verified_graph(self._plan.calibration_folder(self._facts.weights_sha256))
        if path is None:
            raise WeightsError(f"the int8 graph of {self._plan.name} is damaged or gone; calibrate again")
        return read_graph(path)


def facts_of(weights: Weights) -> WeightsFacts:
    """What these tensors decide of a backbone's identity."""
    return WeightsFacts(
        weights_sha256=weights_sha256(weights.state, weights.architecture),
        embed_dim=weights.architecture.embed_dim,
        patch_size=weights.architecture.patch_size,
        rope_dtype=weights.architecture.rope_dtype,
        preprocessing=weights.preprocessing,
    )
