"""Stage `prepare-rsna`: Kaggle's folder -> header index, series table and slice labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from meddinov3_stroke import config
from meddinov3_stroke.errors import PartialFailure, UsageError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.options import OutputDir
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.data import PreparedRsna

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Make a series CSV, a header index and slice labels of the RSNA 2019 folder as Kaggle gives it."""

    root: Path
    """Kaggle's folder: stage_2_train.csv and stage_2_train/*.dcm."""
    output_dir: OutputDir = config.RSNA_PREPARED_DIR
    """Folder for rsna_hemorrhage_series_labels.csv, header_index.parquet, slice_labels.parquet, header_parts/ and
    preparation_summary.json."""
    exclude_ids: Path | None = None
    """Text file of IDs, one a line: patients named there by patient, study, series or image (SOP) ID, in upper or lower
    case, are left out whole."""
    label_policy: LabelPolicy = "strict"
    """Where any of a slice is not the OR of the five types: stop, set any to the OR, or take it as it stands."""
    conflicting_labels: Literal["stop", "positive"] = config.CONFLICTING_LABELS
    """Where an ID stands twice with different labels: stop and name the IDs, or take it as positive and say so."""
    write_nifti: bool = False
    """Write each series as nifti/<patient>/<study>/_<series>.nii.gz too, and let the CSV name these files; straight
    from DICOM is the default and gives the same slices."""
    workers: int = config.PREPARE_WORKERS
    """Processes that read files; 0 is one a CPU."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `preparation_summary.json`.

    Raises:
        UsageError: a flag out of range.
        DatasetError: labels or a list of IDs that cannot be used, or no series left.
        InputError: no folder of images.
        MachineError: the machine refuses to read or write.
        PartialFailure: files that the machine did not give this time; all else is written, and a new run retries them.
        KeyboardInterrupt: SIGINT; headers that were read are kept.
    """
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: expected 0 (one a CPU) or more")
    from meddinov3_stroke.data import RsnaOptions, prepare_rsna
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.devices import available_cpus
    from meddinov3_stroke.system.statistics import Stopwatch, memory_statistics

    watch = Stopwatch()
    workers = args.workers or available_cpus()
    names = ("root", "output_dir", "exclude_ids", "label_policy", "conflicting_labels", "write_nifti", "show_progress")
    found = prepare_rsna(RsnaOptions(workers=workers, **{name: getattr(args, name) for name in names}))
    for warning in found.warnings:
        LOGGER.warning("%s", warning)
    if found.exclusion is not None:
        LOGGER.info("%s", found.exclusion.sentence)
    summary = {
        **provenance(),
        "input": str(args.root),
        "config": {field.name: getattr(args, field.name) for field in fields(args)},
        **_document(found, workers),
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics("cpu"),
    }
    write_json(args.output_dir / "preparation_summary.json", summary)
    _print(found, args.output_dir / "preparation_summary.json")
    if found.n_failed:
        raise PartialFailure(
            f"{found.n_failed} files or series could not be read this time and are not in the table; the rest is "
            "written; run again to retry them"
        )
    return summary


def _document(found: PreparedRsna, workers: int) -> dict[str, Any]:
    from meddinov3_stroke.data import split_statistics

    reading_s = found.seconds["headers"]
    return {
        "series_csv_sha256": found.table.sha256,
        "table": split_statistics(found.table),
        "ledger": found.ledger,
        "exclusion": None if found.exclusion is None else found.exclusion.document,
        "headers": {
            "n_files": found.n_files,
            "n_read_now": found.n_headers_read,
            "n_known_before": found.n_files - found.n_headers_read,
            "workers": workers,
            "files_per_s": round(found.n_headers_read / reading_s, 1) if reading_s and found.n_headers_read else None,
        },
        "nifti": found.nifti,
        "seconds": found.seconds,
        "files": {name: str(path) for name, path in found.files.items()},
        "warnings": list(found.warnings),
    }


def _print(found: PreparedRsna, summary: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from meddinov3_stroke.data import split_statistics
    from meddinov3_stroke.types import LABELS

    counts = split_statistics(found.table)
    shown = Table("", "series table", title="RSNA 2019", title_justify="left")
    shown.columns[1].justify = "right"
    for what in ("patients", "studies", "series"):
        shown.add_row(what, str(counts[f"n_{what}"]))
    for label in LABELS:
        shown.add_row(f"{label} (series)", str(counts["n_positive"][label]))
    Console().print(shown)
    print("\n".join([*map(str, found.files.values()), str(summary), DISCLAIMER]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
