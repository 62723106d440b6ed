"""What an input holds, by its headers: its images in stacks, the files without images, and the damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.dicom.codestreams import NATIVE_SYNTAXES, require_stated_kind
from meddinov3_stroke.ct.dicom.container import DicomContent, begins_as_dicom, parse_dataset, read_structure
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import HeaderFields, ImageHeader, PixelFormat, padding_of, rescale_of
from meddinov3_stroke.ct.dicom.pixels import decode_frame, require_length
from meddinov3_stroke.ct.dicom.series import CT_IMAGES, LOCALIZER_TYPES, REPORT_TYPES, Stack, assemble, role_fault
from meddinov3_stroke.ct.geometry import SPACING_RANGE_MM
from meddinov3_stroke.errors import CorruptInput, InputError, MachineError
from meddinov3_stroke.system.progress import read_ahead

HEAD_BYTES = 1 << 14
"""Bytes read of a file first; RSNA's headers have about 1 KiB, those of a scanner rarely more than 8."""

KEEP_BYTES, FILES_AHEAD = 1 << 29, 2
"""Most bytes of files that are kept between header and pixels, and files read ahead of the one that is parsed."""

UNIT_TOLERANCE, MAX_POSITION_MM = 1e-3, 1e5
"""How far direction cosines may be from unit length and a right angle (DS holds 16 characters), and an image from the
origin."""

MAX_FRAMES = 4096
"""A header that declares more frames is damaged."""

_SHARED_GROUPS, _FRAME_GROUPS = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_TRANSFORM, _FRAME_TYPE = "PixelValueTransformationSequence", "CTImageFrameTypeSequence"
_CONTENT = "FrameContentSequence"
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

_KEYWORDS = (
    *(one.metadata["keyword"] for one in fields(ImageHeader) if one.metadata),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "PixelPaddingRangeLimit"),
    *("SpecificCharacterSet", "TemporalPositionIdentifier", _SHARED_GROUPS, _FRAME_GROUPS),
)
_TAGS = tuple(tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None)
_ReadHeaders = Callable[[], tuple[ImageHeader, ...] | None]


@dataclass(eq=False)
class KeptFiles:
    """Files that were read whole: the digest of each, and its walked content while `KEEP_BYTES` suffice."""

    digests: dict[str, str] = field(default_factory=dict)
    """Hex sha256 by file name."""
    contents: dict[str, DicomContent] = field(default_factory=dict)
    n_bytes: int = 0
    """Of all files added."""

    def add(self, name: str, digest: str, content: DicomContent) -> None:
        """Record a file."""
        self.digests[name] = digest
        self.n_bytes += len(content.content)
        if self.n_bytes <= KEEP_BYTES:
            self.contents[name] = content


@dataclass(frozen=True, eq=False)
class DamagedFile:
    """A file that cannot be read, and what its first bytes still say."""

    name: str
    error: InputError
    header: ImageHeader | None = None
    """Without pixels; None if nothing can be read."""

    @property
    def series_instance_uid(self) -> str:
        """The series it states; empty if unknown."""
        return self.header.series_instance_uid if self.header else ""

    @property
    def is_slice(self) -> bool:
        """False if it states to be a localizer or a picture of text."""
        return self.header is None or (LOCALIZER_TYPES | REPORT_TYPES).isdisjoint(self.header.image_type)


@dataclass(frozen=True, eq=False)
class Survey:
    """Every file of an input, exactly once: in a stack, without images, or damaged."""

    files: dict[str, InputFile]
    stacks: tuple[Stack, ...]
    without_images: tuple[tuple[str, str], ...]
    """(file, what it is): not DICOM, or DICOM without an image."""
    damaged: tuple[DamagedFile, ...]


def survey(files: Sequence[InputFile], keep: KeptFiles | None = None, *, join_series: bool = False) -> Survey:
    """What the files hold; pixels are read only if two images share a position. May raise `MachineError`.

    With `keep`, files are read whole, once, into it, provided that all together fit into `KEEP_BYTES`.
    """
    images: list[ImageHeader] = []
    without: list[tuple[str, str]] = []
    damaged: list[DamagedFile] = []
    for file, read in _readers(files, keep):
        try:
            headers = read()
        except InputError as error:
            damaged.append(DamagedFile(file.name, error, _rest_of(file)))
        else:
            images += headers or ()
            if not headers:
                without.append((file.name, "not DICOM" if headers is None else "DICOM without an image"))
    by_name = {file.name: file for file in files}
    is_copy = partial(same_pixels, by_name, {} if keep is None else keep.contents)
    stacks = assemble(images, is_copy, join_series=join_series)
    return Survey(by_name, stacks, tuple(without), tuple(damaged))


def _rest_of(file: InputFile) -> ImageHeader | None:
    """The header of a damaged file as far as it can be read from its head, pixels left aside."""
    with suppress(InputError, MachineError, IndexError):
        return headers_of(DicomContent("", file.head(HEAD_BYTES), None), file.name)[0]
    return None


def _readers(files: Sequence[InputFile], keep: KeptFiles | None) -> Iterator[tuple[InputFile, _ReadHeaders]]:
    if keep is None or sum(file.n_bytes for file in files) > KEEP_BYTES:
        yield from ((file, partial(read_file_headers, file)) for file in files)
        return
    with closing(read_ahead(map(_read_and_hash, files), FILES_AHEAD)) as read:
        yield from ((file, partial(_read_whole, file, content, digest, keep)) for file, content, digest in read)


def _read_and_hash(file: InputFile) -> tuple[InputFile, bytes | InputError | None, str]:
    """(the file, its bytes, None if it is not DICOM or why it cannot be read, hex sha256)."""
    try:
        content = file.read_if(begins_as_dicom, HEAD_BYTES)
    except InputError as error:
        return file, error, ""
    return file, content, "" if content is None else sha256(content).hexdigest()


def _read_whole(
    file: InputFile, content: bytes | InputError | None, digest: str, keep: KeptFiles
) -> tuple[ImageHeader, ...] | None:
    if isinstance(content, InputError):
        raise content
    found = None if content is None else read_structure(content, file.name)
    if found is None:
        return None
    headers = _checked_headers(found, file.name)
    keep.add(file.name, digest, found)
    return headers


def read_file_headers(file: InputFile) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in a file, one per frame; None if it is not DICOM.

    Of a native image longer than `HEAD_BYTES` only the head is read, and walked with zeros in place of the rest: the
    walk skips native pixels by their length. If it would meet the zeros (a longer header, compressed pixels, elements
    after the pixels), the whole file is read.

    Raises:
        InputError, MachineError: as `InputFile.read`, damaged, or native pixel data of another length than declared.
    """
    # a head that is too short has shrunk, as `read` says
    if file.n_bytes > HEAD_BYTES and len(head := file.head(HEAD_BYTES)) == HEAD_BYTES:
        if not begins_as_dicom(head):
            return None
        file.require_readable_size()
        with suppress(CorruptInput):
            found = read_structure(head + bytes(file.n_bytes - len(head)), file.name)
            if found is not None and _ends_with_pixels(found, file.n_bytes):
                return _checked_headers(found, file.name)
    found = read_structure(file.read(), file.name)
    return None if found is None else _checked_headers(found, file.name)


def _ends_with_pixels(found: DicomContent, n_bytes: int) -> bool:
    pixels = found.pixel_data
    if pixels is None or pixels.length is None or pixels.offset > HEAD_BYTES:
        return False
    return pixels.offset + pixels.length == n_bytes == len(found.content)


def _checked_headers(content: DicomContent, name: str) -> tuple[ImageHeader, ...]:
    headers = headers_of(content, name)
    if content.pixel_data is None and any(one.modality == "CT" and one.sop_class_uid in CT_IMAGES for one in headers):
        raise CorruptInput(f"{name} is a CT image without pixel data; it is incomplete; fetch it again")
    is_slice = any(not role_fault(header) for header in headers)  # other images are never decoded
    if is_slice and content.pixel_data is not None:
        require_stated_kind(content, content.pixel_data, name)
        if content.transfer_syntax in NATIVE_SYNTAXES:
            require_length(content, content.pixel_data, headers[0].pixels, name)
    return headers


def same_pixels(
    files: Mapping[str, InputFile], kept: Mapping[str, DicomContent], first: ImageHeader, second: ImageHeader
) -> bool:
    """Whether two images have the same stored pixels and HU scaling; False if one cannot be decoded."""
    if (first.pixels, first.rescale, first.padding) != (second.pixels, second.rescale, second.padding):
        return False
    try:
        contents = [kept.get(image.file) or walked(files[image.file])[0] for image in (first, second)]
        if first.frame == second.frame and contents[0].content == contents[1].content:
            return True
        frames = [
            decode_frame(content, image.pixels, image.frame or 0, image.file)
            for content, image in zip(contents, (first, second), strict=True)
        ]
    except InputError:
        return False
    return frames[0].tobytes() == frames[1].tobytes()


def walked(file: InputFile) -> tuple[DicomContent, str]:
    """(the walked content of a file whose header was read before, hex sha256 of its bytes); errors as `InputFile.read`,
    and `CorruptInput` if it is not DICOM any more."""
    content = file.read()
    if (found := read_structure(content, file.name)) is None:
        raise CorruptInput(f"{file.name} changed while it was read; read it again")
    return found, sha256(content).hexdigest()


def headers_of(content: DicomContent, name: str) -> tuple[ImageHeader, ...]:
    """The headers of the images in a walked file, one per frame."""
    found = HeaderFields(parse_dataset(content, name, _TAGS), name)
    if content.pixel_data is None and not found.text("SOPClassUID") and not found.text("SOPInstanceUID"):
        return ()  # a DICOMDIR or another object without an image
    is_ct = found.text("Modality").upper() == "CT" and content.pixel_data is not None
    # other objects are set aside whatever their pixels are
    pixels = _pixel_format(found) if is_ct else PixelFormat(0, 0, 1, "", 0, 0, 0, is_signed=False)
    declared = {one.name: one.metadata for one in fields(ImageHeader) if "read" in one.metadata}
    rescale, place = rescale_of(found, pixels), _place(lambda _: found)
    image = ImageHeader(
        file=name,
        frame=None,
        **{field_name: how["read"](found, how["keyword"]) for field_name, how in declared.items()},
        transfer_syntax=content.transfer_syntax,
        pixels=pixels,
        has_pixel_data=content.pixel_data is not None,
        rescale=rescale,
        padding=padding_of(found, pixels),
        numbers_as_text=tuple(found.as_text),
        **place,
    )
    groups = found.sequence(_FRAME_GROUPS) if is_ct else []
    if not groups:
        return (image,)
    if len(groups) != pixels.n_frames:
        fault = f"{pixels.n_frames} frames but functional groups for {len(groups)}"
        raise CorruptInput(f"{name}: {fault}; the object is damaged; fetch it again")
    shared = found.sequence(_SHARED_GROUPS)
    return tuple(_frame_header(image, k, [*shared[:1], group], name) for k, group in enumerate(groups))


def _pixel_format(found: HeaderFields) -> PixelFormat:
    n_frames, rows, columns = found.count("NumberOfFrames") or 1, found.needed("Rows"), found.needed("Columns")
    if not (1 <= n_frames <= MAX_FRAMES and min(rows, columns) >= 1):
        sides = f"{n_frames} frames of {rows} x {columns} pixels"
        expected = f"expected 1 to {MAX_FRAMES} frames of at least one pixel"
        raise CorruptInput(f"{found.name}: {sides}; {expected}; the header is damaged; fetch it again")
    samples, grey = found.needed("SamplesPerPixel", 1), found.upper("PhotometricInterpretation") or "MONOCHROME2"
    allocated = found.needed("BitsAllocated")
    stored = found.needed("BitsStored", allocated)
    high_bit, is_signed = found.needed("HighBit", stored - 1), found.needed("PixelRepresentation", 0) == 1
    return PixelFormat(rows, columns, samples, grey, allocated, stored, high_bit, is_signed, n_frames)


def _frame_header(image: ImageHeader, frame: int, groups: Sequence[Dataset], name: str) -> ImageHeader:
    found: dict[str, HeaderFields] = {}
    for group in groups:
        for keyword in (*_GROUP_OF.values(), _TRANSFORM, _FRAME_TYPE, _CONTENT, *_KERNEL_GROUPS):
            if items := HeaderFields(group, name).sequence(keyword):
                found[keyword] = HeaderFields(items[0], name)

    def holder(keyword: str) -> HeaderFields:
        return found.get(keyword, empty)

    empty = HeaderFields(Dataset(), name)
    transform, frame_type = found.get(_TRANSFORM), found.get(_FRAME_TYPE)
    kernels = [found[group].texts("ConvolutionKernel") for group in _KERNEL_GROUPS if group in found]
    place = _place(lambda keyword: holder(_GROUP_OF[keyword]))
    thickness, content = holder(_GROUP_OF["SliceThickness"]).number("SliceThickness"), holder(_CONTENT)
    return replace(
        image,
        frame=frame,
        instance_number=None,  # the object's
        frame_acquisition_number=content.count("FrameAcquisitionNumber"),
        temporal_position=content.temporal_position("TemporalPositionIndex"),
        rescale=image.rescale if transform is None else rescale_of(transform, image.pixels),
        rescale_type=image.rescale_type if transform is None else transform.upper("RescaleType"),
        image_type=image.image_type if frame_type is None else frame_type.texts("FrameType"),
        kernel="\\".join(next(filter(any, kernels), ())) or image.kernel,
        slice_thickness_mm=image.slice_thickness_mm if thickness is None else thickness,
        numbers_as_text=(*image.numbers_as_text, *(text for one in found.values() for text in one.as_text)),
        **place,
    )


def _place(holder: Callable[[str], HeaderFields]) -> dict[str, Any]:
    """Position, orientation and pixel spacing as fields of a header; `holder` has the attribute of a keyword."""
    wanted = {
        "position": "ImagePositionPatient",
        "orientation": "ImageOrientationPatient",
        "pixel spacing": "PixelSpacing",
    }
    position, cosines, spacing = (holder(key).floats(key, n) for key, n in zip(wanted.values(), (3, 6, 2), strict=True))
    names = "position_mm", "row_direction", "column_direction", "pixel_spacing_mm", "geometry_fault"
    if position is None or cosines is None or spacing is None:
        values = zip(wanted.items(), (position, cosines, spacing), strict=True)
        texts = {name: holder(key).unreadable(key) for (name, key), value in values if value is None}
        missing = ", ".join(name for name, text in texts.items() if not text)
        faults = [f"no {missing} in the header"] if missing else []
        faults += [f"{name} is {text}, which cannot be read" for name, text in texts.items() if text]
        return dict.fromkeys(names) | {"geometry_fault": "; ".join(faults)}
    directions = np.array(cosines).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    furthest, (low, high) = max(map(abs, position)), SPACING_RANGE_MM
    fault = ""
    if furthest > MAX_POSITION_MM:
        fault = f"a position of {furthest:.3g} mm from the origin"
    elif np.abs(lengths - 1).max() > UNIT_TOLERANCE or abs(directions[0] @ directions[1]) > UNIT_TOLERANCE:
        fault = "an orientation that is not a pair of perpendicular unit vectors"
    elif not all(low <= side <= high for side in spacing):
        fault = f"a pixel spacing of {spacing[0]:g} x {spacing[1]:g} mm"
    if fault:
        return dict.fromkeys(names) | {"geometry_fault": fault}
    row, column = directions / lengths
    return dict(zip(names, (np.array(position), row, column, tuple(spacing), ""), strict=True))
