"""Stage `predict`: one head CT -> haemorrhage probabilities, decisions, suspicious slices and similarity maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from meddinov3_stroke.config import CASE_OUTPUT_PREFIX, TOP_K
from meddinov3_stroke.options import CaseOptions, ForceOption, OptionalOutputDir, case_name, slice_progress
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import Range, run_command

if TYPE_CHECKING:
    from meddinov3_stroke.predictor import Case

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(CaseOptions, ForceOption):
    """Find intracranial haemorrhage in one head CT: probabilities, decisions, suspicious slices, similarity maps."""

    checkpoint: Path
    """best.pt or last.pt of a trained head."""
    output_dir: OptionalOutputDir = None
    """Folder for summary.json, similarity_map.png and the arrays (default: outputs/ich_<case>)."""
    resize: Annotated[int | None, Range(1)] = None
    """Side in pixels of the square the backbone sees (default: the head's own; another is an error)."""
    top_k: Annotated[int, Range(1)] = TOP_K
    """Suspicious slices to list and to draw, at least 1."""
    threshold: Annotated[float | None, Range(0, 1)] = None
    """Probability from which every label is positive, 0 to 1 (default: the checkpoint's own thresholds)."""
    sim_slice: Annotated[int | None, Range(-1)] = None
    """Slice of the similarity map, 0-based, inferior to superior; -1 is the middle one (default: the suspicious
    slices)."""
    sim_patch: str | None = None
    """Reference patch of the map: center, or row,column in the patch grid, 0-based (default: by head score)."""


def run(args: Args) -> Case:
    """The case, as written to the output folder."""
    from meddinov3_stroke.predictor import ICHPredictor
    from meddinov3_stroke.report import print_case

    source = args.source()
    folder = args.output_dir or Path(f"{CASE_OUTPUT_PREFIX}{case_name(source.path, source.series_uid)}")
    require_writable(folder)
    predictor = ICHPredictor.load(
        args.checkpoint,
        backbone=args.open_backbone(),
        batch=args.batch,
        top_k=args.top_k,
        resize=args.resize,
        selection=args.selection,
        threshold=args.threshold,
        sim_slice=args.sim_slice,
        sim_patch=args.sim_patch,
        force=args.force,
    )
    with slice_progress(args.show_progress) as on_slices, predictor.extractor.warming_up():
        case = predictor(source, on_slices)
    for warning in case.warnings:
        LOGGER.warning("%s", warning)
    print_case(case.findings, case.save(folder))
    return case


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
