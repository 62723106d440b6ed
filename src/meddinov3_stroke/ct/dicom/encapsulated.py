"""The codestream of one frame in encapsulated pixel data (DICOM PS3.5 annex A.4), and what it says of its own size."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from meddinov3_stroke.ct.dicom.codec_child import RLE_LOSSLESS
from meddinov3_stroke.ct.dicom.codecs import JPEG_2000_SYNTAXES
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.ct.dicom.structure import DicomContent, PixelElement
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

_ITEM = 0xE000FFFE
_ITEM_HEADER_BYTES = 8

_SIZE_AND_POSITION = struct.Struct(">4I")
_J2K_START, _JP2_START = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
"""SOC and SIZ of a JPEG 2000 codestream (ITU-T T.800 A.4, A.5), and the box that some writers put around it."""

_JPEG_START = b"\xff\xd8"
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's frame header, which has its size: SOF (ITU-T T.81 B.2.2) and SOF55 of JPEG-LS (T.87 C.2.2)."""


def encoded_frame(content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str) -> bytes:
    """The codestream of a frame (0-based), whose own rows and columns are those of the header.

    Raises:
        CorruptInput: pixel data that is not encapsulated, has too few fragments, or says another size.
        UnsupportedInput: several frames whose fragments nothing assigns to them.
    """
    if found.length is not None:
        raise CorruptInput(
            f"{name} has {found.length} bytes of plain pixel data under the compressed transfer syntax "
            f"{content.transfer_syntax}; expected encapsulated fragments; it is damaged; fetch it again"
        )
    table, *fragments = [*_items(content.content, found.offset)] or [(0, 0)]
    if not fragments:
        raise CorruptInput(f"{name} has encapsulated pixel data without a fragment; fetch it again")
    chosen = _fragments_of(content.content, table, fragments, (frame, pixels.n_frames), name)
    encoded = b"".join(content.content[offset : offset + length] for offset, length in chosen)
    _require_size(content.transfer_syntax, encoded, pixels, name)
    return encoded


def _items(content: bytes, position: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each item's value; `read_structure` found them whole and delimited."""
    while True:
        tag, length = struct.unpack_from("<II", content, position)
        if tag != _ITEM:
            return
        position += _ITEM_HEADER_BYTES
        yield position, length
        position += length


def _fragments_of(
    content: bytes,
    table: tuple[int, int],
    fragments: Sequence[tuple[int, int]],
    frame_of: tuple[int, int],
    name: str,
) -> Sequence[tuple[int, int]]:
    """The fragments of frame `frame_of[0]` of `frame_of[1]`: all of a single one, else one each or by the table."""
    frame, n_frames = frame_of
    if n_frames == 1:
        return fragments
    if len(fragments) == n_frames:
        return fragments[frame : frame + 1]
    if len(fragments) < n_frames:
        raise CorruptInput(
            f"{name} has {len(fragments)} fragments of pixel data; expected one or more for each of {n_frames} frames; "
            "it is damaged; fetch it again"
        )
    table_offset, table_bytes = table
    if table_bytes != 4 * n_frames:
        raise UnsupportedInput(
            f"{name} has {len(fragments)} fragments for {n_frames} frames and no table of offsets that assigns them; "
            "export the series uncompressed (Explicit VR Little Endian)"
        )
    starts = (*struct.unpack_from(f"<{n_frames}I", content, table_offset), fragments[-1][0] + 1)
    first = fragments[0][0]
    chosen = [item for item in fragments if starts[frame] <= item[0] - first < starts[frame + 1]]
    if not chosen or chosen[0][0] - first != starts[frame]:
        raise CorruptInput(
            f"{name}: the table of offsets puts frame {frame + 1} where no fragment begins; it is damaged; "
            "fetch it again"
        )
    return chosen


def _require_size(syntax: str, encoded: bytes, pixels: PixelFormat, name: str) -> None:
    """Nothing, where the codestream says the header's size or none; so that no decoder allocates for a lie."""
    if syntax == RLE_LOSSLESS:
        return
    size = _jpeg_2000_size(encoded) if syntax in JPEG_2000_SYNTAXES else _jpeg_size(encoded)
    if size != (pixels.rows, pixels.columns):
        found = "no size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise CorruptInput(
            f"{name}: the compressed frame says {found} of itself; expected {pixels.rows} x {pixels.columns}; "
            "it is damaged; fetch it again"
        )


def _jpeg_2000_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG 2000 codestream, None where it is none."""
    start = encoded.find(_J2K_START) if encoded.startswith(_JP2_START) else 0
    if start < 0 or not encoded.startswith(_J2K_START, start) or len(encoded) < start + 8 + _SIZE_AND_POSITION.size:
        return None
    right, bottom, left, top = _SIZE_AND_POSITION.unpack_from(encoded, start + 8)
    return bottom - top, right - left


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG or JPEG-LS codestream, None where it is none."""
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
