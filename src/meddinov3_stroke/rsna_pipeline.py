"""RSNA: series CSV, split by patient, cached embeddings, one row of features per series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.data import (
    SeriesDigests,
    SeriesTable,
    Splits,
    audit_pixels,
    read_series_table,
    split_by_patient,
    split_document,
    split_statistics,
    write_splits,
)
from meddinov3_stroke.errors import (
    STATUSES,
    MachineError,
    MedDINOError,
    MissingInput,
    Outcome,
    SplitError,
    TooManyInvalid,
    UnsupportedInput,
    UsageError,
    WorkerLost,
)
from meddinov3_stroke.features import (
    EmbeddingStore,
    Extraction,
    FeatureExtractor,
    InputMemory,
    PoolMode,
    extract,
    pool_mode_name,
    pool_slices,
)
from meddinov3_stroke.features.extract import OnSlices
from meddinov3_stroke.features.ledger import Ledger, input_name
from meddinov3_stroke.features.workers import Work, Workers
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.system.atomic import write_json, write_npy
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import SUMMARY_NAME, Stopwatch, provenance
from meddinov3_stroke.types import LABELS, BackboneIdentity, HeadData, VolumeInput

__all__ = [
    "Cohort",
    "SeriesTable",
    "SplitFeatures",
    "Splits",
    "extract_cohort",
    "read_series_table",
    "split_by_patient",
    "split_document",
    "split_statistics",
    "write_features",
    "write_splits",
]

EXAMPLES = 20  # volumes listed one by one in the summary; all are counted


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """One row per series of a split that could be read."""

    data: HeadData
    table: SeriesTable  # the remaining rows, in the order of `data`


@dataclass(frozen=True, eq=False)
class Cohort:
    """Tables of series (the three splits, or one of its own) and the extraction of every row."""

    tables: Mapping[str, SeriesTable]
    extractions: Mapping[str, list[Extraction]]
    extractor: FeatureExtractor
    pool_mode: PoolMode
    cache_dir: Path
    elapsed_s: float

    def items(self) -> Iterator[tuple[str, int, str, Extraction]]:
        """(table, row of the CSV, group, extraction) of every series, in order."""
        for name, table in self.tables.items():
            for row, group, found in zip(table.rows, table.groups, self.extractions[name], strict=True):
                yield name, row, group, found

    def invalid_report(self) -> dict[str, Any]:
        """`invalid_nifti_report`: n_total, n_invalid, by_reason, by_split, examples (the first `EXAMPLES`)."""
        bad = [(name, row, found) for name, row, _, found in self.items() if found.error is not None]
        examples = [
            {
                "split": name,
                "row": row,
                "path": str(found.path or ""),
                "series_uid": getattr(found.input, "series_uid", None),
                "status": found.outcome.status,
                "reason": found.outcome.code,
                "message": found.outcome.message,
            }
            for name, row, found in bad[:EXAMPLES]
        ]
        return {
            "n_total": sum(map(len, self.tables.values())),
            "n_invalid": len(bad),
            "by_reason": dict(Counter(found.outcome.code for *_, found in bad).most_common()),
            "by_rule": dict(
                Counter(rule for *_, found in bad for rule in getattr(found.error, "rules", ())).most_common()
            ),
            "by_split": {name: sum(split == name for split, *_ in bad) for name in self.tables},
            "examples": examples,
        }

    def document(self) -> dict[str, Any]:
        """Counts, time and warnings: n_total = done + rejected + refused + failed; done = n_from_cache + n_computed."""
        series = [(row, found) for _, row, _, found in self.items()]
        counts = Counter(found.outcome.status for _, found in series)
        n_from_cache = sum(found.from_cache for _, found in series)
        warned = [
            {"row": row, "warnings": list(found.embeddings.warnings)}
            for row, found in series
            if found.embeddings is not None and found.embeddings.warnings
        ]
        return {
            "n_total": len(series),
            **{status: counts[status] for status in STATUSES},
            "n_from_cache": n_from_cache,
            "n_computed": counts["done"] - n_from_cache,
            "elapsed_s": round(self.elapsed_s, 3),
            "cache_dir": str(self.cache_dir),
            "volume_warnings": {"n_volumes": len(warned), "examples": warned[:EXAMPLES]},
        }

    def audit(self) -> tuple[str, ...]:
        """Warnings on copies within a patient; `SplitError` for equal pixels under two patients or in two splits."""
        return audit_pixels(
            SeriesDigests(row, group, name, found.embeddings.source.sha256, found.embeddings.source.pixels_sha256)
            for name, row, group, found in self.items()
            if found.embeddings is not None
        )

    def features(self) -> dict[str, SplitFeatures]:
        """Of each table the pooled embeddings and labels of the series that could be read, in its order."""
        features = {}
        for name, table in self.tables.items():
            rows = [(k, found.embeddings) for k, found in enumerate(self.extractions[name]) if found.embeddings]
            if not rows:
                raise SplitError(f"none of the {len(table)} volumes of {name} could be read; fix them and run again")
            left = table.take([k for k, _ in rows])
            pooled = np.stack([pool_slices(one.cls, self.pool_mode) for _, one in rows])
            pixels = tuple(one.source.pixels_sha256 for _, one in rows)
            features[name] = SplitFeatures(HeadData(pooled, left.labels, tuple(left.groups), pixels), left)
        return features

    def class_balance(self, features: Mapping[str, SplitFeatures]) -> dict[str, Any]:
        """{split: {before, after}}: patients, studies, series and positives before and after skipping volumes."""
        return {
            name: {"before": split_statistics(table), "after": split_statistics(features[name].table)}
            for name, table in self.tables.items()
        }


def extract_cohort(
    tables: Mapping[str, SeriesTable],
    extractor: FeatureExtractor,
    cache_dir: Path,
    *,
    pool_mode: str,
    skip_invalid: bool = False,
    verify_inputs: bool = False,
    show_progress: bool = True,
    force: bool = True,
    ledger: Ledger | None = None,
    workers: Workers | None = None,
    open_extractor: Callable[[str], FeatureExtractor] | None = None,
    stage: Path | None = None,
) -> Cohort:
    """The extraction of every series, with one progress bar over all; what the cache holds is not computed again.

    The first unusable volume raises its error with its row, unless `skip_invalid`. SIGINT finishes the current volume.
    `ledger` records how each row ended; that of a shard limits the tables to the rows of the shard. With `workers` the
    first means the first found, and `open_extractor` (picklable) gives the same extractor on the device of each.
    """
    watch = Stopwatch()
    names = row_names(tables)
    if ledger is not None:
        sources = [source for table in tables.values() for source in table.inputs]
        chosen = ledger.begin(sha256_of_document(extractor.settings()), names, list(map(_key, sources)))
        tables, names = _taken(tables, chosen), [names[k] for k in chosen]
    rows = [(table.name, row) for table in tables.values() for row in table.rows]
    inputs = [source for table in tables.values() for source in table.inputs]
    lost = {} if ledger is None else ledger.lost(names)
    done = {k: Extraction(inputs[k], Outcome.of(error), error=error) for k, error in lost.items()}
    todo = [k for k in range(len(rows)) if k not in done]
    loop = partial(_loop, cache_dir, verify_inputs=verify_inputs, force=force, stage=stage)
    run = _extractions([inputs[k] for k in todo], extractor, workers, loop, open_extractor)
    bar = progress_bar("embedding", len(rows), "volumes", show_progress)
    with bar as advance, finish_on_interrupt("volume") as stop, closing(run) as ended:
        for k, found in chain(done.copy().items(), ((todo[place], found) for place, found in ended)):
            if ledger is not None:
                ledger.add(names[k], found.outcome, path=str(found.path or ""))
            if found.error is not None and not skip_invalid:
                raise _with_row(found.error, *rows[k]) from found.error
            done[k] = found
            advance()
            stop.check()
    in_order = iter([done[k] for k in range(len(rows))])
    extractions = {name: list(islice(in_order, len(table))) for name, table in tables.items()}
    return Cohort(tables, extractions, extractor, pool_mode_name(pool_mode), cache_dir, watch.elapsed_s)


def row_names(tables: Mapping[str, SeriesTable]) -> list[str]:
    """The name of each row in the ledger."""
    return [f"{table.name} row {row}" for table in tables.values() for row in table.rows]


def _key(source: VolumeInput | None) -> str:
    return "" if source is None else input_name(source)


def _taken(tables: Mapping[str, SeriesTable], chosen: Sequence[int]) -> dict[str, SeriesTable]:
    """The tables with the rows at these positions, which count through all of them."""
    taken, start = {}, 0
    for name, table in tables.items():
        taken[name] = table.take([k - start for k in chosen if start <= k < start + len(table)])
        start += len(table)
    return taken


def _with_row(error: MedDINOError, csv: str, row: int) -> MedDINOError:
    kind = UnsupportedInput if isinstance(error, UsageError) else type(error)
    advice = "correct the row"
    if isinstance(error, MissingInput):
        advice += " (a relative path is looked for below DATASETS_DIR and beside the table)"
    return kind(f"{csv} row {row}: {error}; {advice}, or pass --skip-invalid-nifti to skip such volumes")


def _loop(cache_dir: Path, extractor: FeatureExtractor, on_slices: OnSlices | None = None, **settings: Any) -> Work:
    """The loop over inputs on a cache folder, as it runs here or in a worker."""
    run = partial(extract, store=EmbeddingStore(cache_dir), memory=InputMemory(cache_dir / "inputs"))
    return lambda inputs: run(inputs, extractor, on_slices=on_slices, **settings)


def _extractions(
    inputs: Sequence[VolumeInput | None],
    extractor: FeatureExtractor,
    workers: Workers | None,
    loop: Callable[..., Work],
    open_extractor: Callable[[str], FeatureExtractor] | None,
) -> Generator[tuple[int, Extraction], None, None]:
    """(position, extraction) of each input: in order, or with workers as they come."""
    if workers is None:
        with closing(loop(extractor)(inputs)) as found:
            yield from enumerate(found)
        return
    assert open_extractor is not None
    prepare = partial(_prepared, open_extractor, extractor.backbone.identity, loop)
    with closing(workers.map(inputs, prepare)) as results:
        for k, one in results:
            yield k, Extraction(inputs[k], Outcome.of(one), error=one) if isinstance(one, WorkerLost) else one


def _prepared(
    open_extractor: Callable[[str], FeatureExtractor],
    identity: BackboneIdentity,
    loop: Callable[..., Work],
    device: str,
    sign: Callable[..., None],
) -> Work:
    """Runs in a worker."""
    extractor = open_extractor(device)
    if extractor.backbone.identity != identity:
        raise MachineError(
            f"{device} has another engine or precision than the first; name both with --engine, --precision"
        )
    return loop(extractor, on_slices=sign)


def shard_document(cohort: Cohort, shard: str) -> dict[str, Any]:
    """What a run of one shard prints: it writes no arrays, because only all shards together make the table."""
    counts = cohort.document()
    return {**provenance(), "shard": shard, "extraction": counts, "invalid_nifti_report": cohort.invalid_report()}


def require_within_cap(report: Mapping[str, Any], max_invalid: float) -> tuple[str, ...]:
    """The warning about skipped volumes, if any; `TooManyInvalid` where they exceed the share `max_invalid`."""
    n_invalid, n_total = report["n_invalid"], report["n_total"]
    if not n_invalid:
        return ()
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["by_reason"].items())
    if n_invalid <= max_invalid * n_total:
        return (f"{n_invalid} of {n_total} volumes were skipped: {reasons}",)
    rows = name_rows([one["row"] for one in report["examples"]], counted=False)
    raise TooManyInvalid(
        f"{n_invalid} of {n_total} volumes ({n_invalid / n_total:.1%}) cannot be used, more than --max-invalid "
        f"{max_invalid:g}: {reasons}; first {rows}; no head was trained and finished volumes stay cached; fix the "
        "rows or raise --max-invalid"
    )


def write_features(cohort: Cohort, features: Mapping[str, SplitFeatures], folder: Path) -> dict[str, Any]:
    """The `summary.json` written beside the arrays, from which the head scripts learn what they hold.

    For each split: `<split>_embeddings.npy` [n, D] float32, `<split>_labels.npy` [n, 6] int8 and
    `<split>_source_rows.npy` [n], the rows in the series CSV (its header is row 1).
    """
    for name, split in features.items():
        write_npy(folder / f"{name}_embeddings.npy", split.data.embeddings)
        write_npy(folder / f"{name}_labels.npy", split.data.labels)
        write_npy(folder / f"{name}_source_rows.npy", np.asarray(split.table.rows, dtype=np.int64))
    first = next(iter(features.values()))
    summary = {
        **provenance(),
        "pool_mode": cohort.pool_mode,
        "backbone": asdict(cohort.extractor.identity),
        "resize": cohort.extractor.resize,
        "selection": asdict(cohort.extractor.selection),
        "embedding_dim": int(first.data.embeddings.shape[1]),
        "labels": list(LABELS),
        "n_rows": {name: len(split.table) for name, split in features.items()},
        "series_csv": first.table.name,
        "series_csv_sha256": first.table.sha256,
        **cohort.extractor.views_document(),
    }
    write_json(folder / SUMMARY_NAME, summary)
    return summary
