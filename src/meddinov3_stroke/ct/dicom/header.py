"""The header of one DICOM image, as far as a volume needs it. Each field is declared once, here.

The metadata of a dataclass field names the DICOM attribute and how it is read: `survey` reads the attributes so
declared, and `data.header_rows` derives its table from the same fields. PS3.3 C.7.6.1 (image), C.7.6.2 (plane),
C.7.6.3 (pixels), C.8.2 (CT).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.nifti_header import MAX_INTERCEPT, SLOPE_RANGE
from meddinov3_stroke.errors import CorruptInput

WRAPPED_BITS, WRAPPED_ABOVE_INTERCEPT = 12, -100.0
"""The RSNA 2019 fault: BitsStored 12, unsigned, and an intercept above -100."""


MOST_QUOTED = 48
"""Characters quoted of a value that cannot be read."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def numbers_in(text: str) -> list[float] | None:
    """The numbers of a text with backslashes between them; None if one is none, or may be thousands (`1,024`).

    A comma is a decimal one if another value of the same text cannot be thousands.
    """
    parts = [part.strip() for part in text.split("\\")]
    commas = [part for part in parts if "," in part]
    if not all(map(_DECIMAL_COMMA.fullmatch, commas)) or (commas and all(map(_THOUSANDS.fullmatch, commas))):
        return None
    try:
        return [float(part.replace(",", ".")) for part in parts]
    except ValueError:
        return None


class HeaderFields:
    """The values of the pydicom data set in the file called `name`; damage is an error only in indispensable values."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.as_text: list[str] = []
        """Attributes whose numbers were stored as text or with a decimal comma."""

    def value(self, keyword: str) -> Any:
        """The value; None if it is absent or empty."""
        try:
            value = self.dataset.get(keyword)
        except Exception as error:  # pydicom's converters raise errors of any type
            fault = f"{keyword} cannot be read ({type(error).__name__})"
            raise CorruptInput(f"{self.name}: {fault}; the header is damaged; fetch it again") from error
        return None if value is None or value == "" else value

    def _lenient(self, keyword: str) -> Any:
        try:
            return self.value(keyword)
        except CorruptInput:
            return None

    def _values(self, keyword: str) -> Sequence[Any]:
        value = self._lenient(keyword)
        return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]

    def text(self, keyword: str) -> str:
        """A description without unprintable characters; empty if absent or unreadable."""
        value = self._lenient(keyword)
        return "".join(filter(str.isprintable, "" if value is None else str(value))).strip()

    def upper(self, keyword: str) -> str:
        """A description in upper case."""
        return self.text(keyword).upper()

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The values of a multi-valued description in upper case."""
        return tuple(str(one).strip().upper() for one in self._values(keyword) if one is not None)

    def floats(self, keyword: str, n: int) -> list[float] | None:
        """Exactly `n` finite numbers, otherwise None. Numbers stored as text or with a decimal comma are noted."""
        try:
            numbers = [float(one) for one in self._values(keyword)]
        except (TypeError, ValueError, OverflowError):
            numbers = numbers_in(self.stored_text(keyword)) or []
            if len(numbers) == n:
                self.as_text.append(keyword)
        return numbers if len(numbers) == n and all(map(math.isfinite, numbers)) else None

    def stored_text(self, keyword: str) -> str:
        """What stands there, as printable text; empty if it is absent or empty."""
        tag = tag_for_keyword(keyword)
        value = self.dataset.get_item(tag).value if tag is not None and tag in self.dataset else None
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            value = "\\".join(map(str, value))
        text = value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
        return "".join(filter(str.isprintable, text)).strip()

    def unreadable(self, keyword: str) -> str:
        """What stands there instead of numbers, quoted; empty if nothing does."""
        text = self.stored_text(keyword)
        return text and f"'{text if len(text) <= MOST_QUOTED else f'{text[:MOST_QUOTED]}...'}'"

    def number(self, keyword: str) -> float | None:
        """One finite number, or None."""
        numbers = self.floats(keyword, 1)
        return numbers[0] if numbers else None

    def count(self, keyword: str) -> int | None:
        """A whole number, or None if it is absent or unreadable."""
        number = self.number(keyword)
        return int(number) if number is not None and number == int(number) else None

    def temporal_position(self, keyword: str) -> int | None:
        """The number at `keyword`; else the Temporal Position Identifier."""
        index = self.count(keyword)
        return self.count("TemporalPositionIdentifier") if index is None else index

    def needed(self, keyword: str, default: int | None = None) -> int:
        """A whole number; raises `CorruptInput` if it is unreadable, or absent without a default."""
        value = self.value(keyword)
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            found = "missing" if value is None else repr(value)
            raise CorruptInput(f"{self.name}: {keyword} is {found}; expected a whole number; the header is damaged")
        return value

    def sequence(self, keyword: str) -> list[Any]:
        """The items of a sequence; empty if it is absent."""
        value = self.value(keyword)
        return list(value) if value is not None else []


def _as(read: Callable[[HeaderFields, str], Any], keyword: str) -> dict[str, Any]:
    return {"keyword": keyword, "read": read}


def _rescale_type(found: HeaderFields, keyword: str) -> str:
    luts = [HeaderFields(item, found.name) for item in found.sequence("ModalityLUTSequence")]
    return luts[0].upper("ModalityLUTType") if luts else found.upper(keyword)


def _columns(keyword: str, prefix: str, endings: Sequence[str]) -> dict[str, Any]:
    return {"keyword": keyword, "columns": tuple(f"{prefix}_{ending}" for ending in endings)}


@dataclass(frozen=True)
class PixelFormat:
    """How a frame's pixels are stored (DICOM PS3.3 C.7.6.3, PS3.5 8.1)."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    n_frames: int = 1

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, in this machine's byte order."""
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")


@dataclass(frozen=True)
class Rescale:
    """Stored value to HU: `value * slope + intercept` (DICOM PS3.3 C.11.1)."""

    slope: float
    intercept: float
    is_wrapped: bool = False
    """The RSNA 2019 fault: 12-bit values that wrapped around at 4096, with a wrong intercept."""
    is_stated: bool = True
    """Without slope and intercept in the header, stored values are taken as HU, with a warning."""
    rescale_fault: str = ""
    """What stands there instead of a number, with its name."""

    @property
    def is_sane(self) -> bool:
        """Whether slope and intercept are plausible for CT (within the range accepted for NIfTI)."""
        return (
            not self.rescale_fault
            and SLOPE_RANGE[0] <= self.slope <= SLOPE_RANGE[1]
            and abs(self.intercept) <= MAX_INTERCEPT
        )


def rescale_of(found: HeaderFields, pixels: PixelFormat) -> Rescale:
    """Slope and intercept, 1 and 0 where not stated."""
    slope, intercept = found.number("RescaleSlope"), found.number("RescaleIntercept")
    is_stated = slope is not None and intercept is not None
    found_there = {"Slope": slope is None and found.unreadable("RescaleSlope")}
    found_there["Intercept"] = intercept is None and found.unreadable("RescaleIntercept")
    fault = ", ".join(f"Rescale {name} is {text}" for name, text in found_there.items() if text)
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    is_unsigned_12 = pixels.bits_stored == WRAPPED_BITS and not pixels.is_signed
    return Rescale(
        slope, intercept, is_stated and is_unsigned_12 and intercept > WRAPPED_ABOVE_INTERCEPT, is_stated, fault
    )


def padding_of(found: HeaderFields, pixels: PixelFormat) -> tuple[int, int] | None:
    """(smallest, largest) padding value with the sign of the pixels; some files confuse US and SS."""
    first, last = found.count("PixelPaddingValue"), found.count("PixelPaddingRangeLimit")
    if first is None:
        return None
    turns = 1 << max(pixels.bits_allocated, 1)
    bounds = [first, first if last is None else last]
    if pixels.is_signed:
        bounds = [value - turns if value >= turns // 2 else value for value in bounds]
    else:
        bounds = [value + turns if value < 0 else value for value in bounds]
    return min(bounds), max(bounds)


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """One image: a file, or one frame of a multi-frame file."""

    file: str
    """Name within its input."""
    frame: int | None
    """0-based in a multi-frame object; None if the file is the image."""
    sop_instance_uid: str = field(metadata=_as(HeaderFields.text, "SOPInstanceUID"))
    series_instance_uid: str = field(metadata=_as(HeaderFields.text, "SeriesInstanceUID"))
    study_instance_uid: str = field(metadata=_as(HeaderFields.text, "StudyInstanceUID"))
    patient_id: str = field(metadata=_as(HeaderFields.text, "PatientID"))
    """Distinguishes patients; never printed or logged, and stored only by `prepare-rsna`, whose IDs are Kaggle's."""
    modality: str = field(metadata=_as(HeaderFields.upper, "Modality"))
    sop_class_uid: str = field(metadata=_as(HeaderFields.text, "SOPClassUID"))
    image_type: tuple[str, ...] = field(metadata=_as(HeaderFields.texts, "ImageType"))
    series_number: int | None = field(metadata=_as(HeaderFields.count, "SeriesNumber"))
    acquisition_number: int | None = field(metadata=_as(HeaderFields.count, "AcquisitionNumber"))
    frame_acquisition_number: int | None = field(metadata=_as(HeaderFields.count, "FrameAcquisitionNumber"))
    temporal_position: int | None = field(metadata=_as(HeaderFields.temporal_position, "TemporalPositionIndex"))
    """Phase of a series over time."""
    instance_number: int | None = field(metadata=_as(HeaderFields.count, "InstanceNumber"))
    """For information; never sorted by."""
    series_description: str = field(metadata=_as(HeaderFields.text, "SeriesDescription"))
    body_part: str = field(metadata=_as(HeaderFields.text, "BodyPartExamined"))
    kernel: str = field(metadata=_as(lambda found, name: "\\".join(found.texts(name)), "ConvolutionKernel"))
    contrast: str = field(metadata=_as(HeaderFields.text, "ContrastBolusAgent"))
    transfer_syntax: str
    pixels: PixelFormat
    has_pixel_data: bool
    rescale: Rescale
    padding: tuple[int, int] | None = field(metadata=_columns("PixelPaddingValue", "padding", ("low", "high")))
    """Smallest and largest stored value that is padding."""
    has_modality_lut: bool = field(metadata=_as(lambda found, name: bool(found.sequence(name)), "ModalityLUTSequence"))
    position_mm: Float64[np.ndarray, " 3"] | None = field(metadata=_columns("ImagePositionPatient", "position", "xyz"))
    """Image Position (Patient), LPS: centre of the first voxel."""
    row_direction: Float64[np.ndarray, " 3"] | None = field(metadata=_columns("ImageOrientationPatient", "row", "xyz"))
    """Unit vector, LPS, along which the column index increases (first half of Image Orientation)."""
    column_direction: Float64[np.ndarray, " 3"] | None = field(
        metadata=_columns("ImageOrientationPatient", "column", "xyz")
    )
    """Unit vector, LPS, along which the row index increases (second half)."""
    pixel_spacing_mm: tuple[float, float] | None = field(
        metadata=_columns("PixelSpacing", "spacing", ("rows", "columns"))
    )
    """(between rows, between columns)."""
    slice_thickness_mm: float | None = field(metadata=_as(HeaderFields.number, "SliceThickness"))
    gantry_tilt_degrees: float | None = field(metadata=_as(HeaderFields.number, "GantryDetectorTilt"))
    """As stated in the header; the tilt used is that of the geometry."""
    frame_of_reference_uid: str = field(default="", metadata=_as(HeaderFields.text, "FrameOfReferenceUID"))
    """Positions under different ones cannot be compared."""
    rescale_type: str = field(default="", metadata=_as(_rescale_type, "RescaleType"))
    """Unit of the rescaled values; absent means HU (PS3.3 C.8.2.1)."""
    geometry_fault: str = ""
    """Why position, orientation or pixel spacing are None."""
    numbers_as_text: tuple[str, ...] = ()
    """Attributes whose numbers were stored as text or with a decimal comma."""

    @cached_property
    def directions(self) -> Float64[np.ndarray, "2 3"]:
        """Unit vectors, LPS, along which the column and the row index increase; only with an orientation."""
        assert self.row_direction is not None  # placed images only
        assert self.column_direction is not None
        return np.stack([self.row_direction, self.column_direction])

    @cached_property
    def normal(self) -> Float64[np.ndarray, " 3"]:
        """Unit vector, LPS, perpendicular to the image; only with an orientation."""
        (a, b, c), (d, e, f) = self.directions.tolist()
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # np.cross takes 50 times as long

    @property
    def patient_key(self) -> str:
        """The patient ID without blanks and case, in which one patient's IDs may differ."""
        return "".join(self.patient_id.split()).casefold()

    @property
    def is_placed(self) -> bool:
        """Whether position, orientation and pixel spacing are all known."""
        return self.position_mm is not None and self.row_direction is not None and self.pixel_spacing_mm is not None
