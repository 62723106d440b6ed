"""The headers of a flat folder of very many DICOM files: each file once, in several processes, kept as it goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.header_parts import HeaderParts
from meddinov3_stroke.data.header_reading import read_files
from meddinov3_stroke.data.header_rows import FileFacts
from meddinov3_stroke.data.processes import in_processes
from meddinov3_stroke.errors import MissingInput, UnsupportedInput
from meddinov3_stroke.system.interrupt import finish_on_interrupt
from meddinov3_stroke.system.progress import progress_bar

LOGGER = logging.getLogger("meddinov3_stroke")

CHUNK_FILES = 128
"""Files a process is asked for at a time."""

LISTING_SCHEMA = pa.schema([("file", pa.string()), ("n_bytes", pa.int64()), ("mtime_ns", pa.int64())])
"""A file as the folder lists it: another size or time of change is another file."""

_LISTED_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class HeaderPass:
    """The rows of every file of a folder, and how they came about."""

    rows: pa.Table
    """Of `header_rows.SCHEMA`; one an image, and one for a file that gave none."""
    n_files: int
    n_read_now: int
    """Files whose header this run read; the others were known from an earlier one."""


def list_files(folder: Path) -> pa.Table:
    """The regular files of `folder` itself, by name, as `LISTING_SCHEMA`; its folders are not looked into.

    Raises:
        MissingInput: no such folder, or no file in it.
        UnsupportedInput: a file whose name is not UTF-8.
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
        raise UnsupportedInput(f"{os.fsencode(name)!r} is no file name in UTF-8; rename or remove the file") from error


def _batch(rows: list[tuple[str, int, int]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], schema=LISTING_SCHEMA)


def read_headers_of_folder(folder: Path, parts: HeaderParts, *, workers: int, show_progress: bool = True) -> HeaderPass:
    """The rows of every file of `folder`; those that `parts` knows are not read again, new ones are added to it.

    Raises:
        MissingInput: no such folder, or no files.
        MachineError: a process died, or the parts cannot be written.
        KeyboardInterrupt: SIGINT; what was read is kept.
    """
    listing = list_files(folder)
    pending = listing.filter(pc.invert(parts.knows(listing)))
    LOGGER.info("%d files, %d of them with headers known from before", len(listing), len(listing) - len(pending))
    failed: list[pa.RecordBatch] = []
    with (
        progress_bar("headers", len(pending), "files", show_progress) as advance,
        finish_on_interrupt("chunk of files") as stop,
        parts.writing() as keep,
        closing(_read(folder, pending, workers)) as batches,
    ):
        for batch in batches:
            is_failed = pc.equal(batch["status"], "failed")
            keep(batch.filter(pc.invert(is_failed)))
            failed.append(batch.filter(is_failed))
            advance(len(pc.unique(batch["file"])))
            stop.check()
    return HeaderPass(parts.rows_of(listing, failed), len(listing), len(pending))


def _read(folder: Path, pending: pa.Table, workers: int) -> Generator[pa.RecordBatch, None, None]:
    """The rows of chunk after chunk, in order."""
    chunks = (pending.slice(start, CHUNK_FILES) for start in range(0, len(pending), CHUNK_FILES))
    files = ([FileFacts(**row) for row in chunk.to_pylist()] for chunk in chunks)
    return in_processes(partial(read_files, folder), files, 1 if len(pending) <= CHUNK_FILES else workers)
