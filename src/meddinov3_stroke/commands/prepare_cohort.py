"""Verb `prepare-cohort`: a public cohort as downloaded -> series table, slice labels where there are any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import PartialFailure, UsageError
from meddinov3_stroke.options import OptionalOutputDir
from meddinov3_stroke.system.command import ConsoleOptions, log_warnings, run_command
from meddinov3_stroke.system.provenance import provenance

if TYPE_CHECKING:
    from meddinov3_stroke.data.cohort import Prepared
    from meddinov3_stroke.system.provenance import Stopwatch

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Make a series CSV (and slice labels) of a public cohort as it was downloaded."""

    cohort: Annotated[Literal["cq500", "physionet", "bhsd"], tyro.conf.Positional]
    """Which cohort: CQ500, PhysioNet CT-ICH or BHSD."""
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


def run(args: Args) -> dict[str, Any]:
    """The document written as `preparation_summary.json`."""
    if args.mapping is not None and args.cohort != "bhsd":
        raise UsageError(f"--mapping belongs to bhsd, not to {args.cohort}")
    if args.undecided_type != config.UNDECIDED_TYPE and args.cohort != "cq500":
        raise UsageError(f"--undecided-type belongs to cq500, not to {args.cohort}")
    from meddinov3_stroke.data import bhsd, cq500, physionet
    from meddinov3_stroke.system.atomic import require_writable
    from meddinov3_stroke.system.provenance import Stopwatch

    watch = Stopwatch()
    folder = args.output_dir or Path(f"{config.COHORT_OUTPUT_PREFIX}{args.cohort}")
    require_writable(folder)
    if args.cohort == "cq500":
        found = cq500.prepare_cq500(args.root, folder, args.undecided_type)
    elif args.cohort == "physionet":
        found = physionet.prepare_physionet(args.root, folder, show_progress=args.show_progress)
    else:
        found = bhsd.prepare_bhsd(args.root, folder, args.mapping, show_progress=args.show_progress)
    return finish(args.cohort, args, folder, found, watch)


def finish(title: str, args: ConsoleOptions, folder: Path, found: Prepared, watch: Stopwatch) -> dict[str, Any]:
    """The summary of a preparation, written to `folder`; warnings are logged and counts printed.

    Raises:
        PartialFailure: some files could not be read for the machine's reasons.
    """
    from meddinov3_stroke.data import split_statistics
    from meddinov3_stroke.rsna_split import print_counts
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.provenance import ending, memory_statistics

    log_warnings(found.warnings)
    if found.table.exclusion is not None:
        LOGGER.info("%s", found.table.exclusion.sentence)
    config_used = vars(args)
    summary = {
        **provenance(),
        "input": str(config_used["root"]),
        **({"cohort": config_used["cohort"]} if "cohort" in config_used else {}),
        "config": config_used,
        "series_csv_sha256": found.table.sha256,
        "table": split_statistics(found.table),
        **found.facts,
        "files": {name: str(path) for name, path in found.files.items()},
        "warnings": list(found.warnings),
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics("cpu"),
    }
    write_json(folder / "preparation_summary.json", summary)
    files = [*found.files.values(), folder / "preparation_summary.json"]
    last = ending(f"{len(found.table.rows)} series in the table", folder, len(found.warnings))
    print_counts(title, {"series table": found.table}, files, last)
    if found.n_failed:
        raise PartialFailure(
            f"{found.n_failed} files or series could not be read this time and are not in the table; the rest is "
            "written; run again to retry them"
        )
    return summary


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
