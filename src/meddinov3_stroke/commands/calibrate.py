"""Stage `calibrate`: an int8 backbone made on some of the user's volumes and measured on others."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float32, Float64, Int8

from meddinov3_stroke import config
from meddinov3_stroke.errors import CheckpointError, DatasetError, MissingInput, SplitError, UsageError
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER
from meddinov3_stroke.types import SliceSelection, VolumeInput, VolumeSource

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.backbone.loading import WeightsFile
    from meddinov3_stroke.backbone.records import Calibration
    from meddinov3_stroke.data import SeriesTable
    from meddinov3_stroke.heads import HeadCheckpoint

LOGGER = logging.getLogger("meddinov3_stroke")

InputPaths = Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-i"])]


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Quantize the backbone to int8 on some of your volumes and measure its fidelity on others."""

    series_csv: Path | None = None
    """Series CSV whose volumes are used; patients are never on both sides."""
    exclude_ids: Path | None = None
    """Text file of IDs, one a line: patients of the series CSV named there by patient, study or series ID are not used
    (those of a test cohort, say)."""
    input: InputPaths = ()
    """Volumes (.nii, .nii.gz, DICOM folder or .zip) instead of a series CSV; at least two."""
    backbone: str | None = None
    """Weights file (.pth, .safetensors) or a registered name such as demo (default: MEDDINOV3_CKPT_PATH)."""
    checkpoint: Path | None = None
    """Head whose AUROC in fp32 and int8 is compared on the held-out volumes of the series CSV."""
    resize: int = config.RESIZE
    """Side in pixels of the square the backbone sees; int8 then takes this size and no other."""
    batch: int = config.BATCH
    """Slices in a forward pass."""
    check_share: float = config.INT8_CHECK_SHARE
    """Share of volumes (of patients, where known) that calibration does not see and int8 is measured on."""
    calibration_slices: int = config.INT8_CALIBRATION_SLICES
    """At most this many slices to quantize on, evenly from the calibration volumes."""
    check_volumes: int = config.INT8_CHECK_VOLUMES
    """At most this many held-out volumes to measure on, every slice of each."""
    seed: int = config.SEED
    """Seed of the choice of volumes."""


@dataclass(frozen=True, eq=False)
class CalibrationVolume:
    """A volume, whose patient it is, and its labels if known."""

    input: VolumeInput
    group: str
    """What must not be on both sides: the patient, the study, or the file itself."""
    labels: Int8[np.ndarray, " label"] | None = None


@dataclass(frozen=True, eq=False)
class MeasuredVolume:
    """Class tokens of one held-out volume in fp32 and in int8."""

    fp32: Float32[np.ndarray, "n dim"]
    int8: Float32[np.ndarray, "n dim"]
    source_sha256: str
    pixels_sha256: str
    labels: Int8[np.ndarray, " label"] | None

    @property
    def cosines(self) -> Float64[np.ndarray, " n"]:
        """Of each slice, int8 to fp32."""
        from meddinov3_stroke.backbone.loading import cosines

        return cosines(self.int8, self.fp32)


def run(args: Args) -> Calibration:
    """The record of the calibration, saved beside the int8 graph in the models folder.

    Raises:
        UsageError: no volumes, both ways of naming them, or a flag out of range.
        DatasetError: too few patients to hold some out, or the same pixels on both sides.
        InputError, OutOfScope: a volume that cannot be used.
        WeightsError: no weights, or a head of another backbone.
        MachineError: NNCF is not installed, or the models folder cannot be written.
    """
    _check_flags(args)
    to_calibrate, to_check = hold_out(_volumes(args), args.check_share, args.seed)
    from meddinov3_stroke.backbone.int8 import require_quantizer
    from meddinov3_stroke.backbone.loading import WeightsFile
    from meddinov3_stroke.backbone.records import calibration_folder, write_calibration

    require_quantizer()
    settings = config.load_settings()
    file = WeightsFile.find(args.backbone or settings.meddinov3_ckpt_path, settings.models_dir)
    assert file.folder is not None  # there is always a models folder
    calibration = _calibrate(args, file, to_calibrate, to_check)
    folder = calibration_folder(file.folder, calibration.weights_sha256)
    write_calibration(folder, calibration)
    print("\n".join([*_summary(calibration), f"wrote {folder}", DISCLAIMER]))
    return calibration


def _check_flags(args: Args) -> None:
    if (args.series_csv is None) == (not args.input):
        raise UsageError("name the volumes by --series-csv or by --input, one of the two")
    if args.checkpoint is not None and args.series_csv is None:
        raise UsageError("--checkpoint: AUROC needs labels, which only --series-csv brings")
    if args.exclude_ids is not None and args.series_csv is None:
        raise UsageError("--exclude-ids: IDs of patients belong to --series-csv")
    if not 0 < args.check_share < 1:
        raise UsageError(f"--check-share {args.check_share:g}: expected a share between 0 and 1")
    for name in ("calibration_slices", "check_volumes", "batch"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")


def _volumes(args: Args) -> list[CalibrationVolume]:
    if args.series_csv is None:
        return volumes_of_paths(args.input)
    from meddinov3_stroke.data import read_series_table

    datasets_dir = config.load_settings().datasets_dir
    table = read_series_table(args.series_csv, datasets_dir=datasets_dir, exclude_ids=args.exclude_ids)
    for warning in table.exclusion.warnings if table.exclusion else ():
        LOGGER.warning("%s", warning)
    return _volumes_of_table(table)


def _volumes_of_table(table: SeriesTable) -> list[CalibrationVolume]:
    empty = [row for row, named in zip(table.rows, table.inputs, strict=True) if named is None]
    if empty:
        raise MissingInput(f"{table.name} row {empty[0]}: nifti_path is empty; fix the row")
    return [
        CalibrationVolume(named, group, labels)
        for named, group, labels in zip(table.inputs, table.groups, table.labels, strict=True)
        if named is not None
    ]


def volumes_of_paths(paths: Sequence[Path]) -> list[CalibrationVolume]:
    """One volume a file, each taken for a patient of its own."""
    return [CalibrationVolume(VolumeInput(path), str(path.resolve())) for path in paths]


def hold_out(
    volumes: Sequence[CalibrationVolume], share: float, seed: int
) -> tuple[list[CalibrationVolume], list[CalibrationVolume]]:
    """(volumes to calibrate on, volumes to measure on), drawn by group in an order that `seed` decides.

    Raises:
        DatasetError: fewer than two groups.
    """
    groups = sorted({volume.group for volume in volumes})
    if len(groups) < 2:
        raise DatasetError(
            f"int8 calibration needs volumes of at least 2 patients, found {len(groups)}: some to calibrate on, others "
            "to measure on; name more volumes"
        )
    rank = {groups[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(groups)))}
    n_held_out = min(max(1, round(share * len(groups))), len(groups) - 1)
    shuffled = sorted(volumes, key=lambda volume: rank[volume.group])
    return (
        [volume for volume in shuffled if rank[volume.group] >= n_held_out],
        [volume for volume in shuffled if rank[volume.group] < n_held_out],
    )


def refuse_copies(calibration_pixels: Sequence[str], check_pixels: Sequence[str]) -> None:
    """Return if no volume to measure on was calibrated on under another name.

    Raises:
        SplitError: the same pixels on both sides.
    """
    shared = set(calibration_pixels) & set(check_pixels)
    if shared:
        raise SplitError(
            f"{len(shared)} volume(s) to measure on hold the same pixels as one calibrated on, under another name; "
            "remove the copies"
        )


def _calibrate(
    args: Args, file: WeightsFile, to_calibrate: list[CalibrationVolume], to_check: list[CalibrationVolume]
) -> Calibration:
    from meddinov3_stroke.backbone import Backbone, load_backbone
    from meddinov3_stroke.backbone.engines.openvino import OpenVINOEngine, build_graph
    from meddinov3_stroke.backbone.int8 import quantize_graph, quantizer_settings, save_graph
    from meddinov3_stroke.backbone.records import Calibration, calibration_folder

    models_dir = config.load_settings().models_dir
    fp32 = load_backbone(args.backbone or file.path, "openvino", "fp32", "cpu", models_dir=models_dir)
    head = _head(args, fp32)
    pixels, sources = _calibration_slices(to_calibrate, fp32, args.resize, args.calibration_slices)
    LOGGER.info("quantizing on %d slices of %d volumes; this takes minutes", len(pixels), len(sources))
    graph = quantize_graph(build_graph(file.weights(), args.resize, class_tokens_only=True), pixels)
    engine = OpenVINOEngine(lambda side: graph, "int8", lambda side: graph)
    int8 = Backbone(replace(fp32.identity, precision="int8"), "cpu", lambda: engine)
    measured = _measure(args, to_check[: args.check_volumes], fp32, int8)
    refuse_copies([source.pixels_sha256 for source in sources], [one.pixels_sha256 for one in measured])
    cosines = np.concatenate([one.cosines for one in measured])
    digest = fp32.identity.weights_sha256
    assert file.folder is not None  # there is always a models folder
    return Calibration(
        weights_sha256=digest,
        resize=args.resize,
        graph_sha256=save_graph(graph, calibration_folder(file.folder, digest)),
        cls_cosine_min=float(cosines.min()),
        cls_cosine_mean=float(cosines.mean()),
        n_calibration_volumes=len(sources),
        n_calibration_slices=len(pixels),
        n_check_volumes=len(measured),
        n_check_slices=len(cosines),
        calibration_inputs_sha256=tuple(source.sha256 for source in sources),
        check_inputs_sha256=tuple(one.source_sha256 for one in measured),
        settings={**quantizer_settings(), "seed": str(args.seed)},
        auroc=None if head is None else auroc_change(head, measured),
    )


def _calibration_slices(
    volumes: Sequence[CalibrationVolume], backbone: Backbone, resize: int, most: int
) -> tuple[Float32[np.ndarray, "n 1 row col"], list[VolumeSource]]:
    """About `most` prepared slices, evenly from as many of the volumes as that reaches, and what they are from."""
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.feature_extractor import select_slices

    chosen = volumes[:most]
    selection = SliceSelection(max_slices=math.ceil(most / len(chosen)))
    windows, sources = [], []
    for each in chosen:
        volume = read_volume(each.input)
        windows.append(backbone.prepare(volume.hu_slices(select_slices(volume.n_slices, selection)), resize))
        sources.append(volume.source)
    return np.concatenate(windows)[:most], sources


def _measure(args: Args, volumes: Sequence[CalibrationVolume], fp32: Backbone, int8: Backbone) -> list[MeasuredVolume]:
    """Every slice of the volumes by both backbones."""
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.feature_extractor import FeatureExtractor
    from meddinov3_stroke.system.progress import progress_bar

    extractors = [FeatureExtractor(one, args.resize, args.batch) for one in (fp32, int8)]
    measured = []
    with progress_bar("measuring", len(volumes), "volumes", args.show_progress) as advance:
        for each in volumes:
            volume = read_volume(each.input)
            plain, quantized = (extractor.embed(volume).cls for extractor in extractors)
            source = volume.source
            measured.append(MeasuredVolume(plain, quantized, source.sha256, source.pixels_sha256, each.labels))
            advance()
    return measured


def auroc_change(head: HeadCheckpoint, measured: Sequence[MeasuredVolume]) -> dict[str, Any]:
    """Macro and per-class AUROC of the head on fp32 and on int8 tokens of the same volumes, and their difference.

    Raises:
        CheckpointError: the head does not state how its rows were pooled.
    """
    from meddinov3_stroke.metrics import auroc_report

    labels = np.stack([one.labels for one in measured if one.labels is not None])
    reports = {
        name: auroc_report(labels, _probabilities(head, [getattr(one, name) for one in measured]), head.labels)
        for name in ("fp32", "int8")
    }
    macros = [report.macro for report in reports.values()]
    return {
        **{name: {"macro": report.macro, "per_class": report.per_class} for name, report in reports.items()},
        "macro_change": None if None in macros else macros[1] - macros[0],  # type: ignore[operator]
        "n_volumes": len(measured),
        "head_sha256": head.sha256,
    }


def _probabilities(
    head: HeadCheckpoint, tokens: Sequence[Float32[np.ndarray, "_ dim"]]
) -> Float64[np.ndarray, "volume label"]:
    from meddinov3_stroke.feature_extractor import pool_slices
    from meddinov3_stroke.heads import predict_logits

    mode = head.pool_mode
    if mode == "slice":  # the label of a series is the maximum over its slices
        return np.stack([predict_logits(head, cls).probabilities.max(axis=0) for cls in tokens])
    if mode not in ("mean", "max", "mean_max"):
        raise CheckpointError(f"the head states pool mode {mode!r}; expected slice, mean, max or mean_max; retrain it")
    return predict_logits(head, np.stack([pool_slices(cls, mode) for cls in tokens])).probabilities


def _head(args: Args, reference: Backbone) -> HeadCheckpoint | None:
    if args.checkpoint is None:
        return None
    from meddinov3_stroke.heads import check_backbone, load_checkpoint

    head = load_checkpoint(args.checkpoint)
    for warning in check_backbone(head, reference.identity, args.resize):
        LOGGER.warning("%s", warning)
    return head


def _summary(calibration: Calibration) -> list[str]:
    """What to know before using int8."""
    from meddinov3_stroke.backbone.records import LEAST_INT8_COSINE

    found = calibration
    lines = [
        f"int8 on {found.n_check_slices} slices of {found.n_check_volumes} held-out volumes: CLS cosine to fp32 at "
        f"least {found.cls_cosine_min:.6f}, mean {found.cls_cosine_mean:.6f}",
        f"quantized on {found.n_calibration_slices} slices of {found.n_calibration_volumes} other volumes, at "
        f"{found.resize} x {found.resize}",
    ]
    if found.auroc is not None:
        lines.append(_auroc_line(found.auroc))
    if found.is_faithful:
        return [*lines, "int8 may be used with --precision int8"]
    return [*lines, f"below {LEAST_INT8_COSINE}: --precision int8 is refused unless --accept-int8 is given"]


def _auroc_line(auroc: dict[str, Any]) -> str:
    if auroc["macro_change"] is None:
        return f"macro AUROC is undefined on these {auroc['n_volumes']} volumes: no label has both classes"
    fp32, int8 = auroc["fp32"]["macro"], auroc["int8"]["macro"]
    return f"macro AUROC {fp32:.4f} in fp32, {int8:.4f} in int8 ({auroc['macro_change']:+.4f})"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
