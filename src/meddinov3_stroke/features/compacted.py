"""Compacted entries of a store: Parquet shards, which pyarrow, DuckDB and pandas read without this package.

A row is a slice: `key`, `slice_index`, `cls` (float16; what the entry's view takes of the slice), and in the first row
of an entry its `metadata` (JSON), which names the view. A row group holds the entries of a study. `index.parquet` says
where each entry lies, and its digest. Shards are written before the index, and the index before files are removed, so a
killed run loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Int32

from meddinov3_stroke.features.store import (
    COMPACTED,
    COMPACTED_INDEX,
    CORRUPT_SUFFIX,
    SUFFIX,
    EmbeddingStore,
    Entry,
    header_of,
)
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.system.digest import sha256_of_document

LOGGER = logging.getLogger("meddinov3_stroke")

ENTRIES_PER_SHARD = 2048  # held in memory while a shard is written: 110 MB for ViT-B/16 and 35 slices

_NAMES = ("key", "study_instance_uid", "series_instance_uid", "source_sha256", "shard", "sha256")
_PLACES = ("row_group", "first_row", "n_rows")
INDEX_SCHEMA = pa.schema([(name, pa.string()) for name in _NAMES] + [(name, pa.int32()) for name in _PLACES])


@dataclass(frozen=True, eq=False)
class _Record:
    """An entry as a shard holds it."""

    key: str
    metadata: str  # JSON
    indices: Int32[np.ndarray, " n"]
    tokens: Float16[np.ndarray, "n dim"]

    @classmethod
    def of(cls, key: str, entry: Entry) -> _Record:
        metadata = json.dumps(dict(entry.metadata), sort_keys=True)
        with np.errstate(over="ignore"):  # its caller leaves such an entry as it is
            tokens = entry.arrays["cls"].astype(np.float16)
        return cls(key, metadata, entry.arrays["slice_indices"].astype(np.int32), tokens)

    @property
    def digest(self) -> str:
        arrays = self.indices.astype("<i4").tobytes() + self.tokens.astype("<f2").tobytes()
        return hashlib.sha256(self.metadata.encode("utf-8") + arrays).hexdigest()

    @property
    def study(self) -> str:
        """The study, or the key where there is none: such entries have a row group each."""
        return str(json.loads(self.metadata)["source"]["study_instance_uid"] or self.key)

    def entry(self) -> Entry:
        arrays: dict[str, np.ndarray] = {"cls": self.tokens.astype(np.float32)}
        arrays["slice_indices"] = self.indices.astype(np.int64)
        return Entry(arrays, json.loads(self.metadata))

    def table(self) -> pa.Table:
        n, dim = self.tokens.shape
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(self.tokens.ravel()), dim)
        metadata = pa.array([self.metadata, *[None] * (n - 1)], pa.string())
        columns = [pa.array([self.key] * n), pa.array(self.indices), metadata, tokens]
        return pa.Table.from_arrays(columns, names=["key", "slice_index", "metadata", "cls"])


class Compacted:
    """The shards in a store's folder, as their index lists them."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder) / COMPACTED
        path = self.folder / COMPACTED_INDEX
        self.index = pq.read_table(path, schema=INDEX_SCHEMA) if path.exists() else INDEX_SCHEMA.empty_table()
        self.rows = {key: row for row, key in enumerate(self.index["key"].to_pylist())}
        self._shards: dict[str, pq.ParquetFile] = {}

    def get(self, key: str) -> Entry | None:
        """The entry, its class tokens as float32 again, or None; ValueError says what is damaged."""
        return None if key not in self.rows else self.record(key).entry()

    def digest(self, key: str) -> str | None:
        """The digest of an entry."""
        return None if key not in self.rows else str(self.index["sha256"][self.rows[key]].as_py())

    def record(self, key: str) -> _Record:
        """The rows of an entry; ValueError where they cannot be read, or do not match their digest."""
        place = {name: self.index[name][self.rows[key]].as_py() for name in (*_PLACES, "shard")}
        shard = place["shard"]
        try:
            if shard not in self._shards:
                self._shards[shard] = pq.ParquetFile(self.folder / shard)
            group = self._shards[shard].read_row_group(place["row_group"])
            rows = group.slice(place["first_row"], place["n_rows"])
            flat = rows["cls"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            indices, tokens = rows["slice_index"].to_numpy(), flat.reshape(len(rows), -1)
            found = _Record(key, str(rows["metadata"][0].as_py()), indices, tokens)
        except (pa.ArrowException, OSError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"shard {shard} cannot be read ({error})") from error
        if found.digest != self.digest(key):
            raise ValueError(f"its rows in shard {shard} do not match their sha256")
        return found


def single_files(folder: Path) -> list[Path]:
    """The entries that are files of their own."""
    return sorted(Path(folder).glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}"))


def compact(folder: Path, advance: Callable[[], object]) -> dict[str, Any]:
    """Move views with one row a slice into shards; counts, bytes before and after, and the least cosine of a row to its
    float32.

    Damaged entries are set aside. Patches, and rows beyond the range of float16, stay as they are.
    """
    known, store = Compacted(folder), EmbeddingStore(folder)
    facts = {path: header_of(path) for path in single_files(folder)}
    order = sorted(facts, key=lambda path: (_dim(facts[path]), _study(facts[path]), path.name))
    moved: list[Path] = []
    summary = {"n_left": 0, "n_damaged": 0, "bytes_before": 0, "least_cosine": 1.0}

    def records() -> Iterator[_Record]:
        for path in order:
            advance()
            key = path.name.removesuffix(SUFFIX)
            if (entry := store.get(key, compacted=False)) is None:
                summary["n_damaged"] += 1
                continue
            record = _Record.of(key, entry) if "cls" in entry.arrays else None
            if record is None or not np.isfinite(record.tokens).all():
                summary["n_left"] += 1
                continue
            summary["least_cosine"] = min(summary["least_cosine"], _least_cosine(entry.arrays["cls"], record.tokens))
            summary["bytes_before"] += path.stat().st_size
            moved.append(path)
            if record.digest != known.digest(key):  # a killed run may have left the file
                yield record

    rows = _write_shards(known.folder, records())
    _write_index(known, rows, without={row["key"] for row in rows})
    for path in moved:
        path.unlink(missing_ok=True)
    sizes = [path.stat().st_size for path in known.folder.iterdir()]
    return {"n_compacted": len(moved), **summary, "bytes_after": sum(sizes)}


def verify(folder: Path, advance: Callable[[], object]) -> dict[str, Any]:
    """Number of entries, and keys of those that do not match their digest; such files are set aside."""
    store, known, damaged = EmbeddingStore(folder), Compacted(folder), []
    keys = [path.name.removesuffix(SUFFIX) for path in single_files(folder)]
    for key in keys:
        advance()
        if store.get(key, compacted=False) is None:
            damaged.append(key)
    for key in known.rows:
        advance()
        try:
            known.record(key)
        except ValueError as error:
            LOGGER.warning("compacted entry %s: %s; it is computed again when it is needed", key[:12], error)
            damaged.append(key)
    return {"n_entries": len(keys) + len(known.rows), "damaged": damaged}


def collect(folder: Path, sources: Collection[str], *, is_deleting: bool) -> dict[str, Any]:
    """Counts entries whose input's digest is not in `sources`, and useless files; removes them if `is_deleting`.

    Useless are entries that were set aside as damaged, and shards that the index does not list.
    """
    known = Compacted(folder)
    of_input = dict(zip(known.rows, known.index["source_sha256"].to_pylist(), strict=True))
    unnamed = {key for key, sha256 in of_input.items() if sha256 not in sources}
    files = [path for path in single_files(folder) if _source(header_of(path)) not in sources]
    useless = list(Path(folder).glob(f"*/*{CORRUPT_SUFFIX}"))
    listed = {*known.index["shard"].to_pylist(), COMPACTED_INDEX}
    useless += [path for path in known.folder.glob("*.parquet") if path.name not in listed]
    shard_of = dict(zip(known.rows, known.index["shard"].to_pylist(), strict=True))
    affected = {shard_of[key] for key in unnamed}
    shards = [known.folder / name for name in sorted(affected)]
    before = sum(path.stat().st_size for path in (*files, *useless, *shards))
    counts = {"n_entries": len(unnamed) + len(files), "n_useless_files": len(useless), "is_deleted": is_deleting}
    if not is_deleting:
        return counts
    kept = [key for key, shard in shard_of.items() if shard in affected and key not in unnamed]
    rows = _write_shards(known.folder, map(known.record, kept))
    _write_index(known, rows, without={*unnamed, *kept})
    new = {row["shard"] for row in rows}
    for path in (*files, *useless, *(path for path in shards if path.name not in new)):
        path.unlink(missing_ok=True)
    return {**counts, "n_bytes": before - sum((known.folder / name).stat().st_size for name in new)}


def _write_shards(folder: Path, records: Iterable[_Record]) -> list[dict[str, Any]]:
    """The index rows of the records, written as shards of one width each, with a row group a study."""
    rows: list[dict[str, Any]] = []
    for _, alike in groupby(records, key=lambda record: record.tokens.shape[1]):
        while batch := list(islice(alike, ENTRIES_PER_SHARD)):
            name = f"cls-{sha256_of_document([(record.key, record.digest) for record in batch])[:16]}.parquet"
            schema = batch[0].table().schema
            options = {"compression": "zstd", "use_dictionary": ["key"], "write_statistics": ["key"]}
            with atomic_file(folder / name) as handle, pq.ParquetWriter(handle, schema, **options) as writer:
                for number, (_, study) in enumerate(groupby(batch, key=attrgetter("study"))):
                    group = list(study)
                    writer.write_table(pa.concat_tables(one.table() for one in group).combine_chunks())
                    rows += _index_rows(group, name, number)
    return rows


def _index_rows(group: list[_Record], shard: str, number: int) -> Iterator[dict[str, Any]]:
    first = 0
    for record in group:
        source = json.loads(record.metadata)["source"]
        uids = {name: source[name] for name in ("study_instance_uid", "series_instance_uid")}
        names = {"key": record.key, **uids, "source_sha256": source["sha256"], "shard": shard, "sha256": record.digest}
        yield {**names, "row_group": number, "first_row": first, "n_rows": len(record.indices)}
        first += len(record.indices)


def _write_index(known: Compacted, rows: list[dict[str, Any]], without: Collection[str]) -> None:
    kept = [row for row in known.index.to_pylist() if row["key"] not in without]
    table = pa.Table.from_pylist(sorted(kept + rows, key=lambda row: row["key"]), schema=INDEX_SCHEMA)
    with atomic_file(known.folder / COMPACTED_INDEX) as handle:
        pq.write_table(table, handle, compression="zstd")


def _least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
    return float(((a * b).sum(axis=1) / norms).min(initial=1.0))


def _dim(header: dict[str, Any] | None) -> int:
    return 0 if header is None or "cls" not in header else int(header["cls"]["shape"][-1])


def _study(header: dict[str, Any] | None) -> str:
    return "" if header is None else str(header["source"]["study_instance_uid"] or "")


def _source(header: dict[str, Any] | None) -> str:
    return "" if header is None else str(header["source"]["sha256"])
