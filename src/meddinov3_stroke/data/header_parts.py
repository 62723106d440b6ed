"""Rows of headers on disk, in parts that are whole or absent: who is killed loses only the part in the making.

A part's name holds the digest of its bytes, which are compared whenever it is read: a part in which a bit has flipped
is put aside, and its files are read again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from meddinov3_stroke.data.header_rows import DICTIONARY_COLUMNS, SCHEMA
from meddinov3_stroke.errors import LockTimeout, StorageError
from meddinov3_stroke.system.atomic import storage_error, write_bytes
from meddinov3_stroke.system.digest import sha256_of_bytes

LOGGER = logging.getLogger("meddinov3_stroke")

PART_ROWS = 4096
"""Rows after which a part is written; a killed run reads at most as many files again."""

DIGEST_DIGITS = 32
"""Digits of a part's sha256 in its name."""

_FACTS = ["file", "n_bytes", "mtime_ns"]


class HeaderParts:
    """The parts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def knows(self, listing: pa.Table) -> pa.Array:
        """Which files of a listing have rows here, of the same size and time of change."""
        known = np.zeros(len(listing), dtype=bool)
        for _, places, is_same in self._matched(listing):
            known[places[is_same]] = True
        return pa.array(known)

    def rows_of(self, listing: pa.Table, more: Sequence[pa.RecordBatch] = ()) -> pa.Table:
        """The rows of the files of a listing, from the parts and from `more`; those of changed or gone files are left.

        Columns of few different values are dictionaries.
        """
        tables = [_as_dictionaries(pa.Table.from_batches(more, SCHEMA))]
        has_rows = np.zeros(len(listing), dtype=bool)
        for path, places, is_same in self._matched(listing):
            is_wanted = is_same & ~has_rows[places]  # a second part of the same files would repeat them
            has_rows[places[is_wanted]] = True
            rows = self._read(path)
            if rows is None:  # since it was asked whether it is sound
                raise StorageError(f"{path} changed while it was read; check the disk, and run again")
            tables.append(rows.filter(pa.array(is_wanted)))
        return pa.concat_tables(tables).unify_dictionaries().combine_chunks()

    def _matched(self, listing: pa.Table) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """(part, place of each of its rows in the listing, whether the file is there and unchanged)."""
        facts = [(path, found) for path in self._paths() if (found := self._read(path, _FACTS)) is not None]
        if not facts:
            return
        places, is_same = _places(pa.concat_tables(table for _, table in facts), listing)  # one look-up for all parts
        start = 0
        for path, table in facts:
            rows = slice(start, start + len(table))
            yield path, places[rows], is_same[rows]
            start += len(table)

    @contextmanager
    def writing(self) -> Iterator[Callable[[pa.RecordBatch], None]]:
        """A function that keeps rows: a part is written as soon as `PART_ROWS` are there, and the rest at the end,
        whatever ends the block.

        Raises:
            LockTimeout: another process writes parts here.
            StorageError: a part cannot be written.
        """
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise LockTimeout(
                f"another process reads headers into {self.folder}; wait for it, or choose another --output-dir"
            ) from error
        except OSError as error:
            raise storage_error(self.folder, error) from error
        waiting: list[pa.RecordBatch] = []

        def keep(batch: pa.RecordBatch) -> None:
            waiting.append(batch)
            if sum(map(len, waiting)) >= PART_ROWS:
                self._write(waiting)
                waiting.clear()

        try:
            yield keep
        finally:
            self._write(waiting)
            lock.release()

    def _write(self, batches: Sequence[pa.RecordBatch]) -> None:
        table = pa.Table.from_batches(batches, SCHEMA)
        if not len(table):
            return
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        number = 1 + sum(1 for _ in self.folder.glob("part-*"))  # those put aside are counted too
        write_bytes(self.folder / f"part-{number:06d}-{_digest(content.getvalue())}.parquet", content.getvalue())

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _read(self, path: Path, columns: list[str] | None = None) -> pa.Table | None:
        """The rows of a part, or None where it is of another pass or damaged: it is put aside then, and said so."""
        try:
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] == _digest(content):
                with pq.ParquetFile(pa.BufferReader(content), read_dictionary=DICTIONARY_COLUMNS) as part:
                    version = (part.schema_arrow.metadata or {}).get(b"header_pass")
                    if version == SCHEMA.metadata[b"header_pass"]:
                        return part.read(columns=columns)
                why = f"of another version of the header pass ({version!r})"
            else:
                why = "damaged (its bytes are not those that were written)"
        except (pa.ArrowException, OSError) as error:
            why = f"damaged ({' '.join(str(error).split())[:200]})"
        LOGGER.warning("%s is %s; it is put aside and its files are read again", path.name, why)
        with suppress(OSError):  # then it is only said again by the next run
            path.replace(path.with_suffix(".aside"))
        return None


def _digest(content: bytes) -> str:
    return sha256_of_bytes(content)[:DIGEST_DIGITS]


def _places(rows: pa.Table, listing: pa.Table) -> tuple[np.ndarray, Bool[np.ndarray, " row"]]:
    """(place of each row's file in the listing, 0 where it has none; whether it is there, unchanged)."""
    found = pc.index_in(rows["file"], value_set=listing["file"].combine_chunks())
    is_listed = np.asarray(pc.is_valid(found).combine_chunks())
    places = np.asarray(pc.fill_null(found, 0).combine_chunks()).astype(np.int64)
    for name in _FACTS[1:]:
        is_listed &= np.asarray(rows[name].combine_chunks()) == np.asarray(listing[name].combine_chunks())[places]
    return places, is_listed


def _as_dictionaries(table: pa.Table) -> pa.Table:
    for name in DICTIONARY_COLUMNS:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    return table
