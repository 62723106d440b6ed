"""The content of a file, plain or gzip, read once from front to end in bounded pieces and checked to its last byte.

gzip is RFC 1952: each member ends in a CRC-32 and a length, several members may follow one another, zero bytes may pad
the end, and nothing else may follow. nibabel and SimpleITK do not check the trailer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from meddinov3_stroke.errors import CorruptInput

PIECE_BYTES = 1 << 18
"""Most bytes inflated at a time, whatever the compression ratio."""

_GZIP_WINDOW_BITS = 31
"""Lets zlib decode gzip: header, CRC-32 and ISIZE are verified."""


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
        while filled < len(target):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
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
        if self.take(1):
            raise CorruptInput(
                f"{self.path} goes on after the last voxel that its header declares; expected the end; the header is "
                "damaged or something was appended; fetch the file again"
            )


def inflate(stored: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The content of all members of a gzip stream.

    Raises:
        CorruptInput: truncated, changed, or followed by bytes that are not gzip.
    """
    decoder, n_members, begun = zlib.decompressobj(_GZIP_WINDOW_BITS), 0, False
    for rest in stored:
        while rest := (rest if begun or n_members == 0 else rest.lstrip(b"\0")):
            begun = True
            try:
                yield decoder.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                where = f" after {n_members} sound gzip member(s)" if n_members else ""
                raise CorruptInput(
                    f"{path} fails its gzip check{where} ({str(error).split(': ')[-1]}); bytes were changed, lost or "
                    "appended; fetch it again"
                ) from error
            if decoder.eof:
                rest, n_members, begun = decoder.unused_data, n_members + 1, False
                decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)
            else:
                rest = decoder.unconsumed_tail
    if begun or n_members == 0:
        raise CorruptInput(f"{path} ends inside its gzip stream (no trailer); it is truncated; fetch it again")
