"""Which weights run how, settled as far as it can be without reading a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from meddinov3_stroke.errors import WeightsError, WeightsMismatch
from meddinov3_stroke.models.calibration import LEAST_INT8_COSINE, Calibration, calibration_folder, read_calibration
from meddinov3_stroke.models.facts import LEAST_AUTO_COSINE, WeightsFacts, WeightsRecords
from meddinov3_stroke.models.sources import is_registered, weights_path
from meddinov3_stroke.system.cpu import bf16_flag
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.execution import Execution, resolve_execution
from meddinov3_stroke.types import BackboneIdentity

CACHE_FOLDER = "engine_cache"
"""Folder of records, graphs and calibrations, in the models folder or beside the weights."""


@dataclass(frozen=True)
class BackbonePlan:
    """A weights file and how it is to run."""

    path: Path
    name: str
    """For people: the registered name, or the file's."""
    execution: Execution
    folder: Path | None
    """Where records, graphs and calibrations are kept; None keeps nothing."""
    torch_compile: bool = False
    """Whether torch may compile the module (only the torch engine)."""
    accept_int8: bool = False
    """Whether an int8 graph is used although its cosine is too low."""

    @cached_property
    def file_sha256(self) -> str:
        """Digest of the weights file's bytes."""
        return sha256_of_file(self.path) if self.path.is_file() else ""

    @cached_property
    def records(self) -> WeightsRecords:
        """What was learned of weights files before."""
        return WeightsRecords(self.folder)

    @property
    def fidelity_way(self) -> str | None:
        """Name of this way to compute, under which its fidelity is recorded; None where the precision is settled."""
        run = self.execution
        if not run.precision_was_auto or run.precision == "fp32":
            return None
        where = bf16_flag() if run.device == "cpu" else run.device.split(":")[0]
        return f"{run.engine}-{version(run.engine)}-{run.precision}-{where}".replace("+", "_")

    def known_facts(self) -> WeightsFacts | None:
        """What the weights file holds, where it was read before."""
        return self.records.facts(self.file_sha256)

    def known_precision(self, facts: WeightsFacts) -> str | None:
        """The precision these weights will run in; None where their fidelity is still to be measured."""
        if self.fidelity_way is None:
            return self.execution.precision
        cosine = self.records.fidelity(facts.weights_sha256, self.fidelity_way)
        return None if cosine is None else self.precision_at(cosine)

    def precision_at(self, cosine: float) -> str:
        """What `auto` comes to for weights that keep this cosine in the lower precision."""
        return self.execution.precision if cosine >= LEAST_AUTO_COSINE else "fp32"

    def known_identity(self) -> BackboneIdentity | None:
        """The identity of the backbone this plan gives; None where it takes reading the weights to know.

        Raises:
            WeightsError: int8 without a calibration, or with one that does not earn its use.
        """
        facts = self.known_facts()
        precision = None if facts is None else self.known_precision(facts)
        return None if facts is None or precision is None else self.identity(facts, precision)

    def identity(self, facts: WeightsFacts, precision: str) -> BackboneIdentity:
        """The identity of weights with these facts in this precision.

        Raises:
            WeightsError: int8 without a calibration, or with one that does not earn its use.
        """
        digest = self.calibration(facts.weights_sha256).graph_sha256 if precision == "int8" else None
        return facts.identity(self.name, self.execution.engine, precision, digest)

    def calibration(self, weights_sha256: str) -> Calibration:
        """The record of the int8 graph of the weights with this digest.

        Raises:
            WeightsError: there is none, or its cosine is too low and was not accepted.
            WeightsMismatch: it is of other weights.
        """
        found = None if self.folder is None else read_calibration(self.calibration_folder(weights_sha256))
        if found is None:
            raise WeightsError(
                f"no int8 calibration of {self.name} in {self.folder}; int8 has to prove itself on your own volumes: "
                "run meddinov3-stroke calibrate --series-csv ... (or --input ...), or use --precision auto"
            )
        if found.weights_sha256 != weights_sha256:
            raise WeightsMismatch(
                f"the int8 calibration in {self.calibration_folder(weights_sha256)} is of weights "
                f"{found.weights_sha256[:12]}, expected {weights_sha256[:12]}; calibrate again"
            )
        if not (found.is_faithful or self.accept_int8):
            raise WeightsError(
                f"int8 of {self.name} keeps a CLS cosine of only {found.cls_cosine_min:.5f} at worst on held-out "
                f"slices, expected at least {LEAST_INT8_COSINE}; use --precision auto, calibrate on more volumes, or "
                "force it with --accept-int8 (outputs will say so)"
            )
        return found

    def calibration_folder(self, weights_sha256: str) -> Path:
        """Where the int8 graph of the weights with this digest lies."""
        assert self.folder is not None  # without a folder there is no calibration
        return calibration_folder(self.folder, weights_sha256)

    def warnings(self, identity: BackboneIdentity) -> tuple[str, ...]:
        """What every output of a backbone with this identity must say."""
        if identity.precision != "int8":
            return ()
        calibration = self.calibration(identity.weights_sha256)
        measured = (
            f"int8 backbone: CLS cosine to fp32 at least {calibration.cls_cosine_min:.5f}, mean "
            f"{calibration.cls_cosine_mean:.5f}, on {calibration.n_check_slices} held-out slices"
        )
        if calibration.is_faithful:
            return (measured,)
        return (f"{measured}; that is below {LEAST_INT8_COSINE} and was accepted by hand",)


def plan_backbone(
    source: str | Path,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    *,
    models_dir: Path | None = None,
    torch_compile: bool = False,
    accept_int8: bool = False,
) -> BackbonePlan:
    """The plan for a weights file or a registered name.

    Records and graphs are kept in `<models_dir>/engine_cache`, by default beside the weights; those of a registered
    name only where `models_dir` is given.

    Raises:
        UsageError: no such engine, precision or device name, or three that do not go together.
        DeviceUnavailable: the device is not there.
        MissingWeights: no such file.
    """
    execution = resolve_execution(engine, precision, device)
    path, registered = weights_path(source), is_registered(source)
    home = models_dir if models_dir is not None else None if registered else path.parent
    return BackbonePlan(
        path=path,
        name=str(source) if registered else path.name,
        execution=execution,
        folder=None if home is None else home / CACHE_FOLDER,
        torch_compile=torch_compile,
        accept_int8=accept_int8,
    )
