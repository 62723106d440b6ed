"""The headers of a flat folder of very many DICOM files: each file once, in several processes, resumable.

Rows are saved every few thousand files as parquet files, and as one file at the end. The name of each has the digest
of its bytes, so that damage is noticed and the files concerned are read again.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.header_rows import FAILED, SCHEMA, read_files
from meddinov3_stroke.errors import LockTimeout, MachineError, MissingInput, UnsupportedInput
from meddinov3_stroke.system.atomic import storage_error, write_bytes
from meddinov3_stroke.system.digest import sha256_of_bytes
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar

LOGGER = logging.getLogger("meddinov3_stroke")

CHUNK_FILES = 128  # files that a process reads at a time

SAVE_CHUNKS = 32  # chunks between two saves; a killed pass loses at most these

TABLES = "headers-*.parquet"

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, eq=False)
class HeaderPass:
    """The rows of every file of a folder, as `header_rows.SCHEMA`, by file name."""

    rows: pa.Table
    n_files: int
    n_read_now: int  # files whose header this run read; the others were known from an earlier run


def read_headers_of_folder(folder: Path, parts: Path, *, workers: int, show_progress: bool = True) -> HeaderPass:
    """The rows of every file of `folder`; those known in the folder `parts` are not read again, new ones are added.

    Rows that were read are kept whatever ends the pass.

    Raises:
        InputError: no such folder, no files, or a file name that is not UTF-8.
        MachineError: a process died, another one works in `parts`, or `parts` cannot be written.
    """
    listing = _list_files(folder)
    with _locked(parts):
        known = _known_rows(parts, listing)
        is_known = pc.is_in(listing["file"], value_set=known["file"].combine_chunks())
        pending = listing.filter(pc.invert(is_known))
        LOGGER.info("%d files; the headers of %d are known from an earlier run", len(listing), pc.sum(is_known).as_py())
        chunks = (pending.slice(start, CHUNK_FILES).to_pylist() for start in range(0, len(pending), CHUNK_FILES))
        n_processes = 1 if len(pending) <= CHUNK_FILES else workers
        found: list[pa.Table] = []
        n_saved = 0
        try:
            with (
                progress_bar("headers", len(pending), "files", show_progress) as advance,
                finish_on_interrupt("chunk of files") as stop,
                closing(in_processes(partial(read_files, folder), chunks, n_processes)) as batches,
            ):
                for batch in batches:
                    found.append(pa.Table.from_batches([batch]))
                    if len(found) - n_saved == SAVE_CHUNKS:
                        _save(parts, found[n_saved:])
                        n_saved = len(found)
                    advance(len(pc.unique(batch["file"])))
                    stop.check()
        finally:
            if found[n_saved:]:
                _save(parts, found[n_saved:])
        rows = _joined(known, *found)
        if found:
            whole = _save(parts, [rows])
            for other in parts.glob(TABLES):
                if other != whole:
                    with suppress(OSError):
                        other.unlink()
    return HeaderPass(rows.sort_by("file"), len(listing), len(pending))


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all processes; only the parent decides when to stop
    warnings.simplefilter("ignore")  # what libraries say here would go past the parent's messages
    logging.disable()


def in_processes(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT, None, None]:
    """`work` of each item, in order, a few items ahead of their use; with one worker in this process.

    Close the generator to end the processes. Raises MachineError if one died.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_process)
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MachineError(
            "a process that reads files died (out of memory?); finished work is kept; run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _list_files(folder: Path) -> pa.Table:
    """`file`, `n_bytes` and `mtime_ns` of the regular files of `folder` itself, by name; subfolders are ignored."""
    with machine_errors(folder):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise MissingInput(f"no folder of DICOM files at {folder}; found {found}; check the path")
        with os.scandir(folder) as entries:
            listed = sorted(
                (entry.name, (of := entry.stat()).st_size, of.st_mtime_ns) for entry in entries if entry.is_file()
            )
    if not listed:
        raise MissingInput(f"{folder} holds no files; expected DICOM images")
    try:
        return pa.table(dict(zip(("file", "n_bytes", "mtime_ns"), zip(*listed, strict=True), strict=True)))
    except UnicodeEncodeError as error:
        name = os.fsencode(error.object)
        raise UnsupportedInput(f"file name {name!r} is not UTF-8; rename or remove the file") from error


def _locked(parts: Path) -> AbstractContextManager[object]:
    try:
        parts.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(parts / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise LockTimeout(
            f"another process reads headers into {parts}; wait for it, or choose another --output-dir"
        ) from error
    except OSError as error:
        raise storage_error(parts, error) from error


def _known_rows(parts: Path, listing: pa.Table) -> pa.Table:
    """The rows that earlier passes saved of files that are listed unchanged, each once."""
    saved = [table for path in sorted(parts.glob(TABLES)) if (table := _saved(path)) is not None]
    rows = _joined(SCHEMA.empty_table(), *saved)
    places = pc.fill_null(pc.index_in(rows["file"], value_set=listing["file"].combine_chunks()), -1).to_numpy()
    is_same = places >= 0
    for name in ("n_bytes", "mtime_ns"):
        is_same &= rows[name].to_numpy() == listing[name].to_numpy()[places]
    rows = rows.filter(pa.array(is_same))
    # a pass killed between its last save and the removal of the parts leaves rows twice
    return rows.filter(pa.array(~rows.select(["file", "frame"]).to_pandas().duplicated()))


def _saved(path: Path) -> pa.Table | None:
    """The rows of a parquet file; None if it is damaged or of another version, after renaming it with a warning."""
    why = "damaged"
    with suppress(pa.ArrowException, OSError):
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] == _digest(content):
            table = pq.read_table(pa.BufferReader(content))
            if (table.schema.metadata or {}).get(b"header_pass") == SCHEMA.metadata[b"header_pass"]:
                return table
            why = "of another version of the header pass"
    LOGGER.warning("%s is %s; it is ignored and its files are read again", path.name, why)
    with suppress(OSError):  # otherwise the next run repeats the warning
        path.replace(path.with_suffix(".aside"))
    return None


def _digest(content: bytes) -> str:
    return sha256_of_bytes(content)[:32]


def _joined(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _save(parts: Path, tables: Sequence[pa.Table]) -> Path:
    """Write the rows of some files as one parquet file; those of files that failed are tried again next time."""
    rows = _joined(*tables)
    rows = rows.filter(pc.not_equal(rows["status"], FAILED)).replace_schema_metadata(SCHEMA.metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    path = parts / f"headers-{_digest(content)}.parquet"
    write_bytes(path, content)
    return path
