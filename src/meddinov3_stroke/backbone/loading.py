"""From a path or a registered name to a `Backbone`: its identity at once, its engine at first use."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke.backbone.architecture import ClassTokens
from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.preprocessing import prepare_channel
from meddinov3_stroke.backbone.records import (
    LEAST_AUTO_COSINE,
    LEAST_INT8_COSINE,
    Calibration,
    WeightsRecord,
    calibration_folder,
    read_calibration,
    read_record,
    write_record,
)
from meddinov3_stroke.backbone.weights import Weights, build_module, fold, load_weights, weights_sha256
from meddinov3_stroke.config import engine_cache
from meddinov3_stroke.errors import MissingWeights, UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.system.command import command_of
from meddinov3_stroke.system.devices import Execution, bf16_flag, resolve_execution, use_available_cpus
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import BackboneIdentity, Preprocessing

LOGGER = logging.getLogger("meddinov3_stroke")

REGISTERED: dict[str, str] = {"demo": "demo.safetensors"}
"""Name -> file in the package's folder `backbone/weights`."""

SAMPLE_SIDE = 224
"""Side in pixels of the slices that a lower precision is tried on."""


def load_backbone(
    source: str | Path,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    *,
    cache_dir: Path | None = None,
    torch_compile: bool = False,
    accept_int8: bool = False,
) -> Backbone:
    """The frozen backbone of a weights file or a registered name (`demo`).

    `engine` is auto, torch or openvino; `precision` is auto, fp32, bf16 or int8; `auto` takes the fastest that keeps
    fidelity here. A registered name wins over a file of that name; write `./demo` for the file. Weights whose digest is
    on record are not read before the engine is used. Records and calibrations are kept in `cache_dir`, by default
    `engine_cache` in the user's cache folder.

    Raises:
        UsageError, DeviceUnavailable, MachineError: engine, precision and device cannot be had, here or together.
        WeightsError: weights that are missing, unsafe, damaged or do not fit; int8 without a good calibration.
    """
    run = resolve_execution(engine, precision, device)
    load = _Loader(WeightsFile.find(source, cache_dir), run, torch_compile, accept_int8)
    record = read_record(load.file.folder, load.file.sha256) or load.learned()
    precision, made = run.precision, None
    if run.precision_was_auto and precision != "fp32":
        precision, made = load.faithful(record)
    calibration = load.calibration(record.weights_sha256) if precision == "int8" else None
    learned = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "fidelity"}
    identity = BackboneIdentity(
        **learned,
        name=load.file.name,
        engine=run.engine,
        precision=precision,
        calibration_sha256=calibration.graph_sha256 if calibration else None,
    )
    LOGGER.info("backbone %s on %s: %s, %s (%s)", identity.name, run.device, run.engine, precision, run.reason)
    make = (lambda: made) if made is not None else partial(load.engine, precision, calibration)
    return Backbone(identity, run.device, make, (calibration.statement,) if calibration else ())


@dataclass
class WeightsFile:
    """A weights file, its digest, and the folder of its records."""

    path: Path
    name: str
    folder: Path
    sha256: str = ""
    _stat: tuple[int, ...] = ()
    _weights: Weights | None = None

    @classmethod
    def find(cls, source: str | Path, cache_dir: Path | None = None) -> WeightsFile:
        """The file that a path or a registered name stands for; raises MissingWeights with the download command."""
        file = REGISTERED.get(str(source)) if isinstance(source, str) else None
        package = Path(str(files("meddinov3_stroke") / "backbone" / "weights"))
        path = Path(source).expanduser() if file is None else package / file
        if file is not None and not path.is_file():
            raise MissingWeights(f"backbone {source!r} is not in this installation ({path}); reinstall the package")
        if not path.exists():
            raise MissingWeights(
                f"no backbone weights at {path}; fetch them with: {command_of('download')} --output "
                f"{shlex.quote(str(path))} (without a network: copy the file there, or add --from-file FILE); or name "
                f"a file or a registered backbone ({', '.join(REGISTERED)}) with --backbone"
            )
        found = cls(path, path.name if file is None else str(source), cache_dir or engine_cache())
        if path.is_file():
            found._stat, found.sha256 = found._current_stat(), sha256_of_file(path)
        return found

    def weights(self, verified: bool = True) -> Weights:
        """The weights (mapped from disk), refused if the file changed since its digest was taken."""
        if self._weights is None:
            self._weights = load_weights(self.path, verified)
        if (stat := self._current_stat()) != self._stat:
            if sha256_of_file(self.path) != self.sha256:
                raise WeightsMismatch(f"{self.path} changed since it was opened; load the backbone again")
            self._stat = stat  # touched, with the same content
        return self._weights

    def _current_stat(self) -> tuple[int, ...]:
        stat = self.path.stat()
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass
class _Loader:
    file: WeightsFile
    run: Execution
    torch_compile: bool
    accept_int8: bool

    def learned(self) -> WeightsRecord:
        """The record of weights that are read for the first time, kept for the next."""
        weights = self.file.weights(verified=False)
        shape = weights.architecture
        digest = weights_sha256(weights.state, shape)
        record = WeightsRecord(digest, shape.embed_dim, shape.patch_size, shape.rope_dtype, weights.preprocessing)
        write_record(self.file.folder, self.file.sha256, record)
        return record

    def faithful(self, record: WeightsRecord) -> tuple[str, Any]:
        """The precision that `auto` takes for these weights, measured once, and the engine if one was made."""
        run, engine = self.run, None
        where = bf16_flag() if run.device == "cpu" else run.device.split(":")[0]
        way = f"{run.engine}-{version(run.engine)}-{run.precision}-{where}"
        cosine = record.fidelity.get(way)
        if cosine is None:
            engine = self.engine(run.precision)
            cosine = measure_fidelity(engine, self.engine("fp32", device="cpu"), record.preprocessing)
            record = replace(record, fidelity={**record.fidelity, way: cosine})
            write_record(self.file.folder, self.file.sha256, record)
            if cosine < LEAST_AUTO_COSINE:
                name = self.file.name
                LOGGER.warning("%s: CLS cosine to fp32 is %.6f in %s; using fp32", name, cosine, run.precision)
        return (run.precision, engine) if cosine >= LEAST_AUTO_COSINE else ("fp32", None)

    def calibration(self, digest: str) -> Calibration:
        name, folder = self.file.name, self.file.folder
        found = read_calibration(calibration_folder(folder, digest))
        if found is None:
            raise WeightsError(
                f"no int8 calibration of {name} in {folder}; int8 must be validated on "
                "your own volumes: run meddinov3-stroke calibrate --series-csv ... (or --input ...), or use "
                "--precision auto"
            )
        if found.weights_sha256 != digest:
            raise WeightsMismatch(
                f"the int8 calibration of {name} is of weights {found.weights_sha256[:12]}, expected {digest[:12]}; "
                "calibrate again"
            )
        if not (found.is_faithful or self.accept_int8):
            raise WeightsError(
                f"int8 of {name} has a CLS cosine of only {found.cls_cosine_min:.5f} at worst on held-out slices, "
                f"expected at least {LEAST_INT8_COSINE}; use --precision auto, calibrate on more volumes, or force it "
                "with --accept-int8 (outputs will state this)"
            )
        return found

    def engine(self, precision: str, calibration: Calibration | None = None, device: str | None = None) -> Any:
        """An engine in this precision, by default on the device of the run."""
        if self.run.engine == "torch":
            from meddinov3_stroke.backbone.torch_engine import TorchEngine

            if self.run.device == "cpu":
                use_available_cpus()
            module = build_module(fold(self.file.weights()))
            kernel = self.file.weights().state["patch_embed.proj.weight"]
            where = device or self.run.device
            return TorchEngine(module, where, precision, compiled=self.torch_compile, kernel=kernel)
        from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph

        int8_graph_of = None if calibration is None else partial(self._int8_graph, calibration)

        def graph_of(side: int, **kind: bool) -> Any:
            return build_graph(self.file.weights(), side, **kind)

        return OpenVINOEngine(graph_of, precision, int8_graph_of)

    def _int8_graph(self, calibration: Calibration, side: int) -> Any:
        from meddinov3_stroke.backbone.int8 import read_graph

        if side != calibration.resize:
            raise UsageError(
                f"--resize {side}: the int8 calibration was made at {calibration.resize}; use that, calibrate again, "
                "or use --precision auto"
            )
        graph = read_graph(calibration_folder(self.file.folder, calibration.weights_sha256), calibration.graph_sha256)
        if graph is None:
            raise WeightsError(f"int8 graph of {self.file.name}: damaged, missing or another one; calibrate again")
        return graph


def measure_fidelity(engine: Any, reference: Any, preprocessing: Preprocessing) -> float:
    """Least cosine between two engines' class tokens of the sample slices; -1 if one is NaN, as after an overflow."""
    pixels = prepare_channel(sample_slices(), SAMPLE_SIDE, preprocessing)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = cosines(engine.class_tokens(pixels), reference.class_tokens(pixels))
    return float(np.nan_to_num(found, nan=-1.0).min())


def sample_slices(n_slices: int = 4, side: int = SAMPLE_SIDE) -> Float32[np.ndarray, "n row col"]:
    """Head-like slices in HU, the same at every call: air, an oval skull, brain with noise, a dense spot."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    slices = np.full((n_slices, side, side), -1000.0, dtype=np.float32)
    for k, hu in enumerate(slices):
        radius = np.hypot(rows / 0.9, columns / 0.75) / (0.6 + 0.4 * (k + 1) / n_slices)
        brain = radius < 0.88
        hu[radius < 1.0] = 1100.0
        hu[brain] = 32.0 + 6.0 * rng.standard_normal(int(brain.sum()))
        hu[np.hypot(rows - 0.1 * k, columns - 0.2) < 0.12] = 68.0
    return slices


def cosines(found: ClassTokens, expected: ClassTokens) -> Float64[np.ndarray, " n"]:
    """Cosine similarity row by row, in float64."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
