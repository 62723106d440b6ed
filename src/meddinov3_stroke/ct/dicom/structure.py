"""The elements of a DICOM file, walked to its last byte before anything else reads it (PS3.5 and PS3.10, section 7).

pydicom has no cap on inflation nor on the nesting of sequences, and takes what a cut file still holds; the judgement is
here. The walk is linear in the bytes and keeps nothing but the place of the pixel data.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from meddinov3_stroke.ct.dicom.elements import DataSetWalk, PixelElement, is_known_vr
from meddinov3_stroke.errors import CorruptInput

__all__ = ["DicomContent", "PixelElement", "begins_as_dicom", "read_structure"]

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
"""A DICOM file begins with these; files of older writers, and raw data sets, do not (PS3.10 section 7.1)."""

MAX_INFLATED_BYTES = 2**28
"""Most bytes that a deflated data set may have: a 512 x 512 x 500 frame object of 16 bits. Deflate itself gives at most
1032 bytes for one, so a small file stops far below."""

PIECE_BYTES = 1 << 18
"""Most bytes inflated at a time."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Transfer syntaxes whose data sets and pixels are not compressed frame by frame (PS3.5 annex A)."""

_META_GROUP, _TRANSFER_SYNTAX = 0x0002, 0x0010
_FIRST_GROUPS = (_META_GROUP, 0x0008)
"""A data set without preamble begins with the file meta or with the identifying group."""

_MAX_FIRST_LENGTH = 1024
"""No first element of a real data set is longer; other bytes that begin alike nearly always are."""

_RAW_DEFLATE_WINDOW_BITS = -15
"""zlib's raw deflate: PS3.5 annex A.5 has no zlib header and no checksum."""


@dataclass(frozen=True, eq=False)
class DicomContent:
    """A DICOM file whose elements were walked to the end."""

    transfer_syntax: str
    """UID, as the file states it; where it has no file meta, that of the encoding found."""
    content: bytes
    """The file; of a deflated one the preamble, meta and inflated data set, as explicit little endian."""
    pixel_data: PixelElement | None


def read_structure(content: bytes, name: str) -> DicomContent | None:
    """The walked file in `content`, or None where these bytes are no DICOM at all; `name` is for messages.

    Raises:
        CorruptInput: an element ends after the file or its parent, the nesting is deeper than 64, the data set stops
            inside an element, or a deflated one inflates beyond `MAX_INFLATED_BYTES`.
    """
    if not begins_as_dicom(content):
        return None
    start = PREAMBLE_BYTES + len(MAGIC) if _has_magic(content) else 0
    stated, uid_offset, start = _read_meta(content, start, name)
    if stated == DEFLATED:
        content = _inflated(content, uid_offset, start, name)
    # the encoding that is found counts: some files state another, private syntaxes say nothing, and all readers look
    is_big_endian = stated == EXPLICIT_BIG
    is_explicit = is_big_endian or is_known_vr(content[start + 4 : start + 6])
    walk = DataSetWalk(content, name, is_explicit=is_explicit, is_big_endian=is_big_endian)
    pixel_data = walk.to_end(start)
    return DicomContent(stated or (EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE), content, pixel_data)


def begins_as_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` is to be walked: it has DICOM's magic, or begins as a data set does."""
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
    """The transfer syntax UID (empty where not stated), the offset of its value, and where the data set begins.

    The group's end is told by its tags: its length element is wrong in many files.
    """
    walk = DataSetWalk(content, name, is_explicit=True, is_big_endian=False)
    syntax, uid_offset = "", start
    for element, offset, length in walk.group(start, _META_GROUP):
        start = offset + length
        if element == _TRANSFER_SYNTAX:
            uid_offset, syntax = offset, content[offset:start].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, uid_offset, start


def _inflated(content: bytes, uid_offset: int, start: int, name: str) -> bytes:
    """The file with its data set inflated, and with the meta saying so (the shorter UID padded to the same length)."""
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
                    "it is damaged or made to fill memory; export the series uncompressed"
                )
    except zlib.error as error:
        raise CorruptInput(
            f"{name}: the deflated data set at byte {start} cannot be inflated ({str(error).split(': ')[-1]}); "
            "bytes were changed or lost; fetch it again"
        ) from error
    if not decoder.eof or decoder.unused_data not in (b"", b"\0"):
        raise CorruptInput(
            f"{name}: the deflated data set at byte {start} "
            + ("goes on after its end" if decoder.eof else "stops before its end")
            + "; bytes were lost or appended; fetch it again"
        )
    return data_set
