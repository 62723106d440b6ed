"""A NIfTI file, plain or gzip, read once from front to end, checked to its last byte, as a canonical volume.

gzip is RFC 1952: each member ends in a CRC-32 and a length, several members may follow one another, zero bytes may pad
the end, and nothing else may follow. nibabel and SimpleITK do not check the trailer. Content after the last voxel is
legal: it is read to its end, so that it is checked too, and reported.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.ct.contents import (
    MAX_DEFLATE_RATIO,
    OpenedInput,
    machine_errors,
    require_nifti_content,
    require_regular_file,
)
from meddinov3_stroke.ct.geometry import Orientation, axial_orientation, check_voxels, voxel_sides
from meddinov3_stroke.ct.nifti_header import NiftiHeader, read_header
from meddinov3_stroke.errors import CorruptInput, OutOfScope
from meddinov3_stroke.system.digest import sha256_of_array
from meddinov3_stroke.types import Volume, VolumeSource

READ_BYTES = 1 << 16
"""Stored bytes read at a time."""

PIECE_BYTES = 1 << 18
"""Most bytes inflated at a time, whatever the compression ratio."""

KEPT_BYTES = 1 << 30
"""Larger files are not kept in memory between hashing and decoding, but read twice."""

SLAB_BYTES = 1 << 22
"""Voxels held in the file's order until they are put in their canonical place."""

MAX_TRAILING_BYTES = 1 << 26
"""Most bytes of content after the last voxel; more is a bomb, or a header that belongs to another file."""

_DAMAGED = "it is truncated, or its header is damaged; fetch it again"


class NiftiInput(OpenedInput):
    """A .nii or .nii.gz file, read once even if both its digest and its volume are wanted."""

    def __init__(self, path: Path, *, max_voxels: int, allow_single_slice: bool) -> None:
        with machine_errors(path):
            require_regular_file(path)
        self.path, self._max_voxels, self._allow_single_slice = path, max_voxels, allow_single_slice
        self._digest, self._n_bytes = "", 0
        self._kept: deque[bytes] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself."""
        return (self.path,)

    @property
    def digest(self) -> str:
        """Hex sha256 of the file's bytes as stored, which are kept for a volume read later."""
        if not self._digest:
            with machine_errors(self.path):
                keep = self.path.stat().st_size <= KEPT_BYTES
                pieces = deque(self._pieces(), maxlen=None if keep else 0)
            self._kept = pieces if keep else None
        return self._digest

    def _pieces(self) -> Generator[bytes, None, None]:
        """The file's bytes in order: those kept, released as they are given out, or else read and hashed."""
        kept, self._kept = self._kept, None
        if kept is not None:
            while kept:
                yield kept.popleft()
            return
        digest = sha256()
        with self.path.open("rb", buffering=0) as handle:
            self._n_bytes = os.fstat(handle.fileno()).st_size
            while piece := handle.read(READ_BYTES):
                digest.update(piece)
                yield piece
        self._digest = digest.hexdigest()

    def volume(self) -> Volume:
        """The volume in canonical orientation; errors as `read_volume` lists them."""
        with machine_errors(self.path), closing(self._pieces()) as pieces:
            head = next(pieces, b"")
            require_nifti_content(self.path, head)
            is_packed, content = self.path.name.lower().endswith(".gz"), chain([head], pieces)
            stream = ByteStream(self.path, inflate(content, self.path) if is_packed else content)
            header = read_header(stream.take, self.path, self._max_voxels)
            _check_length(header, self.path, self._n_bytes, is_packed)
            orientation = axial_orientation(header.affine, self.path)
            if header.shape[orientation.axes[0]] == 1 and not self._allow_single_slice:
                raise OutOfScope(f"{self.path} holds a single slice; expected a head volume")
            stored = _read_voxels(stream, header, orientation)
            n_trailing = stream.expect_end(header.needs_exact_end)
        n_padding, voxel_warnings = check_voxels(stored, header.slope, header.intercept, self.path)
        affine, n_slices = orientation.apply_to_affine(header.affine, header.shape), len(stored)
        slice_mm, row_mm, col_mm = (float(side) for side in voxel_sides(affine))
        pixels_sha256 = sha256_of_array(stored, slope=header.slope, intercept=header.intercept)
        return Volume(
            stored=stored,
            slope=header.slope,
            intercept=header.intercept,
            affine=affine,
            slice_positions_mm=affine[:3, 3] + np.arange(n_slices)[:, None] * affine[:3, 0],
            slice_steps_mm=np.broadcast_to(affine[:3, 1:3], (n_slices, 3, 2)),
            spacing_mm=(slice_mm, row_mm, col_mm),
            source=VolumeSource(path=self.path, format="nifti", sha256=self.digest, pixels_sha256=pixels_sha256),
            n_padding_voxels=n_padding,
            warnings=(*header.warnings, *_trailing_warning(n_trailing), *voxel_warnings),
        )


def _check_length(header: NiftiHeader, path: Path, n_stored: int, is_packed: bool) -> None:
    """Refuse a header that declares more than the file can hold, before anything is allocated."""
    declares, most = f"{path}: the header declares {header.n_bytes} bytes", n_stored * MAX_DEFLATE_RATIO
    if is_packed and header.n_bytes > most:
        raise CorruptInput(f"{declares}, {n_stored} bytes of gzip hold at most {most}; {_DAMAGED}")
    if not is_packed and header.n_bytes > n_stored:
        raise CorruptInput(f"{declares}, the file has {n_stored}; {_DAMAGED}")


def _trailing_warning(n_bytes: int) -> tuple[str, ...]:
    return (f"the file continues for {n_bytes} bytes after its last voxel; they are ignored",) if n_bytes else ()


def _read_voxels(
    stream: ByteStream, header: NiftiHeader, orientation: Orientation
) -> Real[np.ndarray, "slice row col"]:
    """The voxels in canonical order and native byte order.

    Each slab of the file (whole planes of one third index) goes to its canonical place as it is read, so that the
    volume is held once.
    """
    stream.take(header.voxel_offset - stream.n_read)  # extensions
    n_rows, n_cols, n_planes = header.shape
    stored = np.empty([header.shape[axis] for axis in orientation.axes], dtype=header.dtype.newbyteorder("="))
    voxels = orientation.file_view(stored)
    plane_bytes = n_rows * n_cols * header.dtype.itemsize
    per_slab = min(max(SLAB_BYTES // plane_bytes, 1), n_planes)
    buffer = np.empty(per_slab * plane_bytes, dtype=np.uint8)
    for first in range(0, n_planes, per_slab):
        slab = buffer[: min(per_slab, n_planes - first) * plane_bytes]
        if stream.fill(slab.data) < len(slab):
            declares = f"its header declares {header.n_bytes}; it is truncated; fetch it again"
            raise CorruptInput(f"{stream.path} ends after {stream.n_read} bytes of content; {declares}")
        voxels[:, :, first : first + per_slab] = slab.view(header.dtype).reshape((n_rows, n_cols, -1), order="F")
    stored.flags.writeable = False
    return stored


class ByteStream:
    """Content taken from `pieces` in the amounts asked for; `n_read` bytes so far."""

    def __init__(self, path: Path, pieces: Iterator[bytes]) -> None:
        self.path, self.n_read = path, 0
        self._pieces, self._rest = pieces, memoryview(b"")

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

    def expect_end(self, reason: str = "") -> int:
        """Read on to the last stored byte, which checks the gzip trailer, and return the number of bytes read.

        `CorruptInput` if there are more than `MAX_TRAILING_BYTES`, or any at all where a `reason` forbids them.
        """
        n_before, most = self.n_read, 0 if reason else MAX_TRAILING_BYTES
        while self.take(READ_BYTES):
            if self.n_read - n_before > most:
                found = reason or f"more than {most} bytes follow the last voxel that the header declares"
                raise CorruptInput(f"{self.path}: {found}; the header is damaged; fetch the file or convert it again")
        return self.n_read - n_before


def inflate(stored: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The content of all members of a gzip stream; `CorruptInput` if it is cut, changed, or followed by other bytes."""
    wbits = 31  # zlib then decodes gzip, and checks CRC-32 and length
    decoder, n_members, begun = zlib.decompressobj(wbits), 0, False
    for rest in stored:
        while rest := (rest if begun or n_members == 0 else rest.lstrip(b"\0")):
            begun = True
            try:
                yield decoder.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                where = f" after {n_members} sound gzip member(s)" if n_members else ""
                reason = str(error).split(": ")[-1]
                raise CorruptInput(f"{path} fails its gzip check{where} ({reason}); fetch it again") from error
            if decoder.eof:
                rest, n_members, begun = decoder.unused_data, n_members + 1, False
                decoder = zlib.decompressobj(wbits)
            else:
                rest = decoder.unconsumed_tail
    if begun or n_members == 0:
        raise CorruptInput(f"{path} ends inside its gzip stream (no trailer); it is truncated; fetch it again")
