"""Stage `predict`: head CTs -> haemorrhage probabilities, decisions, suspicious slices and similarity maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from meddinov3_stroke.cases import Cases, case_id, require_own_folder
from meddinov3_stroke.config import CASE_OUTPUT_PREFIX, TOP_K
from meddinov3_stroke.errors import AmbiguousInput
from meddinov3_stroke.options import CaseOptions, ForceOption, HeadOptions, OptionalOutputDir
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import Range, log_warnings, run_command
from meddinov3_stroke.system.progress import slice_progress

if TYPE_CHECKING:
    from meddinov3_stroke.batch import Compute
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
    operating_point: Literal["youden", "sensitivity-95", "sensitivity-98"] | None = None
    """Decide by the calibrated probability at this point, fixed on the validation patients of the head's training."""
    sim_slice: Annotated[int | None, Range(-1)] = None
    """Slice of the similarity map, 0-based, inferior to superior; -1 is the middle one (default: the suspicious
    slices)."""
    sim_patch: str | None = None
    """Reference patch of the map: center, or row,column in the patch grid, 0-based (default: by head score)."""

    def predictor_on(self, device: str) -> ICHPredictor:
        """The predictor of these flags on a device."""
        from meddinov3_stroke.predictor import ICHPredictor

        return ICHPredictor.load(
            self.checkpoint,
            backbone=replace(self, device=device).open_backbone(),
            batch=self.batch,
            top_k=self.top_k,
            resize=self.resize,
            selection=self.selection,
            tokens=self.tokens,
            threshold=self.threshold,
            operating_point=self.operating_point,
            sim_slice=self.sim_slice,
            sim_patch=self.sim_patch,
            force=self.force,
        )

    def compute_on(self, device: str) -> tuple[Compute, dict[str, Any]]:
        """What computes cases on a device, and the settings that decide the results."""
        predictor = self.predictor_on(device)
        return partial(predictor.map, stage=self.stage), _settings(self, predictor)


def run(args: Args) -> Case | None:
    """The case, as written to the output folder; None for a batch."""
    cases = args.cases()
    require_writable(args.output_dir or Path(CASE_OUTPUT_PREFIX).parent, *args.stage_folders)
    if cases.is_batch:
        _run_batch(args, cases)
        return None
    args.require_no_crew()
    predictor = args.predictor_on(args.device)
    try:
        return _run_one(args, predictor, cases.inputs[0])
    except AmbiguousInput:
        if args.series is not None:
            raise
    _run_batch(args, args.studies(cases), predictor)
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


def _run_batch(args: Args, cases: Cases, predictor: ICHPredictor | None = None) -> None:
    from meddinov3_stroke.batch import Batch

    workers = args.crew(args.device)
    predictor = predictor or args.predictor_on(workers.devices[0] if workers else args.device)
    folder = args.output_dir or Path(f"{CASE_OUTPUT_PREFIX}cases")
    batch = Batch(folder, _settings(args, predictor), overwrite=args.overwrite, shard=args.own_shard())
    with nullcontext() if workers else predictor.extractor.warming_up():
        batch.run(cases.inputs, partial(predictor.map, stage=args.stage), args, workers, args.compute_on)


def _settings(args: Args, predictor: ICHPredictor) -> dict[str, Any]:
    """What decides the results of a batch."""
    flags = ("top_k", "threshold", "sim_slice", "sim_patch", "force", "join_series")
    own = {name: getattr(args, name) for name in flags}
    own |= {"operating_point": args.operating_point} if args.operating_point else {}  # ledgers of earlier versions
    return {"verb": "predict", "head": predictor.heads.sha256, **predictor.extractor.settings(), **own}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
