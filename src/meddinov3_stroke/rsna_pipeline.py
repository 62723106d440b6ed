"""RSNA: series CSV, split by patient, cached embeddings, one row of features per series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64

from meddinov3_stroke.ct import input_digest
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
from meddinov3_stroke.errors import MedDINOError, SplitError, TooManyInvalid, UsageError
from meddinov3_stroke.features import (
    EmbeddingStore,
    Extraction,
    Extractor,
    PoolMode,
    Status,
    extract_series,
    nifti_digest,
    pool_slices,
)
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.system.atomic import write_json, write_npy
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.types import LABELS, HeadData, VolumeInput

__all__ = [
    "SeriesTable",
    "SplitFeatures",
    "Splits",
    "audit_extractions",
    "check_max_invalid",
    "class_balance",
    "extract_splits",
    "invalid_report",
    "ledger_of",
    "pool_split",
    "read_series_table",
    "require_within_cap",
    "skip_warnings",
    "split_by_patient",
    "split_document",
    "split_statistics",
    "volume_warnings",
    "write_features",
    "write_splits",
]

EXAMPLES = 20
"""Unreadable volumes listed in the summary; all are counted."""

Extractions = Mapping[str, list[Extraction]]
"""Name of the split -> what became of its series, row for row."""


STATUSES: tuple[Status, ...] = get_args(Status)
"""The four ends of a volume."""


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """One row per series of a split that could be read."""

    data: HeadData
    table: SeriesTable
    """The rows that are left, in the order of `data`."""


@runtime_checkable
class NamedTables(Protocol):
    """Tables by name: the three splits, or a cohort of its own."""

    def items(self) -> Iterable[tuple[str, SeriesTable]]:
        """(name, table) of each."""
        ...


def extract_splits(
    splits: NamedTables, extractor: Extractor, store: EmbeddingStore, *, skip_invalid: bool, show_progress: bool = True
) -> Extractions:
    """What became of every series, with one progress bar over all of them; finished volumes are not computed again.

    Raises:
        InputError, OutOfScope, StorageError: the first volume that cannot be used, unless `skip_invalid`; with its row.
        KeyboardInterrupt: SIGINT; the volume in hand is finished and stored first.
    """
    tables = dict(splits.items())
    done: dict[str, list[Extraction]] = {name: [] for name in tables}
    total = sum(len(table) for table in tables.values())
    with progress_bar("embedding", total, "volumes", show_progress) as advance, finish_on_interrupt("volume") as stop:
        for name, table in tables.items():
            with closing(extract_series(table.inputs, extractor, store, digest=_digest_of(table))) as found_in_order:
                for row, found in zip(table.rows, found_in_order, strict=True):
                    if found.error is not None and not skip_invalid:
                        raise _with_row(found.error, table.name, row) from found.error
                    done[name].append(found)
                    advance()
                    stop.check()
    return done


def _digest_of(table: SeriesTable) -> Callable[[VolumeInput], str]:
    nifti = table.nifti_inputs
    return lambda source: nifti_digest(source) if source in nifti else input_digest(source)


def _with_row(error: MedDINOError, table: str, row: int) -> MedDINOError:
    return type(error)(
        f"{table} row {row}: {error}; mend the row, or pass --skip-invalid-nifti to go on without such volumes"
    )


def invalid_report(splits: NamedTables, extractions: Extractions) -> dict[str, Any]:
    """`invalid_nifti_report`: n_total, n_invalid, by_reason, by_split, examples (the first `EXAMPLES`)."""
    bad = [
        {"split": name, "row": row, "path": str(found.path or ""), "series_uid": found.input and found.input.series_uid}
        | {"status": found.status, "reason": found.code}
        | {"message": found.message}
        for name, table in splits.items()
        for row, found in zip(table.rows, extractions[name], strict=True)
        if found.error is not None
    ]
    return {
        "n_total": sum(len(found) for found in extractions.values()),
        "n_invalid": len(bad),
        "by_reason": dict(Counter(str(one["reason"]) for one in bad).most_common()),
        "by_split": {name: sum(one["split"] == name for one in bad) for name, _ in splits.items()},
        "examples": bad[:EXAMPLES],
    }


def ledger_of(extractions: Extractions) -> dict[str, int]:
    """Counts that add up: n_total = done + rejected + refused + failed, and done = n_from_cache + n_computed."""
    ledger = [found for of_split in extractions.values() for found in of_split]
    counts = Counter(found.status for found in ledger)
    n_from_cache = sum(found.from_cache for found in ledger)
    return {
        "n_total": len(ledger),
        **{status: counts[status] for status in STATUSES},
        "n_from_cache": n_from_cache,
        "n_computed": counts["done"] - n_from_cache,
    }


def volume_warnings(splits: NamedTables, extractions: Extractions) -> dict[str, Any]:
    """How many volumes were embedded with a warning (padding, non-square slices ...), and the first `EXAMPLES`."""
    warned = [
        {"row": row, "warnings": list(found.embeddings.warnings)}
        for name, table in splits.items()
        for row, found in zip(table.rows, extractions[name], strict=True)
        if found.embeddings is not None and found.embeddings.warnings
    ]
    return {"n_volumes": len(warned), "examples": warned[:EXAMPLES]}


def check_max_invalid(max_invalid: float) -> None:
    """Nothing, where the cap is a share.

    Raises:
        UsageError: not in [0, 1].
    """
    if not 0 <= max_invalid <= 1:
        raise UsageError(f"--max-invalid {max_invalid:g}: expected a share from 0 to 1, such as 0.05")


def skip_warnings(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say of skipped volumes; nothing where there is none."""
    if not report["n_invalid"]:
        return ()
    return (f"{report['n_invalid']} of {report['n_total']} volumes were skipped: {_reasons(report)}",)


def _reasons(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in report["by_reason"].items())


def require_within_cap(report: Mapping[str, Any], max_invalid: float) -> None:
    """Nothing, where no more than the share `max_invalid` of the volumes is invalid.

    Raises:
        TooManyInvalid: more than that; with counts by reason and the first rows.
    """
    n_invalid, n_total = report["n_invalid"], report["n_total"]
    if n_invalid <= max_invalid * n_total:
        return
    rows = name_rows([one["row"] for one in report["examples"]], counted=False)
    raise TooManyInvalid(
        f"{n_invalid} of {n_total} volumes ({n_invalid / n_total:.1%}) cannot be used, more than --max-invalid "
        f"{max_invalid:g}: {_reasons(report)}; first {rows}; no head was trained, what was extracted stays "
        "cached; mend the rows or raise --max-invalid"
    )


def audit_extractions(splits: NamedTables, extractions: Extractions) -> tuple[str, ...]:
    """Warnings on copies within a patient.

    Raises:
        SplitError: the same pixels under two patients or in two splits.
    """
    return audit_pixels(
        SeriesDigests(row, group, name, found.embeddings.source.sha256, found.embeddings.source.pixels_sha256)
        for name, table in splits.items()
        for row, group, found in zip(table.rows, table.groups, extractions[name], strict=True)
        if found.embeddings is not None
    )


def pool_split(name: str, table: SeriesTable, extractions: list[Extraction], mode: PoolMode) -> SplitFeatures:
    """Pooled embeddings and labels of the series that could be read, in the order of the table.

    Raises:
        SplitError: none could be read.
    """
    kept = [k for k, found in enumerate(extractions) if found.embeddings is not None]
    if not kept:
        raise SplitError(f"no volume of {name} could be read; {len(table)} rows are there; mend them and run again")
    rows = [pool_slices(found.embeddings.cls, mode) for found in extractions if found.embeddings is not None]
    left = table.take(kept)
    return SplitFeatures(HeadData(np.stack(rows), left.labels), left)


def class_balance(splits: NamedTables, features: Mapping[str, SplitFeatures]) -> dict[str, Any]:
    """{split: {before, after}}: patients, studies, series and positives before and after unreadable volumes left."""
    return {
        name: {"before": split_statistics(table), "after": split_statistics(features[name].table)}
        for name, table in splits.items()
    }


def write_features(
    features: Mapping[str, SplitFeatures], folder: Path, pool_mode: PoolMode, extractor: Extractor
) -> dict[str, Any]:
    """The `summary.json` written beside the arrays: what they hold, so that the head scripts know it too.

    For each split: `<split>_embeddings.npy` [n, D] float32, `<split>_labels.npy` [n, 6] int8 and
    `<split>_source_rows.npy` [n], the rows in the series CSV (its header is row 1).
    """
    for name, split in features.items():
        write_npy(folder / f"{name}_embeddings.npy", split.data.embeddings)
        write_npy(folder / f"{name}_labels.npy", split.data.labels)
        write_npy(folder / f"{name}_source_rows.npy", _source_rows(split.table))
    first = next(iter(features.values()))
    summary = {
        **provenance(),
        "pool_mode": pool_mode,
        "backbone": asdict(extractor.backbone.identity),
        "resize": extractor.resize,
        "selection": asdict(extractor.selection),
        "embedding_dim": int(first.data.embeddings.shape[1]),
        "labels": list(LABELS),
        "n_rows": {name: len(split.table) for name, split in features.items()},
        "series_csv": first.table.name,
        "series_csv_sha256": first.table.sha256,
    }
    write_json(folder / "summary.json", summary)
    return summary


def _source_rows(table: SeriesTable) -> Int64[np.ndarray, " n"]:
    return np.asarray(table.rows, dtype=np.int64)
