"""One frame of stored values from a walked DICOM file (DICOM PS3.5 section 8 and annex A).

Native frames are a view of the file's bytes, whose number is checked; compressed ones are decoded by a child process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Integer

from meddinov3_stroke.ct.dicom.codec_child import RLE_LOSSLESS
from meddinov3_stroke.ct.dicom.codecs import CODEC_SYNTAXES, EncodedFrame, shared_codec
from meddinov3_stroke.ct.dicom.encapsulated import encoded_frame
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.ct.dicom.structure import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    DicomContent,
    PixelElement,
)
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

NATIVE_SYNTAXES = frozenset((IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED))
"""Transfer syntaxes whose pixels are stored as they are."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
"""12-bit lossy JPEG; its one complete decoder is under the GPL."""

MAX_FRAME_PIXELS = 2**26
"""A frame of more pixels than 8192 x 8192 is no CT."""

MAX_PIXELS = 2**28
"""Most pixels of all frames of one file; NIfTI volumes have the same cap."""

_BITS_ALLOCATED = (8, 16, 32)
"""What a stored value may take; others (1, 12, 24, 64) occur in no CT."""


def decode_frame(content: DicomContent, pixels: PixelFormat, frame: int, name: str) -> Integer[np.ndarray, "row col"]:
    """Stored values of one frame (0-based) before any rescale: 8, 16 or 32 bits in this machine's byte order, signed as
    the header says; possibly read-only.

    Bits beyond Bits Stored (overlays of older files) are cut off, and the sign is that of the highest bit stored.

    Raises:
        CorruptInput: pixel data missing or of another length than the header says, or a frame its codec cannot decode.
        UnsupportedInput: a transfer syntax, bits or samples that are not read here, or more pixels than the caps.
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
    encoded = encoded_frame(content, found, pixels, frame, name)
    values = shared_codec().decode(EncodedFrame(syntax, encoded, pixels), name)
    # the other codecs have a precision of their own, which the decoder applies
    return _without_unused_bits(values, pixels) if syntax == RLE_LOSSLESS else values


def _require_readable(pixels: PixelFormat, name: str) -> None:
    """Nothing, where a pixel is one value whose bits fit together and the pixels are few enough to allocate."""
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
            "allocated, which cannot be; the header is damaged; fetch it again"
        )
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels"
    if min(pixels.rows, pixels.columns, pixels.n_frames) < 1:
        raise CorruptInput(f"{name} declares {sides}; expected at least 1 of each; the header is damaged")
    n_pixels = pixels.rows * pixels.columns
    if n_pixels > MAX_FRAME_PIXELS or n_pixels * pixels.n_frames > MAX_PIXELS:
        raise UnsupportedInput(
            f"{name} declares {sides}; read are at most {MAX_FRAME_PIXELS} pixels a frame and {MAX_PIXELS} in all; "
            "the header is damaged or this is no CT"
        )


def _unread_syntax(uid: str, name: str) -> UnsupportedInput:
    """The error for a transfer syntax without a decoder, with the name that the standard gives it."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    known = UID(uid, IGNORE).name  # without a warning over a UID that is none
    words = f"{uid} ({known})" if known != uid else uid
    why = "its 12-bit decoder is under the GPL" if uid == JPEG_EXTENDED else "no decoder for it is at hand"
    return UnsupportedInput(
        f"{name} has the transfer syntax {words!a}, which is not read here ({why}); "
        "export the series uncompressed (Explicit VR Little Endian)"
    )


def _native_frame(
    content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str
) -> Integer[np.ndarray, "row col"]:
    """The frame with all its bits, a view of the file's bytes where their order is this machine's."""
    dtype, n_pixels = _dtype(pixels), pixels.rows * pixels.columns
    frame_bytes = n_pixels * dtype.itemsize
    _require_length(found, frame_bytes * pixels.n_frames, pixels, name)
    is_big_endian = content.transfer_syntax == EXPLICIT_BIG
    source, start = content.content, found.offset + frame * frame_bytes
    if is_big_endian and dtype.itemsize == 1 and found.vr == "OW":
        source, start = _swapped_pairs(content.content, found), frame * frame_bytes
    stored = np.frombuffer(source, dtype.newbyteorder(">" if is_big_endian else "<"), n_pixels, start)
    return stored.astype(dtype, copy=False).reshape(pixels.rows, pixels.columns)


def _require_length(found: PixelElement, expected: int, pixels: PixelFormat, name: str) -> None:
    """Nothing, where the value has the expected bytes, or one more that pads it."""
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


def _dtype(pixels: PixelFormat) -> np.dtype[Any]:
    return np.dtype(f"{'i' if pixels.is_signed else 'u'}{pixels.bits_allocated // 8}")
