"""One frame of stored values from a walked DICOM file (DICOM PS3.5 section 8 and annex A).

Native frames are a view of the file's bytes, whose number is checked; compressed ones are decoded by a child process.
"""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
from jaxtyping import Integer

from meddinov3_stroke.ct.dicom.container import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    DicomContent,
)
from meddinov3_stroke.ct.dicom.decoders import (
    CODEC_SYNTAXES,
    JPEG_2000_SYNTAXES,
    RLE_LOSSLESS,
    EncodedFrame,
    shared_codec,
)
from meddinov3_stroke.ct.dicom.elements import PixelElement
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

NATIVE_SYNTAXES = frozenset((IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED))
"""Transfer syntaxes whose pixels are stored as they are."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
"""12-bit lossy JPEG; its only complete decoder is under the GPL."""

MAX_FRAME_PIXELS = 2**26
"""Pixels of the largest frame, 8192 x 8192; no CT has more."""

MAX_PIXELS = 2**28
"""Most pixels in all frames of one file; the same cap as for NIfTI volumes."""

_BITS_ALLOCATED = (8, 16, 32)
"""Supported sizes of a stored value; others (1, 12, 24, 64) do not occur in CT."""

_SIZE_AND_POSITION = struct.Struct(">4I")
_J2K_START, _JP2_START = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
"""SOC and SIZ of a JPEG 2000 codestream (ITU-T T.800 A.4, A.5), and the box that some writers put around it."""

_JPEG_START = b"\xff\xd8"
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's frame header, which has its size: SOF (ITU-T T.81 B.2.2) and SOF55 of JPEG-LS (T.87 C.2.2)."""


def decode_frame(content: DicomContent, pixels: PixelFormat, frame: int, name: str) -> Integer[np.ndarray, "row col"]:
    """Stored values of one frame (0-based) before any rescale: 8, 16 or 32 bits in this machine's byte order, signed as
    the header states; possibly read-only.

    Bits beyond Bits Stored (overlays of older files) are removed, and the highest bit stored is the sign.

    Raises:
        CorruptInput: pixel data missing or of another length than declared, or a frame that cannot be decoded.
        UnsupportedInput: an unsupported transfer syntax, bits or samples, or more pixels than the caps.
    """
    _require_readable(pixels, name)
    assert 0 <= frame < pixels.n_frames
    syntax, found = content.transfer_syntax, content.pixel_data
    if syntax not in NATIVE_SYNTAXES and syntax not in CODEC_SYNTAXES:
        raise _unread_syntax(syntax, name)
    if found is None:
        raise CorruptInput(f"{name} has no pixel data; expected {pixels.n_frames} frame(s); fetch it again")
    if syntax in NATIVE_SYNTAXES:
        return _without_unused_bits(_native_frame(content, found, pixels, frame, name), pixels)
    codestream = _codestream(content, found, pixels, frame, name)
    _require_size(syntax, codestream, pixels, name)
    values = shared_codec().decode(EncodedFrame(syntax, codestream, pixels), name)
    # the other codecs apply a precision of their own
    return _without_unused_bits(values, pixels) if syntax == RLE_LOSSLESS else values


def _require_readable(pixels: PixelFormat, name: str) -> None:
    """Check that a pixel is one value, that its bits are consistent, and that the pixels are few enough to allocate."""
    if pixels.samples_per_pixel != 1:
        raise UnsupportedInput(
            f"{name} has {pixels.samples_per_pixel} samples a pixel ({pixels.photometric_interpretation}); expected 1; "
            "give the CT images, not a colour picture of them"
        )
    if pixels.bits_allocated not in _BITS_ALLOCATED:
        raise UnsupportedInput(
            f"{name} has {pixels.bits_allocated} bits allocated; expected 8, 16 or 32; export the series again"
        )
    if not 0 < pixels.bits_stored <= pixels.high_bit + 1 <= pixels.bits_allocated:
        raise CorruptInput(
            f"{name} has {pixels.bits_stored} bits stored up to high bit {pixels.high_bit} of {pixels.bits_allocated} "
            "allocated, which is impossible; the header is damaged; fetch it again"
        )
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels"
    if min(pixels.rows, pixels.columns, pixels.n_frames) < 1:
        raise CorruptInput(f"{name} declares {sides}; expected at least 1 of each; the header is damaged")
    n_pixels = pixels.rows * pixels.columns
    if n_pixels > MAX_FRAME_PIXELS or n_pixels * pixels.n_frames > MAX_PIXELS:
        raise UnsupportedInput(
            f"{name} declares {sides}; at most {MAX_FRAME_PIXELS} pixels a frame and {MAX_PIXELS} in all are read; "
            "the header is damaged or this is not a CT"
        )


def _unread_syntax(uid: str, name: str) -> UnsupportedInput:
    """The error for a transfer syntax without a decoder, with its standard name."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    known = UID(uid, IGNORE).name  # without a warning about an invalid UID
    words = f"{uid} ({known})" if known != uid else uid
    why = "its 12-bit decoder is under the GPL" if uid == JPEG_EXTENDED else "there is no decoder for it"
    return UnsupportedInput(
        f"{name} has the transfer syntax {words!a}, which is not supported ({why}); "
        "export the series uncompressed (Explicit VR Little Endian)"
    )


def _native_frame(
    content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str
) -> Integer[np.ndarray, "row col"]:
    """The frame with all its bits, a view of the file's bytes if their order is this machine's."""
    dtype = np.dtype(f"{'i' if pixels.is_signed else 'u'}{pixels.bits_allocated // 8}")
    n_pixels = pixels.rows * pixels.columns
    frame_bytes = n_pixels * dtype.itemsize
    require_length(found, pixels, name)
    is_big_endian = content.transfer_syntax == EXPLICIT_BIG
    source, start = content.content, found.offset + frame * frame_bytes
    if is_big_endian and dtype.itemsize == 1 and found.vr == "OW":
        source, start = _swapped_pairs(content.content, found), frame * frame_bytes
    stored = np.frombuffer(source, dtype.newbyteorder(">" if is_big_endian else "<"), n_pixels, start)
    return stored.astype(dtype, copy=False).reshape(pixels.rows, pixels.columns)


def require_length(found: PixelElement, pixels: PixelFormat, name: str) -> None:
    """Check that native pixel data has the declared number of bytes, or one more for padding.

    Raises:
        CorruptInput: it has another length, or is encapsulated.
    """
    n_values = pixels.rows * pixels.columns * pixels.samples_per_pixel * pixels.n_frames
    expected = n_values * pixels.bits_allocated // 8
    if found.length is None or not expected <= found.length <= expected + 1:
        length = "encapsulated" if found.length is None else f"{found.length} bytes of"
        raise CorruptInput(
            f"{name} has {length} pixel data; expected {expected} bytes ({pixels.n_frames} frame(s) of {pixels.rows} x "
            f"{pixels.columns} pixels of {pixels.bits_allocated} bits); it is damaged; fetch it again"
        )


def _swapped_pairs(content: bytes, found: PixelElement) -> bytes:
    """The value of 8-bit pixels written as big endian words (PS3.5 annex D.2), in the order of the pixels."""
    assert found.length is not None
    value = content[found.offset : found.offset + found.length]
    return np.frombuffer(value + bytes(len(value) % 2), ">u2").astype("<u2").tobytes()


def _without_unused_bits(values: Integer[np.ndarray, "row col"], pixels: PixelFormat) -> Integer[np.ndarray, "row col"]:
    """The values of the bits stored alone, sign-extended (PS3.5 section 8.1.1)."""
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused == 0:
        return values
    shifted: Integer[np.ndarray, "row col"] = values << (pixels.bits_allocated - 1 - pixels.high_bit)
    shifted >>= unused
    return shifted


def _codestream(content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str) -> bytes:
    """The joined fragments of a frame: all of a single frame, else one for each frame or as the offset table says."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets, parse_fragments

    if found.length is not None:
        raise CorruptInput(
            f"{name} has {found.length} bytes of plain pixel data under the compressed transfer syntax "
            f"{content.transfer_syntax}; expected encapsulated fragments; it is damaged; fetch it again"
        )
    buffer = BytesIO(content.content)
    buffer.seek(found.offset)
    try:
        table = parse_basic_offsets(buffer)
        first = buffer.tell()
        offsets = [place - first for place in parse_fragments(buffer)[1]]
    except (ValueError, struct.error) as error:
        raise CorruptInput(f"{name} has unreadable fragments of pixel data ({error}); fetch it again") from error
    fragments = []
    for offset in _offsets_of_frame(offsets, table, frame, pixels.n_frames, name):
        buffer.seek(first + offset)
        fragments.append(next(generate_fragments(buffer)))
    return b"".join(fragments)


def _offsets_of_frame(offsets: list[int], table: list[int], frame: int, n_frames: int, name: str) -> list[int]:
    if not offsets:
        raise CorruptInput(f"{name} has encapsulated pixel data without a fragment; fetch it again")
    if n_frames == 1:
        return offsets
    if len(offsets) == n_frames:
        return offsets[frame : frame + 1]
    if len(offsets) < n_frames:
        raise CorruptInput(
            f"{name} has {len(offsets)} fragments of pixel data; expected one or more for each of {n_frames} frames; "
            "it is damaged; fetch it again"
        )
    if len(table) != n_frames:
        raise UnsupportedInput(
            f"{name} has {len(offsets)} fragments for {n_frames} frames and no offset table that assigns them; "
            "export the series uncompressed (Explicit VR Little Endian)"
        )
    starts = (*table, offsets[-1] + 1)
    chosen = [offset for offset in offsets if starts[frame] <= offset < starts[frame + 1]]
    if not chosen or chosen[0] != starts[frame]:
        raise CorruptInput(
            f"{name}: the offset table puts frame {frame + 1} where no fragment begins; it is damaged; fetch it again"
        )
    return chosen


def _require_size(syntax: str, encoded: bytes, pixels: PixelFormat, name: str) -> None:
    """Check that the codestream declares the header's size, so that no decoder allocates for a wrong one."""
    if syntax == RLE_LOSSLESS:  # which declares none
        return
    size = _jpeg_2000_size(encoded) if syntax in JPEG_2000_SYNTAXES else _jpeg_size(encoded)
    if size != (pixels.rows, pixels.columns):
        found = "no size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise CorruptInput(
            f"{name}: the compressed frame declares {found}; expected {pixels.rows} x {pixels.columns}; "
            "it is damaged; fetch it again"
        )


def _jpeg_2000_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG 2000 codestream; None if it is not one."""
    start = encoded.find(_J2K_START) if encoded.startswith(_JP2_START) else 0
    if start < 0 or not encoded.startswith(_J2K_START, start) or len(encoded) < start + 8 + _SIZE_AND_POSITION.size:
        return None
    right, bottom, left, top = _SIZE_AND_POSITION.unpack_from(encoded, start + 8)
    return bottom - top, right - left


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG or JPEG-LS codestream; None if it is not one."""
    position = len(_JPEG_START)
    if not encoded.startswith(_JPEG_START):
        return None
    while position + 9 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = struct.unpack_from(">HH", encoded, position + 5)
            return rows, columns
        position += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return None
