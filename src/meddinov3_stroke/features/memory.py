"""Remembered digests of inputs, so that a run whose embeddings are cached reads no input byte.

A digest is valid while path, device, inode, size, mtime and ctime of every file of the input are unchanged. A file that
changed less than `SETTLED_S` before it was hashed is not remembered: a later change could leave the same times. An edit
that restores all of these is found only by hashing again (`--verify-inputs`). No path is stored: it may name a patient.
Objects at URLs are known by URL, ETag and size instead.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from meddinov3_stroke.ct import OpenedInput
from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.system.atomic import is_url, located, read_bytes, write_bytes
from meddinov3_stroke.system.digest import sha256_of_bytes, sha256_of_document

LOGGER = logging.getLogger("meddinov3_stroke")

MEMORY_SCHEMA = 1  # raised when a record changes its meaning. The version of the DICOM reader is recorded beside it
SETTLED_S = 2.0  # least age in seconds of a file's mtime and ctime when it is hashed; FAT stores times in steps of 2 s


class InputMemory:
    """Records under `<folder>/<first two digits of the name>/<name>.json`, one an input."""

    def __init__(self, folder: Path) -> None:
        self.folder = located(Path(folder))
        self._writable = True

    def digest(self, opened: OpenedInput, series_uid: str | None) -> str:
        """The input's digest, hashed now and remembered; errors as for `opened.digest`."""
        before = opened.state()
        sha256 = opened.digest
        if before is not None and before == opened.state() and self.recall(opened, series_uid) != sha256:
            record = {"schema": _schema(opened), "files_sha256": before[0], "input_sha256": sha256}
            if time.time() - before[1] >= SETTLED_S and self._writable:
                self._write(self._record(opened, series_uid), record)
        return sha256

    def recall(self, opened: OpenedInput, series_uid: str | None) -> str | None:
        """The remembered digest of the input, where its files are unchanged; no file of it is opened."""
        path = self._record(opened, series_uid)
        try:
            content = read_bytes(path)
        except (OSError, StorageError):  # the input is hashed again
            return None
        digest, _, body = content.partition(b"\n")
        if digest.decode("ascii", "replace") != sha256_of_bytes(body):
            LOGGER.warning("damaged record of an input digest %s; the input is hashed again", path)
            return None
        record = json.loads(body)
        state = opened.state()
        known = state is not None and (record["schema"], record["files_sha256"]) == (_schema(opened), state[0])
        return str(record["input_sha256"]) if known else None

    def _record(self, opened: OpenedInput, series_uid: str | None) -> Path:
        name = sha256_of_document(
            [
                str(opened.path if is_url(opened.path) else opened.path.absolute()),
                series_uid,
                getattr(opened, "join_series", False),
            ]
        )
        return self.folder / name[:2] / f"{name}.json"

    def _write(self, path: Path, record: dict[str, str]) -> None:
        body = json.dumps(record, sort_keys=True).encode("ascii")
        try:
            write_bytes(path, sha256_of_bytes(body).encode("ascii") + b"\n" + body)
        except StorageError as error:  # a shared cache may be read-only; embeddings need it, digests do not
            self._writable = False
            LOGGER.warning("input digests are not remembered: %s", error)


def _schema(opened: OpenedInput) -> str:
    # versions of the record and of the reader whose digest it holds (DICOM; the digest of NIfTI is of its bytes)
    return f"{MEMORY_SCHEMA}.{getattr(opened, 'reader_version', 0)}"
