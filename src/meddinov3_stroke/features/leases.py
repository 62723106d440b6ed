"""Leases on entries of a store, so that runs over the same inputs share the work instead of repeating it.

A lease is a POSIX lock on one byte of a file in the store's folder, so it ends with its process, however that ends.
Where such locks do not exist (Windows, a read-only folder, object stores, some network file systems) every lease is
granted: the runs repeat each other's work and store the same entries.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from meddinov3_stroke.system.atomic import is_url

LOGGER = logging.getLogger("meddinov3_stroke")
FILE_NAME = "leases"
OFFSET_DIGITS = 15  # hexadecimal digits of the key that place its byte: 60 bits


class Leases:
    """The leases of this process on the entries in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / FILE_NAME
        self._file: int | None = None
        if is_url(self.path):
            return  # object stores have no locks
        try:
            import fcntl  # not on Windows

            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lockf = fcntl.lockf
            self._take, self._free = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
        except (ImportError, OSError) as error:
            LOGGER.debug("no leases in %s: %s", folder, error)

    def take(self, key: str) -> bool:
        """Whether the lease on the entry of `key` (hex) is this process's now; False if another process has it."""
        if self._file is None:
            return True
        try:
            self._lockf(self._file, self._take, 1, int(key[:OFFSET_DIGITS], 16))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
        except OSError as error:  # a file system without locks
            LOGGER.debug("no leases in %s: %s", self.path, error)
            self.close()
        return True

    def release(self, key: str) -> None:
        """Give the lease on the entry of `key` up, if it is held."""
        if self._file is not None:
            with suppress(OSError):  # a file system whose locks came and went: the lease ends with the process
                self._lockf(self._file, self._free, 1, int(key[:OFFSET_DIGITS], 16))

    def close(self) -> None:
        """Give every lease up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
