"""The bytes of a file, plain or gzip, in bounded pieces, hashed as stored and checked to the last one.

gzip is RFC 1952: each member ends in a CRC-32 and a length, several members may follow one another, zero bytes may pad
the end, and nothing else may follow. nibabel and SimpleITK never look at the trailer.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from meddinov3_stroke.errors import CorruptInput

READ_BYTES = 1 << 16
"""Stored bytes read at a time."""

PIECE_BYTES = 1 << 18
"""Most bytes inflated at a time, whatever the compression ratio."""

MAX_DEFLATE_RATIO = 1032
"""Deflate gives at most 258 bytes for 2 bits (zlib, "Maximum Compression Factor")."""

_GZIP_WINDOW_BITS = 31
"""zlib's own gzip decoding: header, CRC-32 and ISIZE are verified."""


class ByteStream:
    """The content of an open file, read once from front to end."""

    def __init__(self, path: Path, handle: IO[bytes], *, compressed: bool) -> None:
        self.path = path
        self.compressed = compressed
        self.stored_bytes = os.fstat(handle.fileno()).st_size
        """Size of the file on disk."""
        self._digest = sha256()
        stored = _stored_pieces(handle, self._digest.update)
        self._pieces = _inflate(stored, path) if compressed else stored
        self._rest = memoryview(b"")

    @property
    def sha256(self) -> str:
        """Hex sha256 of the stored bytes; that of the whole file once `expect_end` has passed."""
        return self._digest.hexdigest()

    @property
    def most_content_bytes(self) -> int:
        """More content than this cannot be in a file of this size."""
        return self.stored_bytes * (MAX_DEFLATE_RATIO if self.compressed else 1)

    def fill(self, target: memoryview) -> int:
        """How many bytes of `target` were filled; fewer than it holds only where the content ended."""
        filled = 0
        while filled < len(target) and self._advance():
            n = min(len(target) - filled, len(self._rest))
            target[filled : filled + n] = self._rest[:n]
            self._rest = self._rest[n:]
            filled += n
        return filled

    def take(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes, fewer where the content ended."""
        taken = bytearray(n_bytes)
        return bytes(taken[: self.fill(memoryview(taken))])

    def skip(self, n_bytes: int) -> int:
        """How many of the next `n_bytes` bytes were there to be passed over."""
        skipped = 0
        while skipped < n_bytes and self._advance():
            n = min(n_bytes - skipped, len(self._rest))
            self._rest = self._rest[n:]
            skipped += n
        return skipped

    def expect_end(self) -> None:
        """Read on to the last stored byte.

        Raises:
            CorruptInput: more content follows, or the trailer of the gzip stream does not fit what was read.
        """
        if self._advance():
            raise CorruptInput(
                f"{self.path} goes on after the last voxel that its header declares; expected the end; the header is "
                "damaged or something was appended; fetch the file again"
            )

    def _advance(self) -> bool:
        """Whether a byte is left, with `_rest` holding at least one."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = memoryview(piece)
        return True


@contextmanager
def open_stream(path: Path, *, compressed: bool) -> Iterator[ByteStream]:
    """The content of the file at `path`, inflated if `compressed`; the system's own errors pass through."""
    with path.open("rb", buffering=0) as handle:
        yield ByteStream(path, handle, compressed=compressed)


def _stored_pieces(handle: IO[bytes], take_note: Callable[[bytes], None]) -> Iterator[bytes]:
    while piece := handle.read(READ_BYTES):
        take_note(piece)
        yield piece


def _inflate(stored: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The content of all members of a gzip stream; what is left of a stored piece waits in `rest`."""
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
