"""The headers of a flat folder of very many DICOM files: each file once, in several processes, resumable.

Rows go into one Arrow IPC stream as they are read; after a kill it can be read up to its last whole batch. A finished
pass, or the next one after a kill, moves them into one parquet file. Both carry digests, so that damage is noticed and
the files concerned are read again.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.header_rows import DICTIONARY_COLUMNS, FAILED, SCHEMA, FileFacts, read_files
from meddinov3_stroke.data.processes import in_processes
from meddinov3_stroke.errors import LockTimeout, MissingInput, UnsupportedInput
from meddinov3_stroke.system.atomic import storage_error, write_bytes
from meddinov3_stroke.system.digest import sha256_of_bytes
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar

LOGGER = logging.getLogger("meddinov3_stroke")

CHUNK_FILES = 128
"""Files that a process reads at a time; a killed pass loses at most a few chunks."""

STREAM, TABLES = "headers.arrows", "headers-*.parquet"
"""The rows of the pass in progress, and of the finished ones; the parquet file's name has the digest of its bytes."""

LISTING_SCHEMA = pa.schema([("file", pa.string()), ("n_bytes", pa.int64()), ("mtime_ns", pa.int64())])
"""A file as listed in the folder; if its size or modification time changes, it is read again."""

_LISTED_AT_ONCE = 1 << 16
_DIGEST_DIGITS = 32
_DIGEST_KEY = b"sha256"


@dataclass(frozen=True, eq=False)
class HeaderPass:
    """The rows of every file of a folder."""

    rows: pa.Table
    """Of `header_rows.SCHEMA`; columns of few different values are dictionaries."""
    n_files: int
    n_read_now: int
    """Files whose header this run read; the others were known from an earlier run."""


def read_headers_of_folder(folder: Path, parts: Path, *, workers: int, show_progress: bool = True) -> HeaderPass:
    """The rows of every file of `folder`; those known in the folder `parts` are not read again, new ones are added.

    Raises:
        MissingInput: no such folder, or no files.
        UnsupportedInput: a file name that is not UTF-8.
        LockTimeout: another process works in `parts`.
        MachineError: a process died, or `parts` cannot be written.
        KeyboardInterrupt: SIGINT; rows that were read are kept.
    """
    listing = list_files(folder)
    with _locked(parts):
        known, has_stream = _known_rows(parts, listing)
        is_known = pc.is_in(listing["file"], value_set=known["file"].combine_chunks())
        pending = listing.filter(pc.invert(is_known))
        LOGGER.info("%d files; the headers of %d are known from an earlier run", len(listing), pc.sum(is_known).as_py())
        if has_stream:
            _save(parts, known)
        found: list[pa.Table] = []
        with (
            progress_bar("headers", len(pending), "files", show_progress) as advance,
            finish_on_interrupt("chunk of files") as stop,
            _stream(parts / STREAM) as write,
            closing(_read(folder, pending, workers)) as batches,
        ):
            for batch in batches:
                write(batch.filter(pc.not_equal(batch["status"], FAILED)))  # failed files are tried again next time
                found.append(_as_dictionaries(pa.Table.from_batches([batch])))
                advance(len(pc.unique(batch["file"])))
                stop.check()
        rows = _joined(known, *found)
        if found:
            _save(parts, rows.filter(pc.not_equal(rows["status"], FAILED)))
    return HeaderPass(rows, len(listing), len(pending))


def list_files(folder: Path) -> pa.Table:
    """The regular files of `folder` itself, sorted by name, as `LISTING_SCHEMA`; subfolders are ignored.

    Raises:
        MissingInput: no such folder, or no file in it.
        UnsupportedInput: a file name that is not UTF-8.
        MachineError: the folder cannot be read.
    """
    with machine_errors(folder):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise MissingInput(f"no folder of DICOM files at {folder}; found {found}; check the path")
        with os.scandir(folder) as entries:
            batches = list(_batches(entries))
    table = pa.Table.from_batches(batches, LISTING_SCHEMA)
    if not len(table):
        raise MissingInput(f"{folder} holds no files; expected DICOM images")
    return table.take(pc.sort_indices(table, sort_keys=[("file", "ascending")]))


def _batches(entries: Iterator[os.DirEntry[str]]) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[str, int, int]] = []
    for entry in entries:
        if entry.is_file():
            _require_text(entry.name)
            found = entry.stat()
            rows.append((entry.name, found.st_size, found.st_mtime_ns))
        if len(rows) == _LISTED_AT_ONCE:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _require_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedInput(f"file name {os.fsencode(name)!r} is not UTF-8; rename or remove the file") from error


def _batch(rows: list[tuple[str, int, int]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], schema=LISTING_SCHEMA)


def _read(folder: Path, pending: pa.Table, workers: int) -> Generator[pa.RecordBatch, None, None]:
    """The rows of chunk after chunk, in order."""
    chunks = (pending.slice(start, CHUNK_FILES) for start in range(0, len(pending), CHUNK_FILES))
    files = ([FileFacts(**row) for row in chunk.to_pylist()] for chunk in chunks)
    return in_processes(partial(read_files, folder), files, 1 if len(pending) <= CHUNK_FILES else workers)


@contextmanager
def _locked(parts: Path) -> Iterator[None]:
    lock = filelock.FileLock(parts / ".lock")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise LockTimeout(
            f"another process reads headers into {parts}; wait for it, or choose another --output-dir"
        ) from error
    except OSError as error:
        raise storage_error(parts, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stream(path: Path) -> Iterator[partial[None]]:
    """A function that appends a batch to a new stream at `path` and hands it to the operating system."""
    try:
        with path.open("wb") as handle, pa.ipc.new_stream(handle, SCHEMA) as writer:
            yield partial(_append, handle, writer)
    except OSError as error:
        raise storage_error(path, error) from error


def _append(handle: io.BufferedWriter, writer: pa.RecordBatchStreamWriter, batch: pa.RecordBatch) -> None:
    writer.write_batch(batch, custom_metadata={_DIGEST_KEY: _digest(batch.serialize().to_pybytes())})
    handle.flush()


def _digest(content: bytes) -> str:
    return sha256_of_bytes(content)[:_DIGEST_DIGITS]


def _known_rows(parts: Path, listing: pa.Table) -> tuple[pa.Table, bool]:
    """(rows of earlier passes whose files are listed unchanged, whether some are in the stream of one that stopped)."""
    saved = [table for path in sorted(parts.glob(TABLES)) if (table := _saved(path)) is not None]
    streamed = _streamed(parts / STREAM)
    rows = _joined(*saved, pa.Table.from_batches(streamed, SCHEMA))
    place = pc.index_in(rows["file"], value_set=listing["file"].combine_chunks())
    is_same = np.asarray(pc.is_valid(place).combine_chunks())
    places = np.asarray(pc.fill_null(place, 0).combine_chunks()).astype(np.int64)
    for name in ("n_bytes", "mtime_ns"):
        is_same &= np.asarray(rows[name].combine_chunks()) == np.asarray(listing[name].combine_chunks())[places]
    return rows.filter(pa.array(is_same)), bool(streamed)


def _saved(path: Path) -> pa.Table | None:
    """The rows of a parquet file; None if it is damaged or of another version, after renaming it with a warning."""
    try:
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != _digest(content):
            why = "damaged (its bytes are not those that were written)"
        else:
            table = pq.read_table(pa.BufferReader(content), read_dictionary=DICTIONARY_COLUMNS)
            version = (table.schema.metadata or {}).get(b"header_pass")
            if version == SCHEMA.metadata[b"header_pass"]:
                return table
            why = f"of another version of the header pass ({version!r})"
    except (pa.ArrowException, OSError) as error:
        why = f"damaged ({' '.join(str(error).split())[:200]})"
    LOGGER.warning("%s is %s; it is ignored and its files are read again", path.name, why)
    with suppress(OSError):  # otherwise the next run repeats the warning
        path.replace(path.with_suffix(".aside"))
    return None


def _streamed(path: Path) -> list[pa.RecordBatch]:
    """The whole batches of the stream of a pass that stopped, up to the first that is truncated or damaged."""
    batches: list[pa.RecordBatch] = []
    if not path.exists():
        return batches
    try:
        with path.open("rb") as handle, pa.ipc.open_stream(handle) as reader:
            while reader.schema.equals(SCHEMA, check_metadata=True):
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                if metadata is None or metadata.get(_DIGEST_KEY, b"").decode() != _digest(
                    batch.serialize().to_pybytes()
                ):
                    LOGGER.warning("%s is damaged; the files from there on are read again", path.name)
                    break
                batches.append(batch)
    except (pa.ArrowException, OSError, StopIteration, ValueError):  # the end, whole or truncated
        pass
    return batches


def _joined(*tables: pa.Table) -> pa.Table:
    """One table with dictionary columns."""
    return pa.concat_tables(map(_as_dictionaries, tables)).unify_dictionaries().combine_chunks()


def _as_dictionaries(table: pa.Table) -> pa.Table:
    for name in DICTIONARY_COLUMNS:
        if not pa.types.is_dictionary(table.schema.field(name).type):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def _save(parts: Path, rows: pa.Table) -> None:
    """Write all known rows as one parquet file, then remove the earlier file and the stream."""
    content = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(SCHEMA.metadata), content, compression="zstd")
    path = parts / f"headers-{_digest(content.getvalue())}.parquet"
    earlier = [parts / STREAM, *(other for other in parts.glob(TABLES) if other != path)]
    write_bytes(path, content.getvalue())
    for other in earlier:
        with suppress(OSError):  # rows that occur twice are equal
            other.unlink()
