"""One frame of a walked DICOM file: its stored values, and these as Hounsfield units with padding as air.

Native frames are a view of the file's bytes; compressed ones are decoded by a child process. PS3.5 section 8 and annex
A (stored values), PS3.3 C.11.1 (rescale) and C.7.5.1.1.2 (padding).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from jaxtyping import Bool, Integer, Real
from pydicom.config import IGNORE
from pydicom.uid import UID

from meddinov3_stroke.ct.dicom import container
from meddinov3_stroke.ct.dicom.container import EXPLICIT_BIG, ITEM_HEADER, DicomContent, PixelElement, parse_dataset
from meddinov3_stroke.ct.dicom.decoders import JPEG_2000_SYNTAXES, PLUGINS, RLE_LOSSLESS, EncodedFrame, shared_codec
from meddinov3_stroke.ct.dicom.header import ImageHeader, PixelFormat
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU

NATIVE_SYNTAXES = frozenset((container.IMPLICIT_LITTLE, container.EXPLICIT_LITTLE, EXPLICIT_BIG, container.DEFLATED))
"""Transfer syntaxes whose pixels are stored as they are."""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
"""12-bit lossy JPEG; its only complete decoder is under the GPL."""

MAX_FRAME_PIXELS, MAX_PIXELS = 2**26, 2**28
"""Pixels of the largest frame, 8192 x 8192, and of all frames of one file; the same cap as for NIfTI volumes."""

_J2K_START, _JP2_START, _JPEG_START = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ", b"\xff\xd8"
"""SOC and SIZ of a JPEG 2000 codestream (ITU-T T.800 A.4, A.5), the box that some writers put around it, and SOI."""

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's frame header, which has its size: SOF (ITU-T T.81 B.2.2) and SOF55 of JPEG-LS (T.87 C.2.2)."""

_EXPORT = "export the series uncompressed (Explicit VR Little Endian)"

Stored = Integer[np.ndarray, "row col"]
Hu = Real[np.ndarray, "row col"]
"""One image before any rescale, and in HU."""

WRAP, REPAIR_SHIFT, REPAIRED_INTERCEPT = 4096, 1000, -1000.0
"""The RSNA 2019 repair of 12-bit values that wrapped around: add 1000, subtract 4096 from those that reach it; the
intercept is -1000."""

TISSUE_ABOVE_HU = -900.0
"""Padding above this could be tissue of the same value; only regions that touch the border become air."""


def decode_frame(content: DicomContent, pixels: PixelFormat, frame: int, name: str) -> Stored:
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
    if syntax not in NATIVE_SYNTAXES and syntax not in PLUGINS:
        known = UID(syntax, IGNORE).name  # without a warning about an invalid UID
        named = f"{syntax} ({known})" if known != syntax else syntax
        why = "its 12-bit decoder is under the GPL" if syntax == JPEG_EXTENDED else "there is no decoder for it"
        raise UnsupportedInput(f"{name} has the transfer syntax {named!a}, not supported ({why}); {_EXPORT}")
    if found is None:
        _refuse(name, f"has no pixel data; expected {pixels.n_frames} frame(s)")
    if syntax in NATIVE_SYNTAXES:
        return _without_unused_bits(_native_frame(content, found, pixels, frame, name), pixels)
    if found.length is not None:
        _refuse(name, f"has plain pixel data under the compressed transfer syntax {syntax}; expected fragments")
    codestream = _codestream(content, found, pixels, frame, name)
    _require_size(syntax, codestream, pixels, name)
    values = shared_codec().decode(EncodedFrame(syntax, codestream, pixels), name)
    # the other codecs apply a precision of their own
    return _without_unused_bits(values, pixels) if syntax == RLE_LOSSLESS else values


def _refuse(name: str, fault: str) -> NoReturn:
    raise CorruptInput(f"{name} {fault}; it is damaged; fetch it again")


def _require_readable(pixels: PixelFormat, name: str) -> None:
    allocated, stored, high_bit = pixels.bits_allocated, pixels.bits_stored, pixels.high_bit
    if pixels.samples_per_pixel != 1:
        found = f"{pixels.samples_per_pixel} samples a pixel ({pixels.photometric_interpretation})"
        raise UnsupportedInput(f"{name} has {found}; expected 1; give the CT images, not a colour picture of them")
    if allocated not in (8, 16, 32):  # others (1, 12, 24, 64) do not occur in CT
        raise UnsupportedInput(f"{name} has {allocated} bits allocated; expected 8, 16 or 32; export the series again")
    if not 0 < stored <= high_bit + 1 <= allocated:
        found = f"{stored} bits stored up to high bit {high_bit} of {allocated} allocated"
        _refuse(name, f"has {found}, which is impossible")
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels"
    if min(pixels.rows, pixels.columns, pixels.n_frames) < 1:
        _refuse(name, f"declares {sides}; expected at least 1 of each")
    n_pixels = pixels.rows * pixels.columns
    if n_pixels > MAX_FRAME_PIXELS or n_pixels * pixels.n_frames > MAX_PIXELS:
        most = f"at most {MAX_FRAME_PIXELS} a frame and {MAX_PIXELS} in all are read"
        raise UnsupportedInput(f"{name} declares {sides}; {most}; the header is damaged or this is not a CT")


def _native_frame(content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str) -> Stored:
    n_pixels = pixels.rows * pixels.columns
    require_length(found, pixels, name)
    is_big_endian = content.transfer_syntax == EXPLICIT_BIG
    source, start = content.content, found.offset + frame * n_pixels * pixels.dtype.itemsize
    if is_big_endian and pixels.bits_allocated == 8 and found.vr == "OW":  # bytes within big endian words (annex D.2)
        words = source[found.offset : found.offset + (found.length or 0)]
        source, start = np.frombuffer(words + bytes(len(words) % 2), ">u2").astype("<u2").tobytes(), frame * n_pixels
    stored = np.frombuffer(source, pixels.dtype.newbyteorder(">" if is_big_endian else "<"), n_pixels, start)
    return stored.astype(pixels.dtype, copy=False).reshape(pixels.rows, pixels.columns)


def require_length(found: PixelElement, pixels: PixelFormat, name: str) -> None:
    """Check that native pixel data has the declared number of bytes, or one more for padding."""
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels of {pixels.bits_allocated} bits"
    n_values = pixels.rows * pixels.columns * pixels.samples_per_pixel * pixels.n_frames
    expected = n_values * pixels.bits_allocated // 8
    if found.length is None or not expected <= found.length <= expected + 1:
        length = "encapsulated" if found.length is None else f"{found.length} bytes of"
        _refuse(name, f"has {length} pixel data; expected {expected} bytes ({sides})")


def _without_unused_bits(values: Stored, pixels: PixelFormat) -> Stored:
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused == 0:
        return values
    shifted = values << (pixels.bits_allocated - 1 - pixels.high_bit)
    return shifted >> unused


def _codestream(content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str) -> bytes:
    """The joined fragments of a frame: all of a single frame, else one for each frame or as the offset table says."""
    (first, end), *fragments = found.fragments or ((0, 0),)
    n_frames = pixels.n_frames
    if not fragments or (n_frames > 1 and len(fragments) < n_frames):
        n_found = f"has {len(fragments)} fragments of pixel data"
        _refuse(name, f"{n_found}; expected one or more for each of {n_frames} frames")
    if n_frames > 1 and len(fragments) == n_frames:
        fragments = fragments[frame : frame + 1]
    elif n_frames > 1:
        table = np.frombuffer(content.content, "<u4", (end - first) // 4, first).tolist()
        if len(table) != n_frames:
            why = f"{len(fragments)} fragments for {n_frames} frames and no offset table that assigns them"
            raise UnsupportedInput(f"{name} has {why}; {_EXPORT}")
        low, high = [*(end + offset for offset in table), len(content.content)][frame : frame + 2]
        fragments = [one for one in fragments if low <= one[0] - ITEM_HEADER < high]
        if not fragments or fragments[0][0] - ITEM_HEADER != low:
            _refuse(name, f"has an offset table that puts frame {frame + 1} where no fragment begins")
    return b"".join(content.content[start:stop] for start, stop in fragments)


def _require_size(syntax: str, encoded: bytes, pixels: PixelFormat, name: str) -> None:
    if syntax == RLE_LOSSLESS:  # which declares none
        return
    size = _jpeg_2000_size(encoded) if syntax in JPEG_2000_SYNTAXES else _jpeg_size(encoded)
    if size != (pixels.rows, pixels.columns):
        found = "no size" if size is None else f"{size[0]} x {size[1]} pixels"
        declares = f"a compressed frame that declares {found}; expected {pixels.rows} x {pixels.columns}"
        _refuse(name, f"has {declares}")


def _jpeg_2000_size(encoded: bytes) -> tuple[int, int] | None:
    start = encoded.find(_J2K_START) if encoded.startswith(_JP2_START) else 0
    if start < 0 or not encoded.startswith(_J2K_START, start) or len(encoded) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
    return bottom - top, right - left


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
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


@dataclass(frozen=True, eq=False)
class ImageHu:
    """One image in HU."""

    hu: Hu
    """int16 if every value is a whole number in its range, else float32; padding above -1024 HU is already air."""
    n_padding_to_air: int
    """Declared padding of -1024 HU or more that was set to air."""
    is_repaired: bool
    """Whether the RSNA repair changed values."""


def image_hu(stored: Stored, image: ImageHeader, content: DicomContent) -> ImageHu:
    """`stored` in HU by the image's own slope and intercept (or modality LUT), with padding as air."""
    rescale, is_repaired, n_to_air = image.rescale, False, 0
    if image.has_modality_lut:
        hu = _looked_up(stored, image, content)
    elif rescale.is_wrapped:
        shifted = stored.astype(np.int32) + REPAIR_SHIFT
        shifted[shifted >= WRAP] -= WRAP
        hu = _rescaled(shifted, rescale.slope, REPAIRED_INTERCEPT)
        is_repaired = rescale.intercept != 0.0 or bool(stored.max() >= WRAP - REPAIR_SHIFT)  # else HU are the same
    else:
        hu = _rescaled(stored, rescale.slope, rescale.intercept)
    if image.padding is not None:
        least, greatest = image.padding
        padding = (stored >= least) & (stored <= greatest) if least != greatest else stored == least
        if padding.any():
            hu, n_to_air = _with_air(hu, padding)
    return ImageHu(hu, n_to_air, is_repaired)


def _rescaled(stored: Stored, slope: float, intercept: float) -> Hu:
    if slope.is_integer() and intercept.is_integer():
        factor, offset, limits = int(slope), int(intercept), np.iinfo(np.int16)
        if limits.min <= int(stored.min()) * factor + offset and int(stored.max()) * factor + offset <= limits.max:
            if factor == 1 and offset == 0:
                return stored.astype(np.int16, copy=False)
            return (stored.astype(np.int32) * factor + offset).astype(np.int16)
    return (stored * np.float64(slope) + intercept).astype(np.float32)


def _looked_up(stored: Stored, image: ImageHeader, content: DicomContent) -> Hu:
    from pydicom.pixels.processing import apply_modality_lut

    try:
        hu = np.asarray(apply_modality_lut(stored, parse_dataset(content, image.file)))
    except Exception as error:  # pydicom raises errors of any type on a damaged table
        fault = f"its modality LUT cannot be applied ({type(error).__name__})"
        raise CorruptInput(f"{image.file}: {fault}; the header is damaged; fetch it again") from error
    return _rescaled(hu.astype(np.int64), 1.0, 0.0) if hu.dtype.kind in "iu" else hu.astype(np.float32)


def _with_air(hu: Hu, padding: Bool[np.ndarray, "row col"]) -> tuple[Hu, int]:
    """HU with padding as air, and the number of changed pixels; values below -1024 HU read as air anyway."""
    value = float(hu[padding].max())
    if value < PADDING_BELOW_HU:
        return hu, 0
    if value > TISSUE_ABOVE_HU:
        from scipy import ndimage  # slow to import

        parts, _ = ndimage.label(padding)
        border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        padding = np.isin(parts, border[border > 0])
    aired = hu.copy()
    aired[padding] = AIR_HU
    return aired, int(np.count_nonzero(padding & (hu != AIR_HU)))
