"""Stage `extract`: a series CSV -> one row of pooled features per series, unsplit, for an external test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meddinov3_stroke import config
from meddinov3_stroke.options import CohortOptions, OutputDir
from meddinov3_stroke.system.command import log_warnings, run_command
from meddinov3_stroke.system.provenance import ending

NAME = "cohort"
"""Begins the names of the arrays: `cohort_embeddings.npy`, `cohort_labels.npy`, `cohort_source_rows.npy`."""


@dataclass(frozen=True, kw_only=True)
class Args(CohortOptions):
    """Embed every volume of a series CSV and pool each into one row, unsplit: input to test-head and train-head."""

    output_dir: OutputDir = config.FEATURES_OUTPUT_DIR
    """Folder for cohort_embeddings.npy, cohort_labels.npy, cohort_source_rows.npy, summary.json and
    extraction_summary.json."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `extraction_summary.json`; of a shard, what was embedded.

    Errors are those of `rsna_train.run` up to the features.
    """
    from meddinov3_stroke import rsna_pipeline as rsna
    from meddinov3_stroke.system.atomic import require_writable, write_json
    from meddinov3_stroke.system.provenance import Stopwatch, memory_statistics

    watch = Stopwatch()
    require_writable(args.output_dir, args.cache_dir, *args.stage_folders)
    table = args.read_table()
    if not args.submit_shards({NAME: table}, args.output_dir):
        return {}
    cohort = args.extract({NAME: table}, True, args.output_dir)
    if args.shard is not None:
        return args.print_shard(cohort, args.output_dir)
    report, backbone = cohort.invalid_report(), cohort.extractor.backbone
    found = [*backbone.warnings, *rsna.require_within_cap(report, args.max_invalid), *cohort.audit()]
    features = cohort.features()
    origin = rsna.write_features(cohort, features, args.output_dir)
    summary = {
        **origin,
        "config": vars(args),
        "device": backbone.device,
        "extraction": cohort.document(),
        "invalid_nifti_report": report,
        "class_balance": cohort.class_balance(features)[NAME],
        "warnings": [*table.warnings, *found],
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics(backbone.device),
    }
    write_json(args.output_dir / "extraction_summary.json", summary)
    log_warnings(summary["warnings"])
    counts = summary["extraction"]
    names = [f"{NAME}_{what}.npy" for what in ("embeddings", "labels", "source_rows")] + ["extraction_summary.json"]
    volumes = f"{counts['done']} of {counts['n_total']} volumes"
    print(f"{volumes}, {summary['embedding_dim']}-dimensional features ({counts['n_from_cache']} from the cache)")
    last = ending(volumes, args.output_dir, len(summary["warnings"]))
    print("\n".join([*(f"wrote {args.output_dir / name}" for name in names), last]))
    return summary


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
