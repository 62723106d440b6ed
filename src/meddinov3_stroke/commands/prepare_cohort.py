"""Stage `prepare-cohort`: a public cohort as downloaded -> series table, slice labels where there are any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import PartialFailure, UsageError
from meddinov3_stroke.options import OptionalOutputDir
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import DISCLAIMER, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.data import PreparedCohort

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Make a series CSV (and slice labels) of a public cohort as it was downloaded."""

    cohort: Annotated[Literal["cq500", "physionet", "bhsd"], tyro.conf.Positional]
    """Which cohort lies there: CQ500, PhysioNet CT-ICH or BHSD."""
    root: Path
    """Folder of the download: with reads.csv; with ct_scans/, masks/ and hemorrhage_diagnosis_raw_ct.csv; or BHSD's."""
    output_dir: OptionalOutputDir = None
    """Folder for <cohort>_series_labels.csv, slice_labels.parquet and preparation_summary.json (default:
    outputs/cohort_<cohort>)."""
    undecided_type: Literal["leave-out", "keep"] = config.UNDECIDED_TYPE
    """CQ500, cases with a majority for ICH and for no type: leave them out, or keep them as any without a type (the
    table then needs --label-policy ignore)."""
    mapping: Path | None = None
    """BHSD, TOML file of names and label values (default: bhsd_mapping.toml in --output-dir, written where absent)."""

    @property
    def folder(self) -> Path:
        """Where to write."""
        return self.output_dir or Path(f"{config.COHORT_OUTPUT_PREFIX}{self.cohort}")


def run(args: Args) -> dict[str, Any]:
    """The document written as `preparation_summary.json`.

    Raises:
        UsageError: a flag of another cohort, or a mapping file that is none.
        DatasetError: a file or column is missing, labels that are none, or no case is usable.
        MachineError: the machine refuses to read or write.
        PartialFailure: volumes that the machine did not give this time; all else is written.
    """
    if args.mapping is not None and args.cohort != "bhsd":
        raise UsageError(f"--mapping belongs to bhsd, not to {args.cohort}")
    if args.undecided_type != config.UNDECIDED_TYPE and args.cohort != "cq500":
        raise UsageError(f"--undecided-type belongs to cq500, not to {args.cohort}")
    from meddinov3_stroke.data import split_statistics
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.statistics import Stopwatch

    watch = Stopwatch()
    found = _prepare(args)
    for warning in found.warnings:
        LOGGER.warning("%s", warning)
    summary = {
        **provenance(),
        "input": str(args.root),
        "cohort": args.cohort,
        "config": {field.name: getattr(args, field.name) for field in fields(args)},
        "series_csv_sha256": found.table.sha256,
        "table": split_statistics(found.table),
        "ledger": found.ledger,
        **found.facts,
        "files": {name: str(path) for name, path in found.files.items()},
        "warnings": list(found.warnings),
        "elapsed_s": round(watch.elapsed_s, 3),
    }
    write_json(args.folder / "preparation_summary.json", summary)
    _print(args, summary)
    n_failed = found.ledger["by_status"].get("failed", 0)
    if n_failed:
        raise PartialFailure(f"{n_failed} volumes could not be read this time; the rest is written; run again")
    return summary


def _prepare(args: Args) -> PreparedCohort:
    from meddinov3_stroke.data import prepare_bhsd, prepare_cq500, prepare_physionet

    if args.cohort == "cq500":
        return prepare_cq500(args.root, args.folder, args.undecided_type)
    if args.cohort == "physionet":
        return prepare_physionet(args.root, args.folder, show_progress=args.show_progress)
    return prepare_bhsd(args.root, args.folder, args.mapping, show_progress=args.show_progress)


def _print(args: Args, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from meddinov3_stroke.types import LABELS

    counts = summary["table"]
    shown = Table("", "series table", title=args.cohort, title_justify="left")
    shown.columns[1].justify = "right"
    for what in ("patients", "studies", "series"):
        shown.add_row(what, str(counts[f"n_{what}"]))
    for label in LABELS:
        shown.add_row(f"{label} (series)", str(counts["n_positive"][label]))
    Console().print(shown)
    print("\n".join([*summary["files"].values(), str(args.folder / "preparation_summary.json"), DISCLAIMER]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
