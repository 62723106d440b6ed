"""A file read once from front to end: hashed as stored, inflated in bounded pieces, checked to its last byte.

gzip is RFC 1952: each member ends in a CRC-32 and a length, several members may follow one another, zero bytes may pad
the end, and nothing else may follow. nibabel and SimpleITK do not check the trailer.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import CorruptInput

READ_BYTES = 1 << 16
"""Stored bytes read at a time."""

PIECE_BYTES = 1 << 18
"""Most bytes inflated at a time, whatever the compression ratio."""

KEPT_BYTES = 1 << 30
"""Larger files are not kept in memory between hashing and decoding, but read twice."""

_GZIP_WINDOW_BITS = 31
"""Lets zlib decode gzip: header, CRC-32 and ISIZE are verified."""


class StoredFile:
    """The bytes of one file, read once even if the digest is wanted before the content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        """Size on disk, known once reading has begun."""
        self._digest = ""
        self._kept: deque[bytes] | None = None

    @property
    def digest(self) -> str:
        """Hex sha256; if the file has not been read yet it is read now, and its bytes are kept for `pieces`."""
        if not self._digest:
            keep = self.path.stat().st_size <= KEPT_BYTES
            pieces = deque(self.pieces(), maxlen=None if keep else 0)
            self._kept = pieces if keep else None
        return self._digest

    def pieces(self) -> Generator[bytes, None, None]:
        """The bytes in order. Kept ones are released as they are given out; otherwise the file is read and hashed."""
        kept, self._kept = self._kept, None
        if kept is not None:
            while kept:
                yield kept.popleft()
            return
        digest = sha256()
        with self.path.open("rb", buffering=0) as handle:
            self.n_bytes = os.fstat(handle.fileno()).st_size
            while piece := handle.read(READ_BYTES):
                digest.update(piece)
                yield piece
        self._digest = digest.hexdigest()


class ByteStream:
    """Content taken from `pieces` in the amounts asked for."""

    def __init__(self, path: Path, pieces: Iterator[bytes]) -> None:
        self.path = path
        self.n_read = 0
        """Bytes given out so far."""
        self._pieces = pieces
        self._rest = memoryview(b"")

    def fill(self, target: memoryview) -> int:
        """Fill `target` and return the number of bytes written, which is smaller only if the content has ended."""
        filled = 0
        while filled < len(target) and self._advance():
            n = min(len(target) - filled, len(self._rest))
            target[filled : filled + n] = self._rest[:n]
            self._rest = self._rest[n:]
            filled += n
        self.n_read += filled
        return filled

    def take(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes, or fewer if the content ends before."""
        taken = bytearray(n_bytes)
        return bytes(taken[: self.fill(memoryview(taken))])

    def expect_end(self) -> None:
        """Read on to the last stored byte.

        Raises:
            CorruptInput: more content follows, or the gzip trailer does not match what was read.
        """
        if self._advance():
            raise CorruptInput(
                f"{self.path} goes on after the last voxel that its header declares; expected the end; the header is "
                "damaged or something was appended; fetch the file again"
            )

    def _advance(self) -> bool:
        """Make `_rest` hold at least one byte; False at the end of the content."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = memoryview(piece)
        return True


def inflate(stored: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The content of all members of a gzip stream.

    Raises:
        CorruptInput: truncated, changed, or followed by bytes that are not gzip.
    """
    decoder, n_members = zlib.decompressobj(_GZIP_WINDOW_BITS), 0
    begun = False
    for rest in stored:
        while rest := (rest if begun or n_members == 0 else rest.lstrip(b"\0")):
            begun = True
            yield _decoded(decoder, rest, path, n_members)
            if decoder.eof:
                rest, n_members, begun = decoder.unused_data, n_members + 1, False
                decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)
            else:
                rest = decoder.unconsumed_tail
    if begun or n_members == 0:
        raise CorruptInput(f"{path} ends inside its gzip stream (no trailer); it is truncated; fetch it again")


def _decoded(decoder: Any, rest: bytes, path: Path, n_members: int) -> bytes:
    try:
        piece: bytes = decoder.decompress(rest, PIECE_BYTES)
    except zlib.error as error:
        where = f" after {n_members} sound gzip member(s)" if n_members else ""
        raise CorruptInput(
            f"{path} fails its gzip check{where} ({str(error).split(': ')[-1]}); bytes were changed, lost or appended; "
            "fetch it again"
        ) from error
    return piece
