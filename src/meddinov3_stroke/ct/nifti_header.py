"""The header of a NIfTI file, checked before a voxel is allocated.

Fields and codes: nifti1.h and nifti2.h (NIfTI-1.1 and NIfTI-2 data format). nibabel parses; the judgement is here,
since nibabel repairs or passes over what it finds odd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from meddinov3_stroke.ct.contents import recognise
from meddinov3_stroke.ct.stream import ByteStream
from meddinov3_stroke.errors import CorruptInput, MissingInput, UnsupportedInput

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
"""`sizeof_hdr` of the two formats."""

NIFTI2_MAGIC = b"n+2\0\r\n\x1a\n"
"""Whole magic of NIfTI-2; its line ends show a file that was mangled as text."""

EXTENDER_BYTES = 4
"""Between the header and the extensions or voxels."""

MAX_EXTENSION_BYTES = 1 << 26
"""Extensions hold notes of the writer; 64 MiB of them is no volume."""

SCALAR_DTYPES: dict[int, str] = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
"""NIfTI `datatype` codes that are one real number a voxel."""

OTHER_DATATYPES: dict[int, str] = {
    1: "1-bit",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}
"""NIfTI `datatype` codes that this package does not read."""

SLOPE_RANGE = (float(np.float32(1e-6)), 1e6)
"""`scl_slope` outside this range is damage, not a scale. NIfTI-1 stores it in float32."""

MAX_INTERCEPT = 1e6
"""`scl_inter` of a larger size is damage."""

SPATIAL_UNIT_MASK, UNIT_UNKNOWN, UNIT_MM = 0x07, 0, 2
"""Spatial part of `xyzt_units`; unknown is read as mm, as every reader does."""


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What the header says of the voxels; nothing of it contradicts itself."""

    fields: Nifti1Header
    """The raw fields (a `Nifti2Header` is one too)."""
    shape: tuple[int, int, int]
    """Voxels along the file's first (fastest), second and third axis."""
    dtype: np.dtype[np.generic]
    """As stored, with the file's byte order."""
    voxel_offset: int
    """Byte of the first voxel."""
    slope: float
    intercept: float
    warnings: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        """Bytes that the voxels take."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: ByteStream, max_voxels: int) -> NiftiHeader:
    """The checked header at the front of `stream`, which is left at the end of the header.

    Raises:
        CorruptInput: a field contradicts the format, another field or the size of the file.
        UnsupportedInput: another format, no 3-D scalar volume in mm, or more than `max_voxels`.
    """
    path = stream.path
    fields, n_read = _parse(stream)
    dtype = _dtype(fields, path)
    shape = _shape(fields, path, max_voxels)
    _require_mm(fields, path)
    slope, intercept, warnings = _scaling(fields, path)
    header = NiftiHeader(fields, shape, dtype, _voxel_offset(fields, n_read, path), slope, intercept, warnings)
    _require_room(header, stream)
    return header


def _parse(stream: ByteStream) -> tuple[Nifti1Header, int]:
    """The raw header fields and how many bytes they took."""
    block = stream.take(NIFTI1_BYTES)
    if not block:
        raise MissingInput(f"{stream.path} holds nothing once inflated; expected a NIfTI volume; fetch it again")
    order, n_bytes = _byte_order_and_size(block, stream.path)
    block += stream.take(n_bytes - len(block))
    if len(block) < n_bytes:
        raise CorruptInput(
            f"{stream.path} ends after {len(block)} bytes, inside its header of {n_bytes}; it is truncated; "
            "fetch it again"
        )
    kind: Any = Nifti1Header if n_bytes == NIFTI1_BYTES else Nifti2Header
    fields: Nifti1Header = kind(block, endianness=order, check=False)
    if kind is Nifti2Header and block[4:12] != NIFTI2_MAGIC:
        raise CorruptInput(
            f"{stream.path}: NIfTI-2 magic is {block[4:12]!r}, expected {NIFTI2_MAGIC!r}; the file was changed, "
            "perhaps copied as text; fetch it again"
        )
    return fields, n_bytes


def _byte_order_and_size(block: bytes, path: Path) -> tuple[str, int]:
    for order, name in (("<", "little"), (">", "big")):
        size = int.from_bytes(block[:4], "little" if name == "little" else "big")
        if size in (NIFTI1_BYTES, NIFTI2_BYTES):
            _require_single_file(block, path)
            return order, size
    found = recognise(block)
    if found is None:
        raise CorruptInput(
            f"{path}: no NIfTI header; sizeof_hdr is {block[:4].hex(' ')}, expected 348 or 540; it is damaged "
            "or no NIfTI"
        )
    raise UnsupportedInput(f"{path} is gzip around {found.name}; expected a NIfTI volume; {found.remedy}")


def _require_single_file(block: bytes, path: Path) -> None:
    found = recognise(block)
    if len(block) < NIFTI1_BYTES or (found is not None and found.is_nifti):
        return  # a short block is named as truncated by the caller
    if found is not None:
        raise UnsupportedInput(f"{path} holds {found.name}; expected a NIfTI volume in one file; {found.remedy}")
    raise CorruptInput(f"{path}: the NIfTI magic is neither n+1 nor n+2; the header is damaged; fetch it again")


def _dtype(fields: Nifti1Header, path: Path) -> np.dtype[np.generic]:
    code = int(fields["datatype"])
    if code in OTHER_DATATYPES:
        raise UnsupportedInput(
            f"{path}: voxels are {OTHER_DATATYPES[code]}; expected one real number a voxel; save the CT itself, not a "
            "colour or complex image"
        )
    if code not in SCALAR_DTYPES:
        raise CorruptInput(f"{path}: datatype code {code} is none of NIfTI's; the header is damaged; fetch it again")
    return np.dtype(SCALAR_DTYPES[code]).newbyteorder(fields.endianness)


def _shape(fields: Nifti1Header, path: Path, max_voxels: int) -> tuple[int, int, int]:
    dims = [int(dim) for dim in fields["dim"]]
    n_dims, sizes = dims[0], dims[1 : 1 + max(dims[0], 0)]
    if not 1 <= n_dims <= 7 or any(size < 1 for size in sizes):
        raise CorruptInput(
            f"{path}: dim is {dims}; expected 1 to 7 dimensions of at least one voxel; the header is damaged; "
            "fetch it again"
        )
    if n_dims == 1:
        raise UnsupportedInput(f"{path}: a one-dimensional NIfTI of {sizes[0]} values; expected a 3-D volume")
    if any(size > 1 for size in sizes[3:]):
        raise UnsupportedInput(
            f"{path}: {n_dims}-D data of {'x'.join(map(str, sizes))}; expected a 3-D volume (a fourth dimension of 1 "
            "is taken as such); save one volume a file"
        )
    shape = (sizes[0], sizes[1], sizes[2] if n_dims > 2 else 1)
    if math.prod(shape) > max_voxels:
        raise UnsupportedInput(
            f"{path}: the header declares {'x'.join(map(str, shape))} = {math.prod(shape)} voxels; at most "
            f"{max_voxels} are read; the header is damaged, or raise max_voxels"
        )
    return shape


def _require_mm(fields: Nifti1Header, path: Path) -> None:
    unit = int(fields["xyzt_units"]) & SPATIAL_UNIT_MASK
    if unit not in (UNIT_UNKNOWN, UNIT_MM):
        name = {1: "metre", 3: "micrometre"}.get(unit, f"code {unit}")
        raise UnsupportedInput(f"{path}: the header's spatial unit is {name}; expected mm; save the volume in mm")


def _scaling(fields: Nifti1Header, path: Path) -> tuple[float, float, tuple[str, ...]]:
    """(slope, intercept, warnings): a slope of 0 means unscaled (nifti1.h, DATA SCALING)."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0:
        ignored = intercept != 0.0
        warning = f"scl_slope is 0, which means unscaled: scl_inter {intercept:g} is ignored"
        return 1.0, 0.0, (warning,) if ignored else ()
    low, high = SLOPE_RANGE
    if not low <= slope <= high:
        raise CorruptInput(
            f"{path}: scl_slope is {slope:g}; expected 0 (unscaled) or {low:g} to {high:g}; save it again with "
            "its scaling"
        )
    if not abs(intercept) <= MAX_INTERCEPT:
        raise CorruptInput(
            f"{path}: scl_inter is {intercept:g}; expected -{MAX_INTERCEPT:g} to {MAX_INTERCEPT:g}; save it again with "
            "its scaling"
        )
    return slope, intercept, ()


def _voxel_offset(fields: Nifti1Header, header_bytes: int, path: Path) -> int:
    offset, first = float(fields["vox_offset"]), header_bytes + EXTENDER_BYTES
    if not (offset >= first and offset.is_integer()):
        raise CorruptInput(
            f"{path}: vox_offset is {offset:g}; expected a whole number of at least {first}; the header is damaged"
        )
    if offset > first + MAX_EXTENSION_BYTES:
        raise UnsupportedInput(
            f"{path}: vox_offset is {offset:g}, which leaves more than {MAX_EXTENSION_BYTES} bytes of header "
            "extensions; the header is damaged, or save the volume without them"
        )
    return int(offset)


def _require_room(header: NiftiHeader, stream: ByteStream) -> None:
    """Refuse, before anything is allocated, a header that declares what the file cannot hold."""
    declared = header.voxel_offset + header.voxel_bytes
    if stream.compressed and declared > stream.most_content_bytes:
        raise CorruptInput(
            f"{stream.path}: the header declares {declared} bytes; {stream.stored_bytes} bytes of gzip hold at most "
            f"{stream.most_content_bytes}; it is truncated or its header damaged; fetch it again"
        )
    if not stream.compressed and declared != stream.stored_bytes:
        raise CorruptInput(
            f"{stream.path}: the header declares {declared} bytes, the file has {stream.stored_bytes}; it is "
            "truncated, or something was appended; fetch it again"
        )
