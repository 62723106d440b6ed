"""The container of a DICOM file, verified to its last byte, and its values (PS3.5 and PS3.10, section 7).

pydicom limits neither inflation nor the nesting of sequences and accepts truncated files, so `read_structure` checks
these first, in one linear walk that keeps only the location of the pixel data. pydicom then parses the values.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.config import disable_value_validation

from meddinov3_stroke.ct.dicom.elements import DataSetWalk, PixelElement, is_known_vr
from meddinov3_stroke.errors import CorruptInput

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
"""First bytes of a DICOM file; files of older writers and raw data sets lack them (PS3.10 section 7.1)."""

MAX_INFLATED_BYTES = 2**28
"""Largest inflated data set: a 512 x 512 x 500 frame object of 16 bits. Deflate expands at most 1032-fold, so that a
small file stays far below."""

PIECE_BYTES = 1 << 18
"""Bytes inflated at a time."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Transfer syntaxes whose pixels are not compressed frame by frame (PS3.5 annex A)."""

_META_GROUP, _TRANSFER_SYNTAX = 0x0002, 0x0010
_FIRST_GROUPS = (_META_GROUP, 0x0008)
"""A data set without preamble begins with the file meta or the identifying group."""

_MAX_FIRST_LENGTH = 1024
"""Longest plausible first element; files of other kinds nearly always exceed it."""

_RAW_DEFLATE_WINDOW_BITS = -15
"""zlib's raw deflate: PS3.5 annex A.5 has no zlib header and no checksum."""

_pydicom_settings = threading.RLock()
"""pydicom's settings and Python's warning filters are global: one thread at a time changes and restores them."""


@dataclass(frozen=True, eq=False)
class DicomContent:
    """A DICOM file whose elements were walked to the end."""

    transfer_syntax: str
    """UID stated in the file; without file meta, that of the encoding found."""
    content: bytes
    """The file; for a deflated one the preamble, meta and inflated data set, as explicit little endian."""
    pixel_data: PixelElement | None


def read_structure(content: bytes, name: str) -> DicomContent | None:
    """The walked file in `content`, or None if these bytes are not DICOM; `name` is for messages.

    Raises:
        CorruptInput: an element extends beyond the file or its parent, nesting exceeds 64, the data set stops inside an
            element, or a deflated one inflates beyond `MAX_INFLATED_BYTES`.
    """
    if not begins_as_dicom(content):
        return None
    start = PREAMBLE_BYTES + len(MAGIC) if _has_magic(content) else 0
    stated, uid_offset, start = _read_meta(content, start, name)
    if stated == DEFLATED:
        content = _inflated(content, uid_offset, start, name)
    # the encoding found wins over the stated one, as in other readers: some files state the wrong one
    is_big_endian = stated == EXPLICIT_BIG
    is_explicit = is_big_endian or is_known_vr(content[start + 4 : start + 6])
    walk = DataSetWalk(content, name, is_explicit=is_explicit, is_big_endian=is_big_endian)
    pixel_data = walk.to_end(start)
    return DicomContent(stated or (EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE), content, pixel_data)


def begins_as_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` has DICOM's magic or begins as a data set does."""
    return _has_magic(head) or _begins_as_data_set(head)


def _has_magic(content: bytes) -> bool:
    return content[PREAMBLE_BYTES : PREAMBLE_BYTES + len(MAGIC)] == MAGIC


def _begins_as_data_set(content: bytes) -> bool:
    """Whether bytes without a preamble begin with a short element of the meta or identifying group."""
    if len(content) < 8:
        return False
    group, vr, short_length = struct.unpack_from("<H2x2sH", content)
    if group not in _FIRST_GROUPS:
        return False
    if is_known_vr(vr):
        return bool(short_length <= _MAX_FIRST_LENGTH)
    return int.from_bytes(content[4:8], "little") <= min(len(content) - 8, _MAX_FIRST_LENGTH)


def _read_meta(content: bytes, start: int, name: str) -> tuple[str, int, int]:
    """The transfer syntax UID (empty if not stated), the offset of its value, and the offset of the data set.

    The tags determine where the group ends: its length element is wrong in many files.
    """
    walk = DataSetWalk(content, name, is_explicit=True, is_big_endian=False)
    syntax, uid_offset = "", start
    for element, offset, length in walk.group(start, _META_GROUP):
        start = offset + length
        if element == _TRANSFER_SYNTAX:
            uid_offset, syntax = offset, content[offset:start].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, uid_offset, start


def _inflated(content: bytes, uid_offset: int, start: int, name: str) -> bytes:
    """The file with its data set inflated and its meta changed to match (the shorter UID padded to the same length)."""
    data_set = _inflate(content, start, name)
    uid = EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")
    return b"".join((content[:uid_offset], uid, content[uid_offset + len(uid) : start], data_set))


def _inflate(content: bytes, start: int, name: str) -> bytearray:
    decoder, data_set = zlib.decompressobj(_RAW_DEFLATE_WINDOW_BITS), bytearray()
    rest: bytes | memoryview = memoryview(content)[start:]
    try:
        while not decoder.eof and rest:
            data_set += decoder.decompress(rest, PIECE_BYTES)
            rest = decoder.unconsumed_tail
            if len(data_set) > MAX_INFLATED_BYTES:
                raise CorruptInput(
                    f"{name}: the deflated data set inflates beyond {MAX_INFLATED_BYTES} bytes; expected one image; "
                    "it is damaged or a decompression bomb; export the series uncompressed"
                )
    except zlib.error as error:
        raise CorruptInput(
            f"{name}: the deflated data set at byte {start} cannot be inflated ({str(error).split(': ')[-1]}); "
            "bytes were changed or lost; fetch it again"
        ) from error
    if not decoder.eof or decoder.unused_data not in (b"", b"\0"):
        raise CorruptInput(
            f"{name}: the deflated data set at byte {start} "
            + ("continues after its end" if decoder.eof else "stops before its end")
            + "; bytes were lost or appended; fetch it again"
        )
    return data_set


def parse_dataset(content: DicomContent, name: str, tags: Sequence[int] | None = None) -> pydicom.Dataset:
    """The data set up to its pixel data, with `file_meta`; only the given `tags`, if any are given.

    pydicom converts values when they are first accessed and validates them by global settings (a UID such as
    `ID_0a0ba0944f` warns). Here all are converted at once under lenient settings. A value that cannot be converted
    stays raw and raises pydicom's error on access.

    Raises:
        CorruptInput: pydicom cannot read the elements.
    """
    with _lenient_pydicom():
        try:
            dataset = pydicom.dcmread(
                BytesIO(content.content),
                stop_before_pixels=True,
                force=True,  # `read_structure` accepted the file without a preamble
                specific_tags=None if tags is None else list(tags),
            )
        except MemoryError:
            raise
        except Exception as error:  # its parsers raise errors of any type
            raise CorruptInput(
                f"{name}: the data set cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); "
                "the header is damaged; fetch it again"
            ) from error
        _convert_values(dataset)
        return dataset


@contextmanager
def _lenient_pydicom() -> Iterator[None]:
    """Disable pydicom's validation and hide its warnings, for one thread at a time."""
    with _pydicom_settings, disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        yield


def _convert_values(dataset: pydicom.Dataset) -> None:
    for tag in list(dataset.keys()):
        with suppress(Exception):  # stays raw; reading it raises the error
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _convert_values(item)
