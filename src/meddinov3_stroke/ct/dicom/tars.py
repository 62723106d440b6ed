"""The files of a tar archive, plain or within gzip, read in one pass to the end of the stream (POSIX pax, GNU tar).

Nothing is unpacked to disk and names never become paths. The standard library parses single headers only: its reader of
whole archives takes a damaged header for the end.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from meddinov3_stroke.ct.contents import GZIP
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput
from meddinov3_stroke.system.names import known_file

MAX_UNPACKED_BYTES = 1 << 29
"""Size of the largest archive, which is held in memory; a head CT of 1,000 slices of 512 x 512 has as much."""

MAX_HEADERS = 150_000
"""Entries read of one archive, those of folders and long names included."""

_BLOCK, _MAX_EXTENSION_BYTES, _CHUNK = tarfile.BLOCKSIZE, 1 << 16, 1 << 16

_EXTENSIONS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
"""Types of headers that extend the next one, for example by a long name."""

_PAX_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in the archive at `path`.

    Raises:
        CorruptInput: damaged, truncated, or content after its end.
        UnsupportedInput: larger than `MAX_UNPACKED_BYTES`, or a link, device or sparse file in it.
    """
    with path.open("rb") as handle:
        is_packed = handle.read(len(GZIP)) == GZIP
        handle.seek(0)
        try:
            yield from _Stream(gzip.GzipFile(fileobj=handle) if is_packed else handle, path).members()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptInput(f"{path} cannot be unpacked ({error}); fetch it again") from error


class _Stream:
    """The bytes of an archive, counted."""

    def __init__(self, handle: BufferedIOBase, path: Path) -> None:
        self._handle, self._path, self._n_read = handle, path, 0

    def members(self) -> Iterator[tuple[str, bytes]]:
        long_name, n_headers = "", 0
        while any(block := self._take(_BLOCK)):
            if (n_headers := n_headers + 1) > MAX_HEADERS:
                raise UnsupportedInput(f"{self._path} has more than {MAX_HEADERS} entries; unpack it, give one study")
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
            except tarfile.HeaderError as error:
                where = f"the header at byte {self._n_read - _BLOCK} is damaged ({error})"
                raise CorruptInput(f"{self._path}: {where}; fetch the archive again") from error
            name = known_file(long_name or header.name)
            if header.type in _EXTENSIONS:
                long_name = self._extended_name(header, long_name)
                continue
            if not header.isdir():
                self._require_plain_file(header, name)
                yield name, self._content(header)
            long_name = ""
        while chunk := self._handle.read(_CHUNK):
            self._count(len(chunk))
            if any(chunk):
                raise CorruptInput(
                    f"{self._path} continues after the end of its tar archive; unpack it and pack it again"
                )

    def _extended_name(self, header: tarfile.TarInfo, known: str) -> str:
        """The name that an extension gives the next header, or else the one `known`."""
        if header.size > _MAX_EXTENSION_BYTES:
            raise CorruptInput(f"{self._path}: a header of {header.size} bytes is impossible; fetch the archive again")
        content = self._content(header)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return content.rstrip(b"\0").decode("utf-8", "backslashreplace")
        if b" GNU.sparse." in content:
            raise UnsupportedInput(f"{self._path}: a sparse file in it; expected files; unpack it and give the folder")
        found = _PAX_PATH.search(content) if header.type == tarfile.XHDTYPE else None
        return found[1].decode("utf-8", "backslashreplace") if found else known

    def _require_plain_file(self, header: tarfile.TarInfo, name: str) -> None:
        if header.isreg() and header.type != tarfile.GNUTYPE_SPARSE:
            return
        is_link = header.islnk() or header.issym()
        kind = "a link" if is_link else "a sparse file, a device or a pipe"
        remedy = (
            "pack it again with tar --dereference --hard-dereference" if is_link else "unpack it and give the folder"
        )
        raise UnsupportedInput(f"{self._path}: {name} in it is {kind}; expected files; {remedy}")

    def _content(self, header: tarfile.TarInfo) -> bytes:
        if header.size < 0:
            raise CorruptInput(f"{self._path}: {header.name} declares {header.size} bytes; fetch the archive again")
        content = self._take(header.size)
        self._take(-header.size % _BLOCK)
        return content

    def _take(self, n_bytes: int) -> bytes:
        self._count(n_bytes)
        content = self._handle.read(n_bytes)
        if len(content) < n_bytes:
            raise CorruptInput(f"{self._path} stops before the end of its tar archive; it is truncated; fetch it again")
        return content

    def _count(self, n_bytes: int) -> None:
        self._n_read += n_bytes
        if self._n_read > MAX_UNPACKED_BYTES:
            most = f"at most {MAX_UNPACKED_BYTES} are read of a tar archive"
            raise UnsupportedInput(f"{self._path} unpacks to more than {MAX_UNPACKED_BYTES} bytes; {most}; unpack it")
