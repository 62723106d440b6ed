"""Compressed frames of a DICOM file: their bytes, and the kind and size that these state against what the header does.

PS3.5 annex A.4 (fragments) and G (RLE), ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000).
"""

from __future__ import annotations

import struct
from typing import NoReturn

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID

from meddinov3_stroke.ct.dicom.container import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    ITEM,
    ITEM_HEADER,
    DicomContent,
    PixelElement,
)
from meddinov3_stroke.ct.dicom.decoders import JPEG_2000_SYNTAXES, PLUGINS, RLE_LOSSLESS
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

NATIVE_SYNTAXES = frozenset((IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED))
"""Transfer syntaxes whose pixels are stored as they are."""

_J2K_START, _JP2_START, _JPEG_START = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ", b"\xff\xd8"
"""SOC and SIZ of a JPEG 2000 codestream (ITU-T T.800 A.4, A.5), the box that some writers put around it, and SOI."""

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's frame header, which has its size: SOF (ITU-T T.81 B.2.2) and SOF55 of JPEG-LS (T.87 C.2.2)."""

_RLE_HEADER_BYTES, _MAX_RLE_SEGMENTS = 64, 15

_KINDS: dict[str, tuple[str, ...]] = {
    "not compressed": (EXPLICIT_LITTLE,),
    "JPEG 2000": ("1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.90"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.80"),
    "JPEG Lossless": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "RLE": (RLE_LOSSLESS,),
}
"""The supported transfer syntaxes of each kind of pixels, the most general first."""

EXPORT = "export the series uncompressed (Explicit VR Little Endian)"


def refuse(name: str, fault: str) -> NoReturn:
    """Raise `CorruptInput` for a damaged file."""
    raise CorruptInput(f"{name} {fault}; it is damaged; fetch it again")


def named_syntax(uid: str) -> str:
    """A transfer syntax with its name, for messages."""
    known = UID(uid, IGNORE).name  # without a warning about an invalid UID
    return f"{uid} ({known})" if known != uid else uid


def require_stated_kind(content: DicomContent, found: PixelElement, name: str) -> None:
    """Raise `CorruptInput` if the pixel data are of another kind than a supported transfer syntax declares."""
    stated, is_native = content.transfer_syntax, content.transfer_syntax in NATIVE_SYNTAXES
    kind, right = "not compressed", _KINDS["not compressed"]
    if found.length is None or content.content.startswith(ITEM, found.offset):
        kind = _kind_of(_first_codestream(content.content, found.offset)) or ("compressed" if is_native else "")
        right = _KINDS.get(kind, ())
    is_stated = is_native if kind == "not compressed" else stated in right
    if is_stated or not (is_native or (right and stated in PLUGINS)):
        return  # bytes of another kind are for the decoder to refuse
    remedy = f"correct Transfer Syntax UID (0002,0010) to {right[0]}, or {EXPORT}" if right else EXPORT
    raise CorruptInput(
        f"{name} declares the transfer syntax {named_syntax(stated)}, but its pixels are {kind}; {remedy}"
    )


def _first_codestream(content: bytes, at: int) -> bytes:
    """The fragment behind the offset table at byte `at`."""
    at += ITEM_HEADER + int.from_bytes(content[at + 4 : at + ITEM_HEADER], "little")
    return content[at + ITEM_HEADER :][: int.from_bytes(content[at + 4 : at + ITEM_HEADER], "little")]


def _kind_of(encoded: bytes) -> str:
    """What a frame is by how it begins; empty if of no known kind."""
    if encoded.startswith((_J2K_START, _JP2_START)):
        return "JPEG 2000"
    if encoded.startswith(_JPEG_START):
        marker = _jpeg_frame(encoded)[:1]
        return {(0xF7,): "JPEG-LS", (0xC3,): "JPEG Lossless", (): ""}.get(marker, "JPEG")
    n_segments, first = struct.unpack_from("<2I", encoded) if len(encoded) >= _RLE_HEADER_BYTES else (0, 0)
    return "RLE" if 1 <= n_segments <= _MAX_RLE_SEGMENTS and first == _RLE_HEADER_BYTES else ""


def codestream(content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str) -> bytes:
    """The joined fragments of a frame: all of a single frame, else one for each frame or as the offset table says."""
    (first, end), *fragments = found.fragments or ((0, 0),)
    n_frames = pixels.n_frames
    if not fragments or (n_frames > 1 and len(fragments) < n_frames):
        n_found = f"has {len(fragments)} fragments of pixel data"
        refuse(name, f"{n_found}; expected one or more for each of {n_frames} frames")
    if n_frames > 1 and len(fragments) == n_frames:
        fragments = fragments[frame : frame + 1]
    elif n_frames > 1:
        table = np.frombuffer(content.content, "<u4", (end - first) // 4, first).tolist()
        if len(table) != n_frames:
            why = f"{len(fragments)} fragments for {n_frames} frames and no offset table that assigns them"
            raise UnsupportedInput(f"{name} has {why}; {EXPORT}")
        low, high = [*(end + offset for offset in table), len(content.content)][frame : frame + 2]
        fragments = [one for one in fragments if low <= one[0] - ITEM_HEADER < high]
        if not fragments or fragments[0][0] - ITEM_HEADER != low:
            refuse(name, f"has an offset table that puts frame {frame + 1} where no fragment begins")
    return b"".join(content.content[start:stop] for start, stop in fragments)


def require_size(syntax: str, encoded: bytes, pixels: PixelFormat, name: str) -> None:
    """Raise `CorruptInput` if a frame declares another size than the header."""
    if syntax == RLE_LOSSLESS:  # which declares none
        return
    size = _jpeg_2000_size(encoded) if syntax in JPEG_2000_SYNTAXES else _jpeg_frame(encoded)[1:]
    if size != (pixels.rows, pixels.columns):
        found = f"{size[0]} x {size[1]} pixels" if size else "no size"
        declares = f"a compressed frame that declares {found}; expected {pixels.rows} x {pixels.columns}"
        refuse(name, f"has {declares}")


def _jpeg_2000_size(encoded: bytes) -> tuple[int, ...]:
    """Rows and columns; empty if the frame does not state them."""
    start = encoded.find(_J2K_START) if encoded.startswith(_JP2_START) else 0
    if start < 0 or not encoded.startswith(_J2K_START, start) or len(encoded) < start + 24:
        return ()
    right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
    return bottom - top, right - left


def _jpeg_frame(encoded: bytes) -> tuple[int, ...]:
    """Marker of the frame header, rows and columns; empty if there is no such header."""
    position = len(_JPEG_START)
    if not encoded.startswith(_JPEG_START):
        return ()
    while position + 9 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker in _FRAME_HEADERS:
            return marker, *struct.unpack_from(">HH", encoded, position + 5)
        position += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return ()
