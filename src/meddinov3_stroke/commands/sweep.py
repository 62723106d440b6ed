"""Verb `sweep`: views and kinds of head compared by cross-validation; the best one is fitted on all of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.config import AnyHeadConfig
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.options import CohortOptions, ForceOption, OutputDir
from meddinov3_stroke.system.command import Range, log_warnings, run_command
from meddinov3_stroke.system.provenance import ending, provenance

if TYPE_CHECKING:
    from meddinov3_stroke.features import FeatureExtractor

NAME = "sweep"
NOTE = "The best of many looks better than it is: quote figures of patients that took no part."


@dataclass(frozen=True, kw_only=True)
class FitConfig(AnyHeadConfig):
    """The head's options; `--heads` names the kinds."""

    head: tyro.conf.Suppress[str] = "mlp"
    epochs: int = config.RSNA_EPOCHS
    """Passes over the training rows, at least 1."""


@dataclass(frozen=True, kw_only=True)
class Args(CohortOptions, ForceOption):
    """Compare views and kinds of head on the series of a table, by cross-validation that keeps patients together."""

    output_dir: OutputDir = config.SWEEP_DIR
    """Folder for leaderboard.csv, leaderboard.png, sweep.json, predictions.npz, best.pt and fits/."""
    views: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VIEW", help_behavior_hint="")] = ("cls",)
    """What heads see, as in extract: cls, stats, blocks, patches, patchesK, each also as VIEW@brain and so on."""
    basis: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Files of `extract --basis fit` for patchesK; fitted on patients that are not in this table, or say so."""
    heads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="HEAD", help_behavior_hint="")] = ("linear", "probe", "knn")
    """Kinds of head: mlp (always there, on mean-pooled cls), linear, probe, knn, slices, mil, gru, evidence."""
    folds: Annotated[int, Range(2)] = 5
    """Parts of the patients, each held out once."""
    seeds: Annotated[int, Range(1)] = 1
    """Fits of every head with other seeds; the mean of their probabilities is judged."""
    slice_labels: Path | None = None
    """Labels of slices (default: slice_labels.parquet beside the table, if there is one)."""
    resamples: Annotated[int, Range(1)] = config.RESAMPLES
    """Resamples of patients behind the intervals."""
    head: Annotated[FitConfig, tyro.conf.OmitArgPrefixes] = FitConfig()

    def extractor(self, resize: int) -> FeatureExtractor:
        """The backbone with these views."""
        from meddinov3_stroke.features.basis import FittedBasis, with_views

        plain = super().extractor(resize)
        bases = [FittedBasis.read(path) for path in self.basis]
        for basis, path in zip(bases, self.basis, strict=True):
            basis.require_origin(plain, path)
        return with_views(plain, tuple(dict.fromkeys(("cls", *self.views))), bases)


def run(args: Args) -> dict[str, Any]:
    """The document written as `sweep.json`.

    Errors are those of `extract`, and UsageError for views, heads or folds that cannot be.
    """
    from meddinov3_stroke import rsna_pipeline as rsna
    from meddinov3_stroke.batch import csv_text
    from meddinov3_stroke.report.evaluation import leaderboard_png
    from meddinov3_stroke.sweeping import RANKED_BY, candidates_of, leaderboard, refit
    from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json, write_text
    from meddinov3_stroke.system.devices import require_torch
    from meddinov3_stroke.system.provenance import Stopwatch

    watch = Stopwatch()
    require_torch()
    require_writable(args.output_dir, args.cache_dir, *args.stage_folders)
    extractor = args.extractor(args.resize)
    candidates = candidates_of(extractor.views, args.heads)
    table = args.read_table()
    cohort = args.extract({NAME: table}, args.force, args.output_dir)
    found = [*cohort.extractor.backbone.warnings, *table.warnings]
    found += [*rsna.require_within_cap(cohort.invalid_report(), args.max_invalid), *cohort.audit()]
    sweep = _sweep(args, cohort)
    found += sweep.series.warnings()
    rows = leaderboard(sweep, candidates, args.resamples, args.head.seed)
    best, warnings = refit(sweep, candidates, rows[0], args.output_dir / "best.pt")
    document = {
        **provenance(),
        "backbone": asdict(cohort.extractor.backbone.identity),
        "resize": cohort.extractor.resize,
        "series_csv": table.name,
        "series_csv_sha256": table.sha256,
        "folds": args.folds,
        "seeds": sweep.seeds,
        "config": asdict(args.head),
        "ranked_by": RANKED_BY,
        "note": NOTE,
        "candidates": rows,
        "best": best,
        "warnings": [*found, *warnings],
        "elapsed_s": round(watch.elapsed_s, 3),
    }
    write_json(args.output_dir / "sweep.json", document)
    write_bytes(args.output_dir / "leaderboard.png", leaderboard_png(document))
    write_text(args.output_dir / "leaderboard.csv", csv_text([_row(one) for one in rows]))
    log_warnings(document["warnings"])
    _print(args, rows)
    return document


def _sweep(args: Args, cohort: Any) -> Any:
    from meddinov3_stroke.data.slice_labels import SLICE_LABELS
    from meddinov3_stroke.features import EmbeddingStore
    from meddinov3_stroke.sweeping import Series, Sweep, folds_of
    from meddinov3_stroke.system.digest import sha256_of_file

    beside = args.series_csv.parent / SLICE_LABELS
    labels = args.slice_labels or (beside if beside.exists() else None)
    if args.head.position and labels is None:
        raise UsageError("--position needs the heights of slices; name their table with --slice-labels")
    kept = [k for k, one in enumerate(cohort.extractions[NAME]) if one.embeddings is not None]
    table = cohort.tables[NAME].take(kept)
    found = tuple(cohort.extractions[NAME][k] for k in kept)
    series = Series(table, found, EmbeddingStore(args.cache_dir), cohort.pool_mode, labels)
    folds = folds_of(list(table.groups), table.labels, args.folds, args.head.seed)
    about = {
        **cohort.extractor.settings(),
        "series_csv": table.sha256,
        "rows": list(table.rows),
        "pool_mode": cohort.pool_mode,
        "slice_labels": None if labels is None else sha256_of_file(labels),
    }
    about.pop("views", None)
    return Sweep(series, folds, args.head, args.seeds, args.output_dir / "fits", about)


def _row(one: dict[str, Any]) -> dict[str, Any]:
    auroc, against = one["macro"]["auroc"], one["against_reference"]["any"].get("auroc", {})
    matched = (one.get("slices") or {}).get("labels", {}).get("any", {}).get("model", {})
    return {
        "view": one["view"],
        "head": one["head"],
        "macro_auroc": auroc["value"],
        **{f"macro_auroc_{end}": (auroc.get("interval") or {}).get(end) for end in ("low", "high")},
        **{f"auroc_{label}": figures["auroc"]["value"] for label, figures in one["labels"].items()},
        "any_minus_reference": against.get("difference"),
        **{f"any_minus_reference_{end}": (against.get("interval") or {}).get(end) for end in ("low", "high")},
        "slices_any_position_matched_auroc": matched.get("position_matched_auroc", {}).get("value"),
    }


def _print(args: Args, rows: list[dict[str, Any]]) -> None:
    from meddinov3_stroke.report.evaluation import with_interval

    width = max(len(f"{one['view']} · {one['head']}") for one in rows)
    for one in rows:
        name = f"{one['view']} · {one['head']}"
        print(f"{name:<{width}}  macro AUROC {with_interval(one['macro']['auroc'])}")
    print(NOTE)
    print(ending(f"{len(rows)} candidates", args.output_dir / "leaderboard.csv"))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
