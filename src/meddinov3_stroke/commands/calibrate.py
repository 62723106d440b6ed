"""Stage `calibrate`: an int8 backbone made on the user's volumes and measured on others of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import Backbone
    from meddinov3_stroke.heads import HeadCheckpoint
    from meddinov3_stroke.int8 import CalibrationVolume
    from meddinov3_stroke.models import BackbonePlan, Calibration

LOGGER = logging.getLogger("meddinov3_stroke")

InputPaths = Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-i"])]


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Quantize the backbone to int8 on some of your volumes and measure on others whether it may be used."""

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
    from meddinov3_stroke.backbone.quantization import require_quantizer
    from meddinov3_stroke.int8 import hold_out
    from meddinov3_stroke.models import plan_backbone, write_calibration

    sides = hold_out(_volumes(args), args.check_share, args.seed)
    require_quantizer()
    settings = config.load_settings()
    source = args.backbone or settings.meddinov3_ckpt_path
    plan = plan_backbone(source, "openvino", "fp32", "cpu", models_dir=settings.models_dir)
    calibration = _calibrate(args, plan, *sides)
    folder = plan.calibration_folder(calibration.weights_sha256)
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
    from meddinov3_stroke.data import read_series_table
    from meddinov3_stroke.int8 import volumes_of_paths, volumes_of_table

    if args.series_csv is None:
        return volumes_of_paths(args.input)
    datasets_dir = config.load_settings().datasets_dir
    table = read_series_table(args.series_csv, datasets_dir=datasets_dir, exclude_ids=args.exclude_ids)
    for warning in table.exclusion.warnings if table.exclusion else ():
        LOGGER.warning("%s", warning)
    return volumes_of_table(table)


def _calibrate(
    args: Args, plan: BackbonePlan, to_calibrate: list[CalibrationVolume], to_check: list[CalibrationVolume]
) -> Calibration:
    import numpy as np

    from meddinov3_stroke import int8
    from meddinov3_stroke.backbone import load_planned
    from meddinov3_stroke.backbone.quantization import quantizer_settings
    from meddinov3_stroke.models import Calibration, WeightsFacts
    from meddinov3_stroke.system.progress import progress_bar

    reference = load_planned(replace(plan, execution=replace(plan.execution, engine="torch", reason="the reference")))
    head = _head(args, reference)
    slices = int8.calibration_slices(to_calibrate, reference, args.resize, args.calibration_slices)
    LOGGER.info("quantizing on %d slices of %d volumes; this takes minutes", len(slices.pixels), len(slices.sources))
    facts = WeightsFacts.of(reference.identity)
    graph = int8.quantized_graph(plan, facts, args.resize, slices.pixels)
    trial = int8.trial_backbone(graph, replace(reference.identity, engine="openvino", precision="int8"))
    checked = to_check[: args.check_volumes]
    with progress_bar("measuring", len(checked), "volumes", args.show_progress) as advance:
        measured = int8.measure(checked, reference, trial, args.resize, args.batch, advance)
    int8.refuse_copies(slices.pixels_sha256, [one.pixels_sha256 for one in measured])
    cosines = np.concatenate([one.cosines for one in measured])
    return Calibration(
        weights_sha256=facts.weights_sha256,
        resize=args.resize,
        graph_sha256=int8.keep_graph(plan, facts.weights_sha256, graph),
        cls_cosine_min=float(cosines.min()),
        cls_cosine_mean=float(cosines.mean()),
        n_calibration_volumes=len(slices.sources),
        n_calibration_slices=len(slices.pixels),
        n_check_volumes=len(measured),
        n_check_slices=len(cosines),
        calibration_inputs_sha256=slices.sources,
        check_inputs_sha256=tuple(one.source_sha256 for one in measured),
        settings={**quantizer_settings(), "seed": str(args.seed)},
        auroc=None if head is None else int8.auroc_change(head, measured),
    )


def _head(args: Args, reference: Backbone) -> HeadCheckpoint | None:
    if args.checkpoint is None:
        return None
    from meddinov3_stroke.heads import check_backbone, load_checkpoint

    head = load_checkpoint(args.checkpoint)
    for warning in check_backbone(head, reference.identity, args.resize):
        LOGGER.warning("%s", warning)
    return head


def _summary(calibration: Calibration) -> list[str]:
    """What a person must know before using int8."""
    from meddinov3_stroke.models import LEAST_INT8_COSINE

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
