"""One frame of a walked DICOM file: its stored values, and these as Hounsfield units with padding as air.

Native frames are a view of the file's bytes; compressed ones are decoded by a child process. PS3.5 section 8 and annex
A (stored values), PS3.3 C.11.1 (rescale) and C.7.5.1.1.2 (padding).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer, Real

from meddinov3_stroke.ct.dicom.codestreams import (
    EXPORT,
    NATIVE_SYNTAXES,
    codestream,
    named_syntax,
    refuse,
    require_size,
    require_stated_kind,
)
from meddinov3_stroke.ct.dicom.container import EXPLICIT_BIG, DicomContent, PixelElement, parse_dataset
from meddinov3_stroke.ct.dicom.decoders import PLUGINS, RLE_LOSSLESS, EncodedFrame, shared_codec
from meddinov3_stroke.ct.dicom.header import ImageHeader, PixelFormat
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
"""12-bit lossy JPEG; its only complete decoder is under the GPL."""

MAX_FRAME_PIXELS, MAX_PIXELS = 2**26, 2**28
"""Pixels of the largest frame, 8192 x 8192, and of all frames of one file; the same cap as for NIfTI volumes."""

MAX_EXCESS_BYTES = 512
"""Bytes after the last pixel of the pixel data that are ignored; some writers fill the element up to a block."""

Stored = Integer[np.ndarray, "row col"]
Hu = Real[np.ndarray, "row col"]
"""One image before any rescale, and in HU."""

WRAP, REPAIR_SHIFT, REPAIRED_INTERCEPT = 4096, 1000, -1000.0
"""The RSNA 2019 repair of 12-bit values that wrapped around: add 1000, subtract 4096 from those that reach it; the
intercept is -1000."""

CT_LIMIT_HU = 31_000.0
"""Above all CT numbers: the extended scale for metal ends at 30,710 HU. Larger values are negative or wrong."""

WRAPPED_BONE_HU = -2000.0
"""Dense bone reads as less than this if its unsigned values are taken as signed."""

DENSE_BONE_HU = 1500.0
"""A signed range that ends below this has no room for the bone of a head: the values are unsigned."""

MAX_SATURATED_SHARE = 0.01
"""Share of pixels up to which the largest unsigned value may be metal, so that it does not count as -1."""

TISSUE_ABOVE_HU = -900.0
"""Padding above this could be tissue of the same value; only regions that touch the border become air."""


WRAPPED = "had a wrong intercept and values wrapped at 4096 (the RSNA 2019 fault); repaired"
LOW_BITS = "have a wrong High Bit; values are read from the low bits"
EXCESS = "have bytes after the last pixel; ignored"
PADDED = "are in files with zero bytes after the data set; ignored"
SIGNED = "hold signed values but are declared unsigned (Pixel Representation); read as signed"
UNSIGNED = "hold unsigned values but are declared signed (Pixel Representation); read as unsigned"
NEGATIVE = "hold negative values"
BEYOND_CT = "hold values beyond the range of CT that no wrong sign explains; left unchanged"
"""What was repaired or ignored in an image, after `n slices`."""


def decode_frame(
    content: DicomContent, pixels: PixelFormat, frame: int, name: str, repairs: set[str] | None = None
) -> Stored:
    """Stored values of one frame (0-based) before any rescale: 8, 16 or 32 bits in this machine's byte order, signed as
    the header states, or where values are sign-extended; possibly read-only.

    Bits beyond Bits Stored (overlays of older files) are removed, and the highest bit stored is the sign. `repairs`
    gains what had to be repaired or ignored.

    Raises:
        CorruptInput: pixel data missing or of another length than declared, or a frame that cannot be decoded.
        UnsupportedInput: an unsupported transfer syntax, bits or samples, or more pixels than the caps.
    """
    _require_readable(pixels, name)
    assert 0 <= frame < pixels.n_frames
    syntax, found = content.transfer_syntax, content.pixel_data
    if syntax not in NATIVE_SYNTAXES and syntax not in PLUGINS:
        why = "its 12-bit decoder is under the GPL" if syntax == JPEG_EXTENDED else "there is no decoder for it"
        raise UnsupportedInput(
            f"{name} has the transfer syntax {named_syntax(syntax)!a}, not supported ({why}); {EXPORT}"
        )
    if found is None:
        refuse(name, f"has no pixel data; expected {pixels.n_frames} frame(s)")
    require_stated_kind(content, found, name)
    repairs = set() if repairs is None else repairs
    repairs |= {PADDED} if content.n_padding_bytes else set()
    if syntax in NATIVE_SYNTAXES:
        return _without_unused_bits(_native_frame(content, found, pixels, frame, name, repairs), pixels, repairs)
    encoded = codestream(content, found, pixels, frame, name)
    require_size(syntax, encoded, pixels, name)
    values = shared_codec().decode(EncodedFrame(syntax, encoded, pixels), name)
    # the other codecs apply a precision of their own
    return _without_unused_bits(values, pixels, repairs) if syntax == RLE_LOSSLESS else values


def _require_readable(pixels: PixelFormat, name: str) -> None:
    allocated, stored, high_bit = pixels.bits_allocated, pixels.bits_stored, pixels.high_bit
    if pixels.samples_per_pixel != 1:
        found = f"{pixels.samples_per_pixel} samples a pixel ({pixels.photometric_interpretation})"
        raise UnsupportedInput(f"{name} has {found}; expected 1; give the CT images, not a colour picture of them")
    if allocated not in (8, 16, 32):  # others (1, 12, 24, 64) do not occur in CT
        raise UnsupportedInput(f"{name} has {allocated} bits allocated; expected 8, 16 or 32; export the series again")
    if not (0 < stored <= allocated and high_bit < allocated):
        found = f"{stored} bits stored up to high bit {high_bit} of {allocated} allocated"
        refuse(name, f"has {found}, which is impossible")
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels"
    if min(pixels.rows, pixels.columns, pixels.n_frames) < 1:
        refuse(name, f"declares {sides}; expected at least 1 of each")
    n_pixels = pixels.rows * pixels.columns
    if n_pixels > MAX_FRAME_PIXELS or n_pixels * pixels.n_frames > MAX_PIXELS:
        most = f"at most {MAX_FRAME_PIXELS} a frame and {MAX_PIXELS} in all are read"
        raise UnsupportedInput(f"{name} declares {sides}; {most}; the header is damaged or this is not a CT")


def _native_frame(
    content: DicomContent, found: PixelElement, pixels: PixelFormat, frame: int, name: str, repairs: set[str]
) -> Stored:
    n_pixels = pixels.rows * pixels.columns
    if require_length(content, found, pixels, name) > 1:
        repairs.add(EXCESS)
    is_big_endian = content.transfer_syntax == EXPLICIT_BIG
    source, start = content.content, found.offset + frame * n_pixels * pixels.dtype.itemsize
    if is_big_endian and pixels.bits_allocated == 8 and found.vr == "OW":  # bytes within big endian words (annex D.2)
        words = source[found.offset : found.offset + (found.length or 0)]
        source, start = np.frombuffer(words + bytes(len(words) % 2), ">u2").astype("<u2").tobytes(), frame * n_pixels
    stored = np.frombuffer(source, pixels.dtype.newbyteorder(">" if is_big_endian else "<"), n_pixels, start)
    return stored.astype(pixels.dtype, copy=False).reshape(pixels.rows, pixels.columns)


def require_length(content: DicomContent, found: PixelElement, pixels: PixelFormat, name: str) -> int:
    """Bytes of native pixel data beyond the declared pixels: one for padding, or up to `MAX_EXCESS_BYTES`.

    Raises `CorruptInput` for other lengths, and for an excess that may be another column: the image would be skewed.
    """
    sides = f"{pixels.n_frames} frame(s) of {pixels.rows} x {pixels.columns} pixels of {pixels.bits_allocated} bits"
    n_values = pixels.rows * pixels.columns * pixels.samples_per_pixel * pixels.n_frames
    expected = n_values * pixels.bits_allocated // 8
    excess = (found.length or 0) - expected
    if not 0 <= excess <= MAX_EXCESS_BYTES or (excess > 1 and _is_skewed(content, found, pixels, excess)):
        refuse(name, f"has {found.length} bytes of pixel data; expected {expected} bytes ({sides})")
    return excess


def _is_skewed(content: DicomContent, found: PixelElement, pixels: PixelFormat, excess: int) -> bool:
    """Whether the excess is whole columns with which neighbouring rows match better: the declared width is wrong."""
    n_bytes = pixels.rows * pixels.n_frames * pixels.bits_allocated // 8
    if not n_bytes or excess % n_bytes or pixels.rows < 2 or pixels.bits_allocated not in (8, 16, 32):
        return False
    width, wider = pixels.columns, pixels.columns + excess // n_bytes
    values = np.frombuffer(content.content, pixels.dtype, pixels.rows * wider, found.offset).astype(np.float64)
    steps = [np.abs(np.diff(values[: pixels.rows * n].reshape(pixels.rows, n), axis=0)).mean() for n in (width, wider)]
    return bool(steps[1] < steps[0] or any(content.content[found.offset + (found.length or 0) - excess :][:excess]))


def _without_unused_bits(values: Stored, pixels: PixelFormat, repairs: set[str]) -> Stored:
    allocated, stored, high_bit = pixels.bits_allocated, pixels.bits_stored, pixels.high_bit
    if high_bit < stored - 1 or _lie_in_low_bits(values, pixels):
        repairs.add(LOW_BITS)
        high_bit = stored - 1
    if not pixels.is_signed and high_bit == stored - 1 and _are_sign_extended(values, pixels):
        repairs.add(SIGNED)
        return values.view(f"i{values.itemsize}")
    return values if stored == allocated else (values << (allocated - 1 - high_bit)) >> (allocated - stored)


def _are_sign_extended(values: Stored, pixels: PixelFormat) -> bool:
    """Whether all bits above those stored repeat the highest of these, as in negative values; overlays do not."""
    above, ones = values >> (pixels.bits_stored - 1), (2 << (pixels.bits_allocated - pixels.bits_stored)) - 1
    return ones > 1 and bool((above == ones).any() and ((above <= 1) | (above == ones)).all())


def _lie_in_low_bits(values: Stored, pixels: PixelFormat) -> bool:
    """Whether values declared to lie in the upper bits lie in the low ones: some of these are set, and none above."""
    raised = pixels.high_bit + 1 - pixels.bits_stored
    if raised <= 0 or not (values & ((1 << raised) - 1)).any():
        return False
    above = values >> pixels.bits_stored
    return bool(((above == 0) | (above == -1)).all())  # -1: the sign of a negative value


@dataclass(frozen=True, eq=False)
class ImageHu:
    """One image in HU."""

    hu: Hu
    """int16 if every value is a whole number in its range, else float32; padding above -1024 HU is already air."""
    n_padding_to_air: int
    """Declared padding of -1024 HU or more that was set to air."""
    repair: str
    """What was repaired in its values, or is beyond repair; empty if nothing."""


def image_hu(stored: Stored, image: ImageHeader, content: DicomContent) -> ImageHu:
    """`stored` in HU by the image's own slope and intercept (or modality LUT), with padding as air."""
    rescale, repair, n_to_air = image.rescale, "", 0
    padding = _padding(stored, image)
    if image.has_modality_lut:
        hu = _looked_up(stored, image, content)
    elif rescale.is_wrapped:
        shifted = stored.astype(np.int32) + REPAIR_SHIFT
        shifted[shifted >= WRAP] -= WRAP
        hu = _rescaled(shifted, rescale.slope, REPAIRED_INTERCEPT)
        is_same = rescale.intercept == 0.0 and bool(stored.max() < WRAP - REPAIR_SHIFT)
        repair = "" if is_same else WRAPPED
    else:
        values, repair = _with_true_sign(stored, image, padding)
        hu = _rescaled(values, rescale.slope, rescale.intercept)
    if padding is not None and padding.any():
        hu, n_to_air = _with_air(hu, padding)
    return ImageHu(hu, n_to_air, repair)


def _padding(stored: Stored, image: ImageHeader) -> Bool[np.ndarray, "row col"] | None:
    if image.padding is None:
        return None
    least, greatest = image.padding
    return (stored >= least) & (stored <= greatest) if least != greatest else stored == least


def _with_true_sign(
    stored: Stored, image: ImageHeader, padding: Bool[np.ndarray, "row col"] | None
) -> tuple[Stored, str]:
    """Stored values, with the other sign if the declared one gives HU that CT cannot have, and the repair."""
    pixels, rescale, half = image.pixels, image.rescale, 1 << (image.pixels.bits_stored - 1)
    if pixels.is_signed:
        has_bone = (half - 1) * rescale.slope + rescale.intercept >= DENSE_BONE_HU
        if has_bone or rescale.intercept > AIR_HU or pixels.bits_stored == pixels.bits_allocated:
            return stored, ""
        is_negative = stored < 0
        if not is_negative.any():
            return stored, ""
        # air and padding reach the border, bone does not; bone that wrapped is far below any artefact of metal
        on_border = np.concatenate([is_negative[edge] for edge in (0, -1, (..., 0), (..., -1))]).any()
        is_wrapped = not on_border and int(stored.min()) * rescale.slope + rescale.intercept < WRAPPED_BONE_HU
        return (stored & (2 * half - 1), UNSIGNED) if is_wrapped else (stored, NEGATIVE)
    if stored.dtype.kind == "i" or int(stored.max()) * rescale.slope + rescale.intercept <= CT_LIMIT_HU:
        return stored, ""
    is_negative = stored >= half if padding is None else (stored >= half) & ~padding
    if not is_negative.any() or int(stored[is_negative].min()) * rescale.slope + rescale.intercept <= CT_LIMIT_HU:
        return stored, ""
    unused = pixels.bits_allocated - pixels.bits_stored
    signed = (stored << unused).view(f"i{stored.itemsize}") >> unused
    negative = signed[is_negative]
    is_saturated = is_negative.mean() <= MAX_SATURATED_SHARE and int(negative.min()) == -1
    return (stored, BEYOND_CT) if is_saturated or int(negative.min()) < -half // 2 else (signed, SIGNED)


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
