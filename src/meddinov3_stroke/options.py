"""Flags that several stages share, and the backbone they name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.cases import Cases, find_cases, studies_in
from meddinov3_stroke.errors import MissingInput, UsageError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.command import ConsoleOptions, Range
from meddinov3_stroke.types import SliceSelection
from meddinov3_stroke.views import View

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.data import SeriesTable
    from meddinov3_stroke.features import FeatureExtractor
    from meddinov3_stroke.features.shards import Shard
    from meddinov3_stroke.features.workers import Workers
    from meddinov3_stroke.rsna_pipeline import Cohort

LOGGER = logging.getLogger("meddinov3_stroke")

InputPath = Annotated[Path, tyro.conf.arg(aliases=["-i"])]
OutputDir = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
InputPaths = Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-i"], metavar="PATH")]
Checkpoints = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")]
OptionalOutputDir = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
DeviceName = Annotated[str, tyro.conf.arg(aliases=["-d"], metavar="auto|cpu|gpu|cuda:N|mps")]


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(ConsoleOptions):
    """Which backbone, where and how it runs."""

    backbone: str | None = None
    """Weights file (.pth, .safetensors) or a registered name such as demo (default: MEDDINOV3_CKPT_PATH)."""
    device: DeviceName = field(default_factory=config.default_device)
    """Where to compute; only auto may fall back (default: CT_MODEL_DEVICE, else auto)."""
    engine: Literal["auto", "torch", "openvino"] = config.ENGINE
    """What runs the backbone; auto takes the fastest that keeps fidelity here, and says which."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = config.PRECISION
    """Arithmetic of the backbone; torch's fp32 is the reference, int8 needs `calibrate` first."""
    accept_int8: bool = False
    """Use int8 although its calibration shows too low a cosine to fp32; outputs say so."""
    torch_compile: bool = False
    """Let torch compile the backbone (engine torch): the first pass takes minutes."""
    batch: Annotated[int, Range(1)] = config.BATCH
    """Slices in a forward pass; small volumes share one."""

    def open_backbone(self) -> Backbone:
        """The backbone these flags name; missing weights name the download command."""
        from meddinov3_stroke.backbone import load_backbone

        return load_backbone(
            self.backbone or config.load_settings().meddinov3_ckpt_path,
            engine=self.engine,
            precision=self.precision,
            device=self.device,
            torch_compile=self.torch_compile,
            accept_int8=self.accept_int8,
        )


@dataclass(frozen=True, kw_only=True)
class SliceOptions(BackboneOptions):
    """Which slices of a volume are embedded."""

    stride: Annotated[int, Range(1)] = config.STRIDE
    """Embed every stride-th slice."""
    max_slices: Annotated[int, Range(0)] = config.MAX_SLICES
    """At most this many slices of a volume, evenly spaced; 0 is no limit."""
    tokens: Literal["all", "head"] = "all"
    """Patches to compute: all, or head, without those of pure air: faster, other embeddings, for heads of their own."""

    @property
    def selection(self) -> SliceSelection:
        """The slices these flags select."""
        return SliceSelection(stride=self.stride, max_slices=self.max_slices)

    def extractor(self, resize: int) -> FeatureExtractor:
        """The backbone with the batch and slices these flags give."""
        from meddinov3_stroke.features import FeatureExtractor

        views = (View(head_only=self.tokens == "head"),)
        return FeatureExtractor(self.open_backbone(), resize, self.batch, self.selection, views)


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """Which images of a DICOM input are read."""

    series: str | None = None
    """Series to read if a DICOM input holds several: UID or UID#2, as inspect lists it (default: by its rule)."""
    join_series: bool = False
    """Read the slices of a DICOM study as one series; for exports that give every image a series UID of its own."""


@dataclass(frozen=True, kw_only=True)
class NameOptions(ConsoleOptions):
    """Whether outputs name the inputs."""

    hide_names: bool = False
    """Replace the paths of inputs by digests in all that is written and printed; the list of names stays with the
    user."""


@dataclass(frozen=True, kw_only=True)
class InputOptions(SeriesOptions, NameOptions):
    """Which head CTs."""

    input: Annotated[InputPaths, tyro.conf.arg(help_behavior_hint="")] = ()
    """Volumes: .nii, .nii.gz, or DICOM: folder, .zip, .tar(.gz), .txt list or file; also folders of these, a table
    (.csv) and patterns such as 'scans/*.nii.gz' (default: first NIfTI in input/)."""
    overwrite: bool = False
    """Replace results of another input, or of other settings."""
    json: bool = False
    """Print the result as JSON on standard output instead of text."""

    def __post_init__(self) -> None:
        """Take a single path, or None, for `input` too."""
        _make_tuple(self, "input")
        super().__post_init__()

    def cases(self) -> Cases:
        """The cases these flags name; `MissingInput` if there is none."""
        return find_cases(self.input or (first_input(),), self.series, join_series=self.join_series)

    def studies(self, cases: Cases) -> Cases:
        """The studies in the place of a single case, as a batch: the way out of `AmbiguousInput`."""
        (source,) = cases.inputs
        return Cases(tuple(studies_in(source.path, join_series=self.join_series)), is_batch=True)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How the inputs of a run reach processes, GPUs and machines."""

    shard: str | None = None
    """Compute one part of the inputs only: I/N with I from 0, or auto (as a Slurm array, srun or torchrun says). Once
    all parts are done, the same command without it puts them together."""
    workers: Annotated[int | None, Range(1)] = None
    """Worker processes, between which the cores of this machine are divided (default: none; with --ray, as many as
    the cluster has room for)."""
    gpus: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N", help_behavior_hint="")] = ()
    """GPUs with a worker process each: numbers, or all."""
    worker_timeout: Annotated[float, Range(1)] = config.WORKER_TIMEOUT_S
    """Seconds without a sign of life after which a worker is replaced."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="local|ADDRESS")] = None
    """Run the workers in the Ray cluster at an address (auto, HOST:PORT), or in one of their own on this machine."""
    ray_cpus: Annotated[float | None, Range(0)] = None
    """Cores of a worker in a Ray cluster (default: 1 beside a GPU, else all of the smallest node)."""
    ray_gpus: Annotated[float | None, Range(0)] = None
    """GPUs of a worker in a Ray cluster, such as 0.5 (default: 1 if the cluster has any)."""
    stage: Path | None = None
    """Folder on local disk: the next volumes are copied there before they are read, and removed (for slow storage)."""

    @property
    def stage_folders(self) -> tuple[Path, ...]:
        """The folder of `--stage`, if there is one."""
        return () if self.stage is None else (self.stage,)

    def own_shard(self) -> Shard | None:
        """The part of the inputs that these flags name; None for all."""
        from meddinov3_stroke.features.shards import Shard

        return None if self.shard is None else Shard.parse(self.shard)

    def require_no_crew(self) -> None:
        """Raise UsageError for these flags beside a single input."""
        named = ("shard", "workers", "gpus", "ray", "stage")
        if given := [f"--{name}" for name in named if getattr(self, name) not in (None, ())]:
            raise UsageError(f"{', '.join(given)} with a single input; omit it, or name several inputs")

    def crew(self, device: str) -> Workers | None:
        """The workers; None for a run without any."""
        from meddinov3_stroke.features.workers import Workers

        if self.ray is not None:
            if self.gpus:
                raise UsageError("--gpus beside --ray; Ray chooses the GPUs, of which a worker gets --ray-gpus")
            from meddinov3_stroke.features.ray_workers import RayWorkers

            return RayWorkers.on(self.ray, self.worker_timeout, self.workers, self.ray_cpus, self.ray_gpus)
        if self.gpus:
            if self.workers is not None:
                raise UsageError("--workers beside --gpus; each GPU has a worker of its own, so omit --workers")
            from meddinov3_stroke.system.devices import every_gpu, resolve_device

            found = every_gpu() if self.gpus == ("all",) else map(resolve_device, self.gpus)
            return Workers(tuple(dict.fromkeys(found)), self.worker_timeout)
        n = self.workers or 1
        return Workers((device,) * n, self.worker_timeout) if n > 1 else None


@dataclass(frozen=True, kw_only=True)
class CaseOptions(InputOptions, SliceOptions, WorkerOptions):
    """Which head CTs, and how their slices are embedded."""

    urls = ("input", "output_dir")


@dataclass(frozen=True, kw_only=True)
class HeadOptions(ConsoleOptions):
    """Which head."""

    checkpoint: Checkpoints
    """best.pt or last.pt of a trained head; of several heads the logits are averaged."""

    def __post_init__(self) -> None:
        """Take a single path for `checkpoint` too."""
        _make_tuple(self, "checkpoint")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TableOptions(NameOptions):
    """Which table of series, and how it is read."""

    series_csv: Path
    """CSV: nifti_path (or dicom_path, or header_index), study_uid, the six labels; patient_id, series_uid if known."""
    columns: str | None = None
    """Names of the CSV's columns if they differ, such as nifti_path=path,patient_id=PatientID."""
    label_policy: LabelPolicy = "strict"
    """If any is not the OR of the five types: stop, set any to the OR, or keep the row as it is."""
    exclude_ids: Path | None = None
    """Text file of patient, study or series IDs, one a line: the patients they belong to are left out."""

    def read_table(self) -> SeriesTable:
        """The checked rows of the series CSV, without those of excluded patients."""
        from meddinov3_stroke.data import parse_column_mapping, read_series_table

        table = read_series_table(
            self.series_csv,
            columns=parse_column_mapping(self.columns),
            datasets_dir=config.load_settings().datasets_dir,
            label_policy=self.label_policy,
            exclude_ids=self.exclude_ids,
        )
        if table.exclusion is not None:
            LOGGER.info("%s", table.exclusion.sentence)
        return table


@dataclass(frozen=True, kw_only=True)
class CohortOptions(TableOptions, SliceOptions, WorkerOptions):
    """How the volumes of a table become one row of features each."""

    urls = ("series_csv", "cache_dir", "output_dir")
    cache_dir: Path = config.RSNA_CACHE_DIR
    """Folder of cached embeddings and remembered input digests; runs and processes may share it."""
    verify_inputs: bool = False
    """Hash every input again instead of trusting the digest remembered for an unchanged path, size and times."""
    pool_mode: Literal["mean", "max", "mean_max", "meanmax"] = config.POOL_MODE
    """How the embeddings of slices become one row per series; meanmax is mean_max."""
    resize: Annotated[int, Range(1)] = config.RESIZE
    """Side in pixels of the square the backbone sees; a multiple of 16."""
    skip_invalid_nifti: bool = False
    """Skip and report volumes that cannot be read or are out of scope, up to --max-invalid."""
    max_invalid: Annotated[float, Range(0, 1)] = config.MAX_INVALID
    """Largest share of volumes that may be skipped, 0 to 1; above it the run stops (exit 8)."""
    slurm: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="")] = ()
    """Submit the shards as a Slurm array, wait, and put them together: shards=N and options of sbatch, such as
    partition=gpu time=08:00:00; wait=no only submits. Shards that have ended are not submitted again."""

    def extract(self, tables: Mapping[str, SeriesTable], force: bool, folder: Path) -> Cohort:
        """The embeddings of every row, computed or from the cache; the first unusable volume raises or is skipped.

        Unless `force`, volumes outside the intended use count as unusable. `folder` takes the ledger.
        """
        from meddinov3_stroke.features.ledger import Ledger
        from meddinov3_stroke.rsna_pipeline import extract_cohort

        workers = self.crew(self.device)
        return extract_cohort(
            tables,
            self.extractor_on(workers.devices[0] if workers else self.device),
            self.cache_dir,
            pool_mode=self.pool_mode,
            skip_invalid=self.skip_invalid_nifti,
            verify_inputs=self.verify_inputs,
            show_progress=self.show_progress,
            force=force,
            ledger=Ledger(folder, self.own_shard()),
            workers=workers,
            open_extractor=self.extractor_on,
            stage=self.stage,
        )

    def submit_shards(self, tables: Mapping[str, SeriesTable], folder: Path) -> bool:
        """Whether to go on: False if the shards of `--slurm` were only submitted."""
        if not self.slurm:
            return True
        from meddinov3_stroke.features.slurm import submit
        from meddinov3_stroke.rsna_pipeline import row_names
        from meddinov3_stroke.system.digest import sha256_of_document

        if self.shard is not None:
            raise UsageError("--shard beside --slurm, which submits all shards; omit one of them")
        settings = sha256_of_document(self.extractor_on(self.device).settings())
        if submit(self.slurm, folder, settings, row_names(tables)):
            return True
        print("once the jobs have ended, the same command without --slurm puts the shards together; status counts them")
        return False

    def print_shard(self, cohort: Cohort, folder: Path) -> dict[str, Any]:
        """Say how the inputs of a shard ended; the document of the run."""
        from meddinov3_stroke.rsna_pipeline import shard_document
        from meddinov3_stroke.system.provenance import ending

        document = shard_document(cohort, str(self.shard))
        counts = document["extraction"]
        print("once all shards are done, the same command without --shard puts them together; status counts them")
        print(ending(f"shard {self.shard}: {counts['done']} of {counts['n_total']} volumes", folder))
        return document

    def extractor_on(self, device: str) -> FeatureExtractor:
        """The backbone of these flags on a device."""
        return replace(self, device=device).extractor(self.resize)


@dataclass(frozen=True, kw_only=True)
class ForceOption:
    """Whether a volume outside the intended use ends the run."""

    force: bool = False
    """Compute volumes outside the intended use too (not a non-contrast head CT in HU); every output says so."""


def _make_tuple(options: ConsoleOptions, name: str) -> None:
    given = getattr(options, name)
    if given is None or isinstance(given, str | Path):
        object.__setattr__(options, name, () if given is None else (Path(given),))


def first_input(folder: Path = config.INPUT_DIR) -> Path:
    """The first .nii or .nii.gz file in `folder` by name; `MissingInput` if there is none."""
    from meddinov3_stroke.ct.contents import is_nifti_name

    found = sorted(file for file in folder.glob("*") if file.is_file() and is_nifti_name(file))
    if not found:
        raise MissingInput(f"no --input, and no .nii or .nii.gz file in {folder}/; name the volume with --input")
    return found[0]
