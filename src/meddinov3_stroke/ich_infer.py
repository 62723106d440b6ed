"""Stage `predict`: one head CT -> haemorrhage probabilities, decisions, suspicious slices and heat-maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke import config
from meddinov3_stroke.options import BackboneOptions, OptionalOutputDir, OptionalPath, case_name, input_or_first
from meddinov3_stroke.system.command import run_command

if TYPE_CHECKING:
    from meddinov3_stroke.predictor import Case, ICHPredictor

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(BackboneOptions):
    """Find intracranial haemorrhage in one head CT: probabilities, decisions, suspicious slices, heat-maps."""

    checkpoint: Path
    """best.pt or last.pt of a trained head."""
    input: OptionalPath = None
    """Volume: .nii, .nii.gz, or DICOM as a folder, .zip, .txt list of files or file (default: the first NIfTI in
    input/)."""
    series: str | None = None
    """SeriesInstanceUID to read where a DICOM input holds several (default: by the rule that inspect prints)."""
    output_dir: OptionalOutputDir = None
    """Folder for summary.json, similarity_map.png and .npy, slice_probs.npy (default: outputs/ich_<case>)."""
    resize: int | None = None
    """Side in pixels of the square the backbone sees (default: the head's own; another is an error)."""
    stride: int = config.STRIDE
    """Embed every stride-th slice."""
    max_slices: int = config.MAX_SLICES
    """At most this many slices, evenly spaced; 0 is no limit."""
    top_k: int = config.TOP_K
    """Suspicious slices to list and to draw, at least 1."""


def run(args: Args) -> Case:
    """The case, as written to the output folder.

    Raises:
        UsageError: a flag out of range.
        InputError: the volume is missing, corrupt or unsupported.
        OutOfScope: readable, but outside what the model is meant for.
        WeightsError: no weights or no head, or a head of another backbone, preprocessing or resize.
    """
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.feature_extractor import select_slices
    from meddinov3_stroke.report import print_case
    from meddinov3_stroke.system.progress import progress_bar
    from meddinov3_stroke.system.provenance import Stopwatch

    path = input_or_first(args.input)
    folder = args.output_dir or Path(f"{config.CASE_OUTPUT_PREFIX}{case_name(path, args.series)}")
    watch = Stopwatch()
    volume = read_volume(path, series=args.series)
    read_s = watch.elapsed_s
    predictor = load_predictor(args)
    n_chosen = len(select_slices(volume.n_slices, predictor.extractor.selection))
    LOGGER.info("embedding %d of %d slices", n_chosen, volume.n_slices)
    with progress_bar("embedding", n_chosen, "slices", args.show_progress) as advance:
        case = predictor.judge(volume, advance, read_s=read_s)
    for warning in case.warnings:
        LOGGER.warning("%s", warning)
    print_case(case.findings, case.save(folder))
    return case


def load_predictor(args: Args) -> ICHPredictor:
    """The predictor these flags name."""
    from meddinov3_stroke.predictor import ICHPredictor
    from meddinov3_stroke.types import SliceSelection

    return ICHPredictor.load(
        args.checkpoint,
        backbone=args.open_backbone(),
        batch=args.batch,
        top_k=args.top_k,
        resize=args.resize,
        selection=SliceSelection(stride=args.stride, max_slices=args.max_slices),
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
