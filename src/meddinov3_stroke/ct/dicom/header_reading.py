"""The headers of a DICOM file: one for an image, one for each frame of a multi-frame object.

Attributes: DICOM PS3.3 C.7.6.1 (image), C.7.6.2 (plane), C.7.6.3 (pixels), C.8.2 (CT), C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.dicom.dataset import parse_dataset
from meddinov3_stroke.ct.dicom.fields import HeaderFields
from meddinov3_stroke.ct.dicom.header import ImageHeader, PixelFormat, Rescale
from meddinov3_stroke.ct.dicom.structure import DicomContent, read_structure
from meddinov3_stroke.ct.geometry import SPACING_RANGE_MM
from meddinov3_stroke.errors import CorruptInput

UNIT_TOLERANCE = 1e-3
"""How far direction cosines may be from unit length and from a right angle; DS holds 16 characters."""

MAX_POSITION_MM = 1e5
"""An image further from the origin than 100 m is damage."""

WRAPPED_BITS, WRAPPED_ABOVE_INTERCEPT = 12, -100.0
"""The RSNA 2019 fault: BitsStored 12, unsigned, and an intercept above -100 (FACTS 3)."""

MAX_FRAMES = 4096
"""Frames in one object above which its header is taken as damage."""

IMAGE_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesDescription",
    "ContrastBolusAgent",
    "BodyPartExamined",
    "ConvolutionKernel",
    "SliceThickness",
    "GantryDetectorTilt",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "FrameOfReferenceUID",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""What is read of a header; of a patient only what tells patients apart."""

NO_PIXELS = PixelFormat(0, 0, 1, "", 0, 0, 0, False)
"""Stands in the header of an object whose pixels are never read."""

IMAGE_TAGS = tuple(tag for keyword in IMAGE_KEYWORDS if (tag := tag_for_keyword(keyword)) is not None)


def read_headers(content: bytes, name: str) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in the bytes of a DICOM file called `name`, one a frame; None where it is no DICOM.

    Raises:
        CorruptInput: the structure contradicts itself, or what a volume needs cannot be read.
        UnsupportedInput: it cannot be parsed at all.
    """
    found = read_structure(content, name)
    return None if found is None else headers_of(found, name)


def headers_of(content: DicomContent, name: str) -> tuple[ImageHeader, ...]:
    """The headers of the images in a file whose structure was walked; as `read_headers`."""
    dataset = parse_dataset(content, name, IMAGE_TAGS)
    fields = HeaderFields(dataset, name)
    if fields.text("SOPClassUID") == "" and content.pixel_data is None and not fields.text("SOPInstanceUID"):
        return ()  # a DICOMDIR or another object that holds no image
    is_ct = fields.text("Modality").upper() == "CT" and content.pixel_data is not None
    pixels = _pixel_format(fields) if is_ct else NO_PIXELS  # what is no CT is set aside, whatever its pixels are
    image = _image_header(fields, content, pixels)
    groups = fields.sequence("PerFrameFunctionalGroupsSequence") if is_ct else []
    if not groups:
        return (image,)
    if len(groups) != pixels.n_frames:
        raise CorruptInput(
            f"{name}: {pixels.n_frames} frames but functional groups for {len(groups)}; the object is damaged; fetch "
            "it again"
        )
    shared = fields.sequence("SharedFunctionalGroupsSequence")
    return tuple(_frame_header(image, k, [*shared[:1], group], name) for k, group in enumerate(groups))


def _pixel_format(fields: HeaderFields) -> PixelFormat:
    bits_allocated = fields.needed("BitsAllocated")
    bits_stored = fields.needed("BitsStored", bits_allocated)
    pixels = PixelFormat(
        rows=fields.needed("Rows"),
        columns=fields.needed("Columns"),
        samples_per_pixel=fields.needed("SamplesPerPixel", 1),
        photometric_interpretation=fields.text("PhotometricInterpretation").upper() or "MONOCHROME2",
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=fields.needed("HighBit", bits_stored - 1),
        is_signed=fields.needed("PixelRepresentation", 0) == 1,
        n_frames=fields.count("NumberOfFrames") or 1,
    )
    if not (1 <= pixels.n_frames <= MAX_FRAMES and min(pixels.rows, pixels.columns) >= 1):
        raise CorruptInput(
            f"{fields.name}: {pixels.n_frames} frames of {pixels.rows} x {pixels.columns} pixels; expected 1 to "
            f"{MAX_FRAMES} frames of at least one pixel; the header is damaged"
        )
    return pixels


def _image_header(fields: HeaderFields, content: DicomContent, pixels: PixelFormat) -> ImageHeader:
    header = ImageHeader(
        file=fields.name,
        frame=None,
        sop_instance_uid=fields.text("SOPInstanceUID"),
        series_instance_uid=fields.text("SeriesInstanceUID"),
        study_instance_uid=fields.text("StudyInstanceUID"),
        patient_id=fields.text("PatientID"),
        modality=fields.text("Modality").upper(),
        sop_class_uid=fields.text("SOPClassUID"),
        image_type=fields.texts("ImageType"),
        series_number=fields.count("SeriesNumber"),
        acquisition_number=fields.count("AcquisitionNumber"),
        instance_number=fields.count("InstanceNumber"),
        series_description=fields.text("SeriesDescription"),
        body_part=fields.text("BodyPartExamined"),
        kernel="\\".join(fields.texts("ConvolutionKernel")),
        contrast=fields.text("ContrastBolusAgent"),
        transfer_syntax=content.transfer_syntax,
        pixels=pixels,
        has_pixel_data=content.pixel_data is not None,
        rescale=_rescale(fields, pixels),
        padding=_padding(fields, pixels),
        has_modality_lut=bool(fields.sequence("ModalityLUTSequence")),
        position_mm=None,
        row_direction=None,
        column_direction=None,
        pixel_spacing_mm=None,
        slice_thickness_mm=fields.number("SliceThickness"),
        gantry_tilt_degrees=fields.number("GantryDetectorTilt"),
        frame_of_reference_uid=fields.text("FrameOfReferenceUID"),
    )
    return _placed(header, fields.floats)


def _frame_header(image: ImageHeader, frame: int, groups: Sequence[Dataset], name: str) -> ImageHeader:
    """The header of one frame; what its own functional groups say comes after, and wins over, the shared ones."""
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
    return replace(
        _placed(image, floats),
        frame=frame,
        rescale=image.rescale if transform is None else _rescale(transform, image.pixels),
        image_type=image.image_type if frame_type is None else frame_type.texts("FrameType"),
        kernel="\\".join(next(filter(any, kernels), ())) or image.kernel,
        slice_thickness_mm=_first(floats("SliceThickness", 1), image.slice_thickness_mm),
    )


def _first(numbers: list[float] | None, otherwise: float | None) -> float | None:
    return numbers[0] if numbers else otherwise


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
"""Where the kernel is told; an object converted from single images has it among what found no other place."""
_GROUPS = (
    *dict.fromkeys(_GROUP_OF.values()),
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    *_KERNEL_GROUPS,
)


def _placed(header: ImageHeader, floats: Callable[[str, int], list[float] | None]) -> ImageHeader:
    """The header with position, directions and pixel spacing where all are sound, else with the fault."""
    position, cosines = floats("ImagePositionPatient", 3), floats("ImageOrientationPatient", 6)
    spacing = floats("PixelSpacing", 2)
    missing = [
        name
        for name, value in (("position", position), ("orientation", cosines), ("pixel spacing", spacing))
        if value is None
    ]
    if position is None or cosines is None or spacing is None:
        return replace(header, geometry_fault=f"no {', '.join(missing)} in the header")
    directions = np.array(cosines).reshape(2, 3)
    if fault := _geometry_fault(position, directions, spacing):
        return replace(header, geometry_fault=fault)
    row, column = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return replace(
        header,
        position_mm=np.array(position),
        row_direction=row,
        column_direction=column,
        pixel_spacing_mm=(spacing[0], spacing[1]),
    )


def _geometry_fault(position: list[float], directions: Float64[np.ndarray, "2 3"], spacing: list[float]) -> str:
    low, high = SPACING_RANGE_MM
    if max(map(abs, position)) > MAX_POSITION_MM:
        return f"a position of {max(map(abs, position)):.3g} mm from the origin"
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > UNIT_TOLERANCE or abs(directions[0] @ directions[1]) > UNIT_TOLERANCE:
        return "an orientation that is no pair of unit vectors at a right angle"
    if not all(low <= side <= high for side in spacing):
        return f"a pixel spacing of {spacing[0]:g} x {spacing[1]:g} mm"
    return ""


def _rescale(fields: HeaderFields, pixels: PixelFormat) -> Rescale:
    slope, intercept = fields.number("RescaleSlope"), fields.number("RescaleIntercept")
    is_stated = slope is not None and intercept is not None
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    is_unsigned_12 = pixels.bits_stored == WRAPPED_BITS and not pixels.is_signed
    return Rescale(slope, intercept, is_stated and is_unsigned_12 and intercept > WRAPPED_ABOVE_INTERCEPT, is_stated)


def _padding(fields: HeaderFields, pixels: PixelFormat) -> tuple[int, int] | None:
    """(least, greatest) padding value as the pixels' sign reads it; US and SS are mixed up in some files."""
    first = fields.count("PixelPaddingValue")
    if first is None:
        return None
    last = fields.count("PixelPaddingRangeLimit")
    bounds = [_as_signed(value, pixels) for value in (first, first if last is None else last)]
    return min(bounds), max(bounds)


def _as_signed(value: int, pixels: PixelFormat) -> int:
    turns = 1 << max(pixels.bits_allocated, 1)
    if pixels.is_signed and value >= turns // 2:
        return value - turns
    return value + turns if not pixels.is_signed and value < 0 else value
