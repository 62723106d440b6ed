"""From a path or a registered name to a `Backbone`."""

from __future__ import annotations

import logging
from pathlib import Path

from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.engines import Engine, TorchEngine
from meddinov3_stroke.backbone.engines.openvino_engine import OpenVINOEngine
from meddinov3_stroke.backbone.fidelity import measure_fidelity
from meddinov3_stroke.backbone.graph_source import GraphSource, facts_of, weights_with
from meddinov3_stroke.backbone.weight_file import Weights, build_module, load_weights
from meddinov3_stroke.models import BackbonePlan, Calibration, WeightsFacts, plan_backbone
from meddinov3_stroke.system.device import use_available_cpus
from meddinov3_stroke.system.digest import sha256_of_file

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

    def weights(self, facts: WeightsFacts) -> Weights:
        if self._weights is None:
            self._weights = weights_with(facts, self.plan.path)
        return self._weights

    def _learn_facts(self) -> WeightsFacts:
        self._weights = load_weights(self.plan.path)
        facts = facts_of(self._weights)
        if sha256_of_file(self.plan.path) == self.plan.file_sha256:  # not replaced while it was read
            self.plan.records.keep_facts(self.plan.file_sha256, facts)
        return facts

    def _measured_precision(self, facts: WeightsFacts) -> str:
        """What `auto` comes to for these weights, tried once on sample slices."""
        lower, way = self.plan.execution.precision, self.plan.fidelity_way
        assert way is not None  # otherwise the precision was known
        engine = self._engine(facts, lower, None)
        cosine = measure_fidelity(engine, self.weights(facts))
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
            module = build_module(self.weights(facts))
            return TorchEngine(module, run.device, precision, compiled=self.plan.torch_compile)
        return OpenVINOEngine(GraphSource(self.plan, facts, calibration), precision)
