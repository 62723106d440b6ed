"""The only writer of artefacts: temporary file, fsync, rename.

A reader sees the old file or the complete new one, even if the writer is killed.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from meddinov3_stroke.errors import MachineError, StorageError, UsageError
from meddinov3_stroke.system import names

TEMPORARY_SUFFIX = ".tmp"  # suffix of files not yet renamed; a killed writer leaves at most one, which no reader opens
PROBE_BYTES = 4096  # written to test a folder: a full disk refuses it
URL_SCHEMES = ("s3:", "gs:")


class UrlPath(type(Path())):  # type: ignore[misc]
    """A path that is a URL, and is written as one."""

    def __str__(self) -> str:
        return str(super().__str__()).replace(":/", "://", 1)


def is_url(path: Path) -> bool:
    """Whether a path is a URL, which `system.remote` reads and writes."""
    return path.parts[:1] != () and path.parts[0] in URL_SCHEMES


def located(path: Path) -> Path:
    """The path as an `UrlPath` if it is a URL; that of a file:// URL; else the path itself."""
    if path.parts[:1] == ("file:",):
        return Path("/", *path.parts[1:])
    return UrlPath(path) if is_url(path) else path


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary handle whose bytes become `path` if the block succeeds; otherwise `path` is unchanged.

    Raises StorageError: the folder cannot be written, the disk is full, or an I/O error.
    """
    path = Path(path)
    if is_url(path):
        from meddinov3_stroke.system.remote import write_object

        buffer = io.BytesIO()
        yield buffer
        write_object(path, buffer.getbuffer())
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        commit(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # already renamed, or an error above is the one to report
            temporary.unlink()


def commit(temporary: Path, path: Path) -> None:
    """Rename a finished file into place and make the rename durable. `temporary` must be in the same folder."""
    temporary.replace(path)
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> MachineError:
    """The `StorageError` for a failed write of `path`."""
    reason = error.strerror or type(error).__name__
    return StorageError(f"cannot write {path}: {reason}; free space or choose a writable folder, then run again")


def require_writable(*folders: Path, files: Iterable[Path] = (), inputs: Iterable[Path] = ()) -> None:
    """Raise StorageError unless the folders and files can be written; missing folders count, and nothing is left.

    Raises UsageError where a file is named twice, is a folder, or is one of `inputs`, which are never replaced.
    """
    files = [Path(path) for path in files]
    taken = {path.resolve() for path in inputs}
    for path in files:
        if path.is_dir() or path.resolve() in taken:
            what = "a folder; name a file in it" if path.is_dir() else "named twice in this command; name another file"
            raise UsageError(f"cannot write {path}: it is {what}")
        taken.add(path.resolve())
    for url in filter(is_url, folders):
        from meddinov3_stroke.system.remote import require_bucket

        require_bucket(url)
    for path, place in (
        *((path, path) for path in folders if not is_url(path)),
        *((path, path.parent) for path in files),
    ):
        try:
            while not _is_there(place):
                place = place.parent
            with tempfile.TemporaryFile(dir=place) as probe:
                probe.write(bytes(PROBE_BYTES))
        except OSError as error:
            raise storage_error(path, error) from error


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` as `path`, atomically."""
    with atomic_file(path) as handle:
        handle.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as `path`, atomically; bytes of a file name that are not UTF-8 as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, atomically; numpy scalars and arrays become numbers and lists.

    Raises ValueError where the document holds NaN or infinity, which JSON cannot represent.
    """
    document = names.public_document(document)
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array in NumPy's `.npy` format (no pickles), atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def append_line(path: Path, line: str, *, private: bool = False) -> None:
    """Append a line to a text file, for logs that are read line by line; the rest of the file is never rewritten.

    A line that a killed writer left unfinished is ended first, so that it spoils no other. A `private` file is created
    for its owner alone. Raises StorageError.
    """
    errors = "surrogateescape" if private else "backslashreplace"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", opener=_private if private else None) as handle:
            handle.seek(max(handle.seek(0, os.SEEK_END) - 1, 0))
            start = b"" if handle.read(1) in (b"", b"\n") else b"\n"
            handle.write(start + line.encode("utf-8", errors) + b"\n")
    except OSError as error:
        raise storage_error(path, error) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_bytes(path: Path) -> bytes:
    """The content of a file, or of the object at a URL; OSError as of a file."""
    if not is_url(path):
        return path.read_bytes()
    from meddinov3_stroke.system.remote import read_object

    return read_object(path)
