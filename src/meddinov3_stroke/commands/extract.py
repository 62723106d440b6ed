"""Stage `extract`: a series CSV -> one row of features each, whole: what an external test is made on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meddinov3_stroke import config
from meddinov3_stroke.options import CohortOptions, OutputDir
from meddinov3_stroke.system.command import run_command
from meddinov3_stroke.system.provenance import DISCLAIMER, provenance

LOGGER = logging.getLogger("meddinov3_stroke")

NAME = "cohort"
"""Begins the names of the arrays: `cohort_embeddings.npy`, `cohort_labels.npy`, `cohort_source_rows.npy`."""


@dataclass(frozen=True, kw_only=True)
class Args(CohortOptions):
    """Embed every volume of a series CSV and pool each into one row, unsplit: input to test-head and train-head."""

    output_dir: OutputDir = config.FEATURES_OUTPUT_DIR
    """Folder for cohort_embeddings.npy, cohort_labels.npy, cohort_source_rows.npy, summary.json and
    extraction_summary.json."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `extraction_summary.json`.

    Raises:
        UsageError: a flag out of range.
        DatasetError: the table, its labels, or the same pixels under two patients.
        InputError, OutOfScope: the first volume that cannot be used, without --skip-invalid-nifti.
        TooManyInvalid: more of them than --max-invalid.
        WeightsError: no backbone, or one that gives NaN.
        KeyboardInterrupt: SIGINT; what is finished is kept and not computed again.
    """
    from meddinov3_stroke import rsna_pipeline as rsna
    from meddinov3_stroke.features import EmbeddingStore
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.provenance import Stopwatch, memory_statistics

    watch = Stopwatch()
    rsna.check_max_invalid(args.max_invalid)
    tables = {NAME: args.read_table()}
    extractor = args.extractor()
    extractions = rsna.extract_splits(
        tables,
        extractor,
        EmbeddingStore(args.cache_dir),
        skip_invalid=args.skip_invalid_nifti,
        show_progress=args.show_progress,
    )
    report = rsna.invalid_report(tables, extractions)
    rsna.require_within_cap(report, args.max_invalid)
    audit = rsna.audit_extractions(tables, extractions)
    features = {NAME: rsna.pool_split(NAME, tables[NAME], extractions[NAME], args.pool_mode)}
    origin = rsna.write_features(features, args.output_dir, args.pool_mode, extractor)
    warnings = [*tables[NAME].warnings, *extractor.backbone.warnings, *rsna.skip_warnings(report), *audit]
    summary = {
        **provenance(),
        **origin,
        "config": {field.name: getattr(args, field.name) for field in fields(args)},
        "device": extractor.backbone.device,
        "extraction": {**rsna.ledger_of(extractions), "volume_warnings": rsna.volume_warnings(tables, extractions)},
        "invalid_nifti_report": report,
        "class_balance": rsna.class_balance(tables, features)[NAME],
        "warnings": warnings,
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics(extractor.backbone.device),
    }
    write_json(args.output_dir / "extraction_summary.json", summary)
    _tell(args.output_dir, summary)
    return summary


def _tell(folder: Path, summary: dict[str, Any]) -> None:
    for warning in summary["warnings"]:
        LOGGER.warning("%s", warning)
    counts = summary["extraction"]
    names = (f"{NAME}_embeddings.npy", f"{NAME}_labels.npy", f"{NAME}_source_rows.npy", "extraction_summary.json")
    print(
        f"{counts['done']} of {counts['n_total']} volumes, {summary['embedding_dim']} numbers each "
        f"({counts['n_from_cache']} from the cache)"
    )
    print("\n".join([*(f"wrote {folder / name}" for name in names), DISCLAIMER]))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
