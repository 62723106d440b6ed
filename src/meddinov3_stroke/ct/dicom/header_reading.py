"""From the data set of a DICOM file to image headers: one for an image, one for each frame of a multi-frame object.

Functional groups of multi-frame objects: DICOM PS3.3 C.7.6.16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.dicom.container import DicomContent, parse_dataset, read_structure
from meddinov3_stroke.ct.dicom.header import HeaderFields, ImageHeader, PixelFormat, Rescale
from meddinov3_stroke.ct.geometry import SPACING_RANGE_MM
from meddinov3_stroke.errors import CorruptInput

UNIT_TOLERANCE = 1e-3
"""How far direction cosines may be from unit length and from a right angle; DS holds 16 characters."""

MAX_POSITION_MM = 1e5
"""An image further than 100 m from the origin is damaged."""

WRAPPED_BITS, WRAPPED_ABOVE_INTERCEPT = 12, -100.0
"""The RSNA 2019 fault: BitsStored 12, unsigned, and an intercept above -100."""

MAX_FRAMES = 4096
"""A header that declares more frames is damaged."""

NO_PIXELS = PixelFormat(0, 0, 1, "", 0, 0, 0, False)
"""The pixel format of an object whose pixels are never read."""

_SHARED_GROUPS, _FRAME_GROUPS = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

_KEYWORDS = (
    *(one.metadata["keyword"] for kind in (ImageHeader, PixelFormat, Rescale) for one in fields(kind) if one.metadata),
    *("SpecificCharacterSet", "PixelPaddingRangeLimit", _SHARED_GROUPS, _FRAME_GROUPS),
)
_TAGS = tuple(tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None)

_GROUP_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
_KERNEL_GROUPS = (
    "CTReconstructionSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)
"""Where the kernel is stated; an object converted from single images has it among the unassigned attributes."""
_GROUPS = (
    *dict.fromkeys(_GROUP_OF.values()),
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    *_KERNEL_GROUPS,
)


def read_headers(content: bytes, name: str) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in the bytes of a DICOM file called `name`, one per frame; None if it is not DICOM.

    Raises:
        CorruptInput: the structure contradicts itself, or an indispensable value cannot be read.
    """
    found = read_structure(content, name)
    return None if found is None else headers_of(found, name)


def headers_of(content: DicomContent, name: str) -> tuple[ImageHeader, ...]:
    """The headers of the images in a file whose structure was walked; as `read_headers`."""
    found = HeaderFields(parse_dataset(content, name, _TAGS), name)
    if content.pixel_data is None and not found.text("SOPClassUID") and not found.text("SOPInstanceUID"):
        return ()  # a DICOMDIR or another object without an image
    is_ct = found.text("Modality").upper() == "CT" and content.pixel_data is not None
    pixels = _pixel_format(found) if is_ct else NO_PIXELS  # other objects are set aside whatever their pixels are
    image = _image_header(found, content, pixels)
    groups = found.sequence(_FRAME_GROUPS) if is_ct else []
    if not groups:
        return (image,)
    if len(groups) != pixels.n_frames:
        raise CorruptInput(
            f"{name}: {pixels.n_frames} frames but functional groups for {len(groups)}; the object is damaged; fetch "
            "it again"
        )
    shared = found.sequence(_SHARED_GROUPS)
    return tuple(_frame_header(image, k, [*shared[:1], group], name) for k, group in enumerate(groups))


def _read_declared(kind: type[Any], found: HeaderFields) -> dict[str, Any]:
    """The fields of a header class whose declaration says how to read them."""
    values: dict[str, Any] = {}
    for one in fields(kind):
        if "read" in one.metadata:
            values[one.name] = one.metadata["read"](found, one.metadata["keyword"], values)
    return values


def _pixel_format(found: HeaderFields) -> PixelFormat:
    pixels = PixelFormat(**_read_declared(PixelFormat, found))
    if not (1 <= pixels.n_frames <= MAX_FRAMES and min(pixels.rows, pixels.columns) >= 1):
        raise CorruptInput(
            f"{found.name}: {pixels.n_frames} frames of {pixels.rows} x {pixels.columns} pixels; expected 1 to "
            f"{MAX_FRAMES} frames of at least one pixel; the header is damaged"
        )
    return pixels


def _image_header(found: HeaderFields, content: DicomContent, pixels: PixelFormat) -> ImageHeader:
    return ImageHeader(
        file=found.name,
        frame=None,
        **_read_declared(ImageHeader, found),
        transfer_syntax=content.transfer_syntax,
        pixels=pixels,
        has_pixel_data=content.pixel_data is not None,
        rescale=_rescale(found, pixels),
        padding=_padding(found, pixels),
        **_place(found.floats),
    )


def _frame_header(image: ImageHeader, frame: int, groups: Sequence[Dataset], name: str) -> ImageHeader:
    """The header of one frame; its own functional groups come after the shared ones and override them."""
    found: dict[str, HeaderFields] = {}
    for group in groups:
        for keyword in _GROUPS:
            items = HeaderFields(group, name).sequence(keyword)
            if items:
                found[keyword] = HeaderFields(items[0], name)

    def floats(keyword: str, n: int) -> list[float] | None:
        holder = found.get(_GROUP_OF[keyword])
        return None if holder is None else holder.floats(keyword, n)

    transform = found.get("PixelValueTransformationSequence")
    frame_type = found.get("CTImageFrameTypeSequence")
    kernels = [found[group].texts("ConvolutionKernel") for group in _KERNEL_GROUPS if group in found]
    thickness = floats("SliceThickness", 1)
    return replace(
        image,
        frame=frame,
        rescale=image.rescale if transform is None else _rescale(transform, image.pixels),
        image_type=image.image_type if frame_type is None else frame_type.texts("FrameType"),
        kernel="\\".join(next(filter(any, kernels), ())) or image.kernel,
        slice_thickness_mm=thickness[0] if thickness else image.slice_thickness_mm,
        **_place(floats),
    )


def _place(floats: Callable[[str, int], list[float] | None]) -> dict[str, Any]:
    """Position, directions and pixel spacing if all are sound, else None for each with the fault."""
    position, cosines = floats("ImagePositionPatient", 3), floats("ImageOrientationPatient", 6)
    spacing = floats("PixelSpacing", 2)
    missing = [
        name
        for name, value in (("position", position), ("orientation", cosines), ("pixel spacing", spacing))
        if value is None
    ]
    place: dict[str, Any] = dict.fromkeys(("position_mm", "row_direction", "column_direction", "pixel_spacing_mm"))
    if position is None or cosines is None or spacing is None:
        return place | {"geometry_fault": f"no {', '.join(missing)} in the header"}
    directions = np.array(cosines).reshape(2, 3)
    if fault := _geometry_fault(position, directions, spacing):
        return place | {"geometry_fault": fault}
    row, column = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return {
        "position_mm": np.array(position),
        "row_direction": row,
        "column_direction": column,
        "pixel_spacing_mm": (spacing[0], spacing[1]),
        "geometry_fault": "",
    }


def _geometry_fault(position: list[float], directions: Float64[np.ndarray, "2 3"], spacing: list[float]) -> str:
    low, high = SPACING_RANGE_MM
    if max(map(abs, position)) > MAX_POSITION_MM:
        return f"a position of {max(map(abs, position)):.3g} mm from the origin"
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > UNIT_TOLERANCE or abs(directions[0] @ directions[1]) > UNIT_TOLERANCE:
        return "an orientation that is not a pair of perpendicular unit vectors"
    if not all(low <= side <= high for side in spacing):
        return f"a pixel spacing of {spacing[0]:g} x {spacing[1]:g} mm"
    return ""


def _rescale(found: HeaderFields, pixels: PixelFormat) -> Rescale:
    slope, intercept = found.number("RescaleSlope"), found.number("RescaleIntercept")
    is_stated = slope is not None and intercept is not None
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    is_unsigned_12 = pixels.bits_stored == WRAPPED_BITS and not pixels.is_signed
    return Rescale(slope, intercept, is_stated and is_unsigned_12 and intercept > WRAPPED_ABOVE_INTERCEPT, is_stated)


def _padding(found: HeaderFields, pixels: PixelFormat) -> tuple[int, int] | None:
    """(smallest, largest) padding value with the sign of the pixels; some files confuse US and SS."""
    first = found.count("PixelPaddingValue")
    if first is None:
        return None
    last = found.count("PixelPaddingRangeLimit")
    bounds = [_as_signed(value, pixels) for value in (first, first if last is None else last)]
    return min(bounds), max(bounds)


def _as_signed(value: int, pixels: PixelFormat) -> int:
    turns = 1 << max(pixels.bits_allocated, 1)
    if pixels.is_signed and value >= turns // 2:
        return value - turns
    return value + turns if not pixels.is_signed and value < 0 else value
