"""Verb `prepare-rsna`: Kaggle's folder -> header index, series table and slice labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from meddinov3_stroke import config
from meddinov3_stroke.commands.prepare_cohort import finish
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.options import OutputDir
from meddinov3_stroke.system.atomic import require_writable
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Make a series CSV, a header index and slice labels of the RSNA 2019 folder as Kaggle distributes it."""

    root: Path
    """Kaggle's folder: stage_2_train.csv and stage_2_train/*.dcm."""
    output_dir: OutputDir = config.RSNA_PREPARED_DIR
    """Folder for rsna_hemorrhage_series_labels.csv, header_index.parquet, slice_labels.parquet, header_parts/ and
    preparation_summary.json."""
    exclude_ids: Path | None = None
    """Text file of IDs, one a line: all series of patients named there by patient, study, series or image (SOP) ID, in
    upper or lower case, are left out."""
    label_policy: LabelPolicy = "strict"
    """Where any of a slice is not the OR of the five types: fail, set any to the OR, or keep it as it is."""
    conflicting_labels: Literal["stop", "positive"] = config.CONFLICTING_LABELS
    """Where an ID occurs twice with different labels: stop and name the IDs, or read it as positive with a warning."""
    write_nifti: bool = False
    """Write each series as nifti/<patient>/<study>/_<series>.nii.gz too, and name these files in the CSV; the default
    reads the DICOM files and gives the same slices."""
    workers: Annotated[int, Range(0)] = config.PREPARE_WORKERS
    """Processes that read files; 0 is one per CPU."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `preparation_summary.json`."""
    from meddinov3_stroke.data.rsna import prepare_rsna
    from meddinov3_stroke.system.devices import available_cpus
    from meddinov3_stroke.system.provenance import Stopwatch

    watch = Stopwatch()
    require_writable(args.output_dir)
    found = prepare_rsna(
        args.root,
        args.output_dir,
        exclude_ids=args.exclude_ids,
        label_policy=args.label_policy,
        conflicting_labels=args.conflicting_labels,
        workers=args.workers or available_cpus(),
        write_nifti=args.write_nifti,
        show_progress=args.show_progress,
    )
    return finish("RSNA 2019", args, args.output_dir, found, watch)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
