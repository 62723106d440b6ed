"""Stage `predict`: head CTs -> haemorrhage probabilities, decisions, suspicious slices and similarity maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from meddinov3_stroke.cases import Cases, case_id, require_own_folder
from meddinov3_stroke.config import CASE_OUTPUT_PREFIX, TOP_K
from meddinov3_stroke.errors import AmbiguousInput
from meddinov3_stroke.options import CaseOptions, ForceOption, HeadOptions, OptionalOutputDir, slice_progress
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import Range, log_warnings, run_command

if TYPE_CHECKING:
    from meddinov3_stroke.predictor import Case, ICHPredictor
    from meddinov3_stroke.types import Volume, VolumeInput


@dataclass(frozen=True, kw_only=True)
class Args(CaseOptions, HeadOptions, ForceOption):
    """Find intracranial haemorrhage in head CTs: probabilities, decisions, suspicious slices, similarity maps."""

    output_dir: OptionalOutputDir = None
    """Folder for summary.json, similarity_map.png and the arrays; of several inputs, for results.csv and a folder for
    each case (default: outputs/ich_<case id>, or outputs/ich_cases)."""
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


def run(args: Args) -> Case | None:
    """The case, as written to the output folder; None for a batch."""
    from meddinov3_stroke.predictor import ICHPredictor

    cases = args.cases()
    require_writable(args.output_dir or Path(CASE_OUTPUT_PREFIX).parent)
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
    try:
        if not cases.is_batch:
            return _run_one(args, predictor, cases.inputs[0])
    except AmbiguousInput:
        if args.series is not None:
            raise
        cases = args.studies(cases)
    _run_batch(args, predictor, cases)
    return None


def _run_one(args: Args, predictor: ICHPredictor, source: VolumeInput) -> Case:
    from meddinov3_stroke.report import case_document, print_case

    def check_folder(volume: Volume) -> None:
        if args.output_dir is not None and not args.overwrite:
            require_own_folder(args.output_dir, volume.source.sha256)

    with slice_progress(args.show_progress) as on_slices, predictor.extractor.warming_up():
        case = predictor(source, on_slices, check_folder)
    log_warnings(case.warnings)
    files = case.save(args.output_dir or Path(f"{CASE_OUTPUT_PREFIX}{case_id(case.sha256)}"))
    if args.json:
        names.print_document(case_document(case.findings))
    else:
        print_case(case.findings, files)
    return case


def _run_batch(args: Args, predictor: ICHPredictor, cases: Cases) -> None:
    from meddinov3_stroke.batch import Batch

    folder = args.output_dir or Path(f"{CASE_OUTPUT_PREFIX}cases")
    batch = Batch(folder, _settings(args, predictor), overwrite=args.overwrite)
    with predictor.extractor.warming_up():
        batch.run(cases.inputs, predictor.map, args)


def _settings(args: Args, predictor: ICHPredictor) -> dict[str, Any]:
    """What decides the results of a batch."""
    flags = ("top_k", "threshold", "sim_slice", "sim_patch", "force", "join_series")
    own = {name: getattr(args, name) for name in flags}
    return {"verb": "predict", "head": predictor.heads.sha256, **predictor.extractor.settings(), **own}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
