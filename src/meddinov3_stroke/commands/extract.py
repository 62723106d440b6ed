"""Stage `extract`: a series CSV -> one row of pooled features per series, unsplit, for an external test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.options import CohortOptions, OutputDir, SliceOptions
from meddinov3_stroke.system.command import log_warnings, run_command
from meddinov3_stroke.system.provenance import ending

if TYPE_CHECKING:
    from meddinov3_stroke.data import SeriesTable
    from meddinov3_stroke.features import FeatureExtractor
    from meddinov3_stroke.views import View

LOGGER = logging.getLogger("meddinov3_stroke")

FIT, FIT_ALL = "fit", "fit-all"
"""Values of `--basis` that are no files."""

NAME = "cohort"
"""Begins the names of the arrays: `cohort_embeddings.npy`, `cohort_labels.npy`, `cohort_source_rows.npy`."""


@dataclass(frozen=True, kw_only=True)
class Args(CohortOptions):
    """Embed every volume of a series CSV and pool each into one row, unsplit: input to test-head and train-head."""

    output_dir: OutputDir = config.FEATURES_OUTPUT_DIR
    """Folder for cohort_embeddings.npy, cohort_labels.npy, cohort_source_rows.npy, summary.json and
    extraction_summary.json."""
    views: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VIEW", help_behavior_hint="")] = ("cls",)
    """What is taken of each slice, in one reading of a file: cls, stats, blocks, patches or patchesK such as patches64,
    each also as VIEW@brain, @subdural, @bone or @neighbours, and VIEW+head (see --tokens). Rows are pooled of the
    first; all are in the cache."""
    basis: Annotated[tuple[str, ...], tyro.conf.arg(metavar="fit|fit-all|FILE", help_behavior_hint="")] = ()
    """Compression of patchesK: files of an earlier fit; or fit on the rows whose column split says train; or fit-all on
    every row, of a table that holds training series only (default: none)."""

    @property
    def view_names(self) -> list[str]:
        """The views, each without the patches of air if `tokens` is head."""
        ending = "+head" if self.tokens == "head" else ""
        return list(dict.fromkeys(name.removesuffix(ending) + ending for name in self.views))

    def extractor(self, resize: int) -> FeatureExtractor:
        """The backbone with the views these flags give; of `--basis`, files are read."""
        from meddinov3_stroke.features.basis import FittedBasis, with_views

        plain = super().extractor(resize)
        files = [Path(name) for name in self.basis if name not in (FIT, FIT_ALL)]
        bases = [FittedBasis.read(path) for path in files]
        for basis, path in zip(bases, files, strict=True):
            basis.require_origin(plain, path)
        return with_views(plain, self.view_names, bases)

    def basis_facts(self) -> dict[str, Any]:
        """What each basis was fitted on and loses, for the summary; empty without one."""
        from meddinov3_stroke.features.basis import FittedBasis

        facts = [{"path": path, **FittedBasis.read(Path(path)).facts} for path in self.basis]
        return {"patch_bases": facts} if facts else {}

    def fitted(self, table: SeriesTable) -> Args:
        """These flags with files for `fit` and `fit-all`, which are written to the output folder.

        A file that an earlier run fitted on the same rows is kept. Raises UsageError where no row is of training.
        """
        from meddinov3_stroke.features.basis import fit_bases
        from meddinov3_stroke.views import View

        views = [view for view in map(View.parse, self.view_names) if view.n_components]
        if (FIT not in self.basis and FIT_ALL not in self.basis) or not views:
            return self
        if len(self.basis) > 1 or self.shard is not None or self.slurm:
            raise UsageError(
                "--basis fit beside a file, --shard or --slurm; fit it in a run before, then name its files"
            )
        places, rule = _training_rows(table, self.basis[0])
        fitted_on = {"series_csv_sha256": table.sha256, "rows": rule, "n_rows": len(places)}
        extractor = SliceOptions.extractor(self, self.resize)
        paths = {view: self.output_dir / f"patch_basis_{view.name}.safetensors" for view in views}
        if missing := [view for view in views if not _is_of(paths[view], view, fitted_on, extractor)]:
            sources = [table.inputs[k] for k in places]
            found = fit_bases(missing, [one for one in sources if one is not None], extractor, self.show_progress)
            for one in found:
                replace(one, facts={**one.facts, "fitted_on": fitted_on}).write(paths[one.view])
        return replace(self, basis=tuple(str(path) for path in paths.values()))


def _training_rows(table: SeriesTable, rule: str) -> tuple[list[int], str]:
    """Places of the rows that a basis is fitted on, and the rule in words."""
    if rule == FIT_ALL:
        return list(range(len(table))), "every row"
    columns = [name for name in table.original.columns if str(name).strip().casefold() == "split"]
    values = [] if not columns else [str(cell).strip().casefold() for cell in table.original[columns[0]]]
    if places := [k for k, value in enumerate(values) if value == "train"]:
        return places, "column split says train"
    raise UsageError(
        f"--basis fit: no row of {table.name} has train in a column split, and a basis is fitted on training series "
        "only; split the table first (the split CSVs have that column), or pass fit-all if every row is of training"
    )


def _is_of(path: Path, view: View, fitted_on: dict[str, Any], extractor: FeatureExtractor) -> bool:
    """Whether a file holds the basis of a view, fitted earlier on the same rows with the same weights."""
    from meddinov3_stroke.errors import WeightsError
    from meddinov3_stroke.features.basis import FittedBasis

    if not path.exists():
        return False
    try:
        found = FittedBasis.read(path)
        found.require_origin(extractor, path)
    except WeightsError as error:
        LOGGER.warning("%s; it is fitted again", error)
        return False
    if is_same := (found.view == view and found.facts.get("fitted_on") == fitted_on):
        LOGGER.info("view %s: the basis of an earlier run on the same rows is kept (%s)", view.name, path)
    return is_same


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
    args = args.fitted(table)
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
        **args.basis_facts(),
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
