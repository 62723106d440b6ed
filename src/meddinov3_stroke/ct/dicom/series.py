"""Images sorted into stacks, each stack ordered along its normal and given a verdict.

A stack is what may become one volume: images of one series that belong together (`grouping`). The order is that of
Image Position along the normal (DICOM PS3.3 C.7.6.2.1.1); Instance Number and file names play no part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydicom.config import IGNORE
from pydicom.uid import UID

from meddinov3_stroke.ct.dicom.codestreams import NATIVE_SYNTAXES
from meddinov3_stroke.ct.dicom.decoders import PLUGINS
from meddinov3_stroke.ct.dicom.grouping import MAX_PLANES, POSITION_TOLERANCE_MM, groups, passes, phase_of, same_plane
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.geometry import MAX_TILT_DEGREES

Verdict = Literal["usable", "set aside", "refused"]
"""Readable; not a volume of slices; a volume that cannot be trusted. The last two come with a reason."""

SamePixels = Callable[[ImageHeader, ImageHeader], bool]
"""Whether two images have the same stored pixels."""

CT_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2"))
"""SOP classes of CT, Enhanced CT and Legacy Converted Enhanced CT (DICOM PS3.4 B.5); the headers of RSNA 2019 name
none."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and the prefix of its multi-frame classes

LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"})
REPORT_TYPES = frozenset({"PATIENT_INFO", "DOSE_INFO", "RESULTS", "SCREEN SAVE", "SCREENSAVE", "DOSE", "REPORT"})
"""Image Type of a localizer (LOCALIZER in DICOM, C.8.2.1.1.1; the others are vendors' words), and of a picture of
text."""

HU_TYPES = re.compile(r"(?:H\W?U\W*|HOUNSFIELD\W*(?:UNITS?\W*)?(?:HU\W*)?|CT\W*(?:NUMBERS?)?)?", re.IGNORECASE)
"""Rescale Types of CT numbers; the others belong to spectral CT (PS3.3 C.11.1.1.2) or are unspecified (US)."""

SINGLE_IMAGE = "a single image"
"""Why a lone image is set aside; a caller that accepts single slices reads it anyway."""

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's patient axes to NIfTI's."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Images that belong together, inferior to superior where they are axial."""

    images: tuple[ImageHeader, ...]
    set_aside: tuple[tuple[ImageHeader, str], ...] = ()
    """Duplicates that were dropped from it, each with its reason."""
    verdict: Verdict = "usable"
    reason: str = ""
    """Why it is not usable; empty if it is."""
    number: int = 0
    """1-based among the stacks of its series: by phase and acquisition, then most images first; 0 if it is the only
    one."""

    @property
    def first(self) -> ImageHeader:
        """Its first image, for attributes that all images share."""
        return self.images[0]

    @property
    def series_instance_uid(self) -> str:
        """SeriesInstanceUID of its images; the lowest if those of several series were joined."""
        return min(image.series_instance_uid for image in self.images)

    @property
    def name(self) -> str:
        """What names it in `--series`: its UID, with `#2` for the second of several stacks."""
        return f"{self.series_instance_uid}#{self.number}" if self.number else self.series_instance_uid

    @property
    def kernel(self) -> str:
        """The kernel that its images state; some may state none."""
        return next(filter(None, (image.kernel for image in self.images)), "")

    @property
    def is_derived(self) -> bool:
        """Whether an image is derived from others (Image Type)."""
        return any("DERIVED" in image.image_type for image in self.images)

    @property
    def study_instance_uid(self) -> str:
        """StudyInstanceUID of its images."""
        return self.first.study_instance_uid

    @property
    def slice_positions_mm(self) -> Float64[np.ndarray, "slice 3"]:
        """RAS+ mm of the centre of the first stored voxel of each image; of placed images only."""
        return np.asarray(np.array([image.position_mm for image in self.images]) * LPS_TO_RAS)

    @property
    def distances_mm(self) -> Float64[np.ndarray, " slice"]:
        """Position of each image along the normal."""
        return np.asarray(np.array([image.position_mm for image in self.images]) @ self.first.normal)


def role_fault(image: ImageHeader) -> str:
    """Why the image is not a slice of a CT volume; empty if it is one."""
    pixels, sop_class = image.pixels, image.sop_class_uid
    is_grey = pixels.samples_per_pixel == 1 and pixels.photometric_interpretation in ("MONOCHROME1", "MONOCHROME2")
    faults = (
        (not image.has_pixel_data, "no image, a document or another object"),
        (image.modality != "CT", f"modality {image.modality or 'not stated'}, not CT"),
        (not is_grey, f"a colour picture ({pixels.photometric_interpretation})"),
        (sop_class.startswith(SECONDARY_CAPTURE), "a secondary capture"),
        (not LOCALIZER_TYPES.isdisjoint(image.image_type), "a localizer"),
        (not REPORT_TYPES.isdisjoint(image.image_type), "a picture of a report"),
        (sop_class and sop_class not in CT_IMAGES, f"SOP class {sop_class}, not CT"),
        (HU_TYPES.fullmatch(image.rescale_type) is None, f"Rescale Type {image.rescale_type[:16]}, not HU"),
        (pixels.n_frames > 1 and image.frame is None, "a multi-frame object that does not say where its frames lie"),
        (not image.is_placed, image.geometry_fault),
    )
    return next((fault for applies, fault in faults if applies), "")


def scaling_fault(stack: Stack) -> str:
    """Names the first image of a stack with an impossible slope or intercept; empty if there is none."""
    for image in stack.images:
        if not image.rescale.is_sane and not image.has_modality_lut:
            if fault := image.rescale.rescale_fault:
                return f"{image.file}: {fault}; expected a number; export the series again"
            found = f"Rescale Slope {image.rescale.slope:g} and Intercept {image.rescale.intercept:g}"
            return f"{image.file}: {found} are impossible for CT; the header is damaged; fetch it again"
    return ""


def distance_mm(image: ImageHeader, normal: Float64[np.ndarray, " 3"]) -> float:
    """Position of an image along a normal (LPS)."""
    return float(_position(image) @ normal)


def _position(image: ImageHeader) -> Float64[np.ndarray, " 3"]:
    assert image.position_mm is not None  # placed images only
    return image.position_mm


def assemble(
    headers: Iterable[ImageHeader], same_pixels: SamePixels | None = None, *, join_series: bool = False
) -> tuple[Stack, ...]:
    """Every image in exactly one stack; stacks ordered by series number, UID and size.

    `same_pixels` decides whether two images at one position are duplicates; without it they are not. With
    `join_series`, the slices of a study count as one series.
    """
    apart: dict[tuple[object, ...], list[ImageHeader]] = defaultdict(list)
    slices: list[ImageHeader] = []
    for image in headers:
        if fault := role_fault(image):
            kind = image.pixels.rows, image.pixels.columns, fault.partition("'")[0]  # whatever it quotes
            apart[(image.study_instance_uid, image.series_instance_uid, *kind)].append(image)
        else:
            slices.append(image)
    stacks: list[Stack] = []
    for images in groups(slices, join_series=join_series):
        planes, beyond = same_plane(sorted(images, key=_by_content))
        stacks += (stack for plane in planes for stack in _stacks_of(plane, same_pixels))
        if beyond:
            stacks.append(Stack(tuple(beyond), verdict="refused", reason=f"more than {MAX_PLANES} orientations"))
    aside = [Stack(tuple(some), verdict="set aside", reason=role_fault(some[0])) for some in apart.values()]
    return tuple(sorted([*_numbered(stacks), *aside], key=_by_number))


def _numbered(stacks: Iterable[Stack]) -> Iterator[Stack]:
    of_series: dict[str, list[Stack]] = defaultdict(list)
    for stack in stacks:
        of_series[stack.series_instance_uid].append(stack)
    for some in of_series.values():
        in_order = sorted(some, key=lambda one: (phase_of(one.first), -len(one.images), _by_content(one.first)))
        yield from (replace(one, number=k) for k, one in enumerate(in_order, 1 if len(some) > 1 else 0))


def _by_number(stack: Stack) -> tuple[object, ...]:
    number = stack.first.series_number
    return (number is None, number or 0, stack.series_instance_uid, -len(stack.images), stack.reason, stack.number)


def _by_content(image: ImageHeader) -> tuple[object, ...]:
    # depends on file names only among copies of one image
    return (*_position(image).tolist(), image.sop_instance_uid, image.frame or 0, image.file)


def _stacks_of(images: list[ImageHeader], same_pixels: SamePixels | None) -> list[Stack]:
    """One stack; or one for each pass over the head, if there are several."""
    stack = _stack(images, same_pixels)
    found = passes(images, is_refused=stack.verdict == "refused")
    return [stack] if len(found) == 1 else [one for images in found for one in _stacks_of(images, same_pixels)]


def _stack(images: list[ImageHeader], same_pixels: SamePixels | None) -> Stack:
    for syntax in (image.transfer_syntax for image in images):
        if syntax not in NATIVE_SYNTAXES and syntax not in PLUGINS:
            fault = f"transfer syntax {syntax} ({UID(syntax, IGNORE).name}) is not supported"
            return Stack(tuple(images), (), "refused", f"{fault}; export the series uncompressed")
    normal = images[0].normal
    upward = normal if normal[2] >= 0 else -normal
    kept: list[ImageHeader] = []
    dropped: list[tuple[ImageHeader, str]] = []
    clashes: list[tuple[ImageHeader, ImageHeader]] = []
    for image in sorted(images, key=lambda image: (distance_mm(image, upward), image.sop_instance_uid, image.file)):
        twin = kept[-1] if kept else None
        if twin is None or abs(distance_mm(image, normal) - distance_mm(twin, normal)) > POSITION_TOLERANCE_MM:
            kept.append(image)
            continue
        is_same_place = np.abs(_position(image) - _position(twin)).max() <= POSITION_TOLERANCE_MM
        if is_same_place and same_pixels is not None and same_pixels(image, twin):
            dropped.append((image, f"a copy of {twin.file}: same position, same pixels"))
        else:
            clashes.append((twin, image))
    if clashes:
        kept = sorted([*kept, *(image for _, image in clashes)], key=lambda image: distance_mm(image, upward))
        times = "once" if len(clashes) == 1 else f"{len(clashes)} times"
        found = (
            f"({times}; first: {clashes[0][0].file} and {clashes[0][1].file}); no phase or acquisition separates them"
        )
        fault = f"different images at one position {found}; list the files of one volume in a .txt and read that"
        return Stack(tuple(kept), tuple(dropped), "refused", fault)
    if fault := _shared_uid(kept):
        return Stack(tuple(kept), tuple(dropped), "refused", fault)
    fault = _plane_fault(kept, normal)
    return Stack(tuple(kept), tuple(dropped), "set aside" if fault else "usable", fault)


def _shared_uid(images: Sequence[ImageHeader]) -> str:
    bearers: dict[tuple[str, int | None], str] = {}
    for image in images:
        other = bearers.setdefault((image.sop_instance_uid, image.frame), image.file)
        if other != image.file and image.sop_instance_uid:
            return f"different images have the same SOP Instance UID (first: {other} and {image.file})"
    return ""


def _plane_fault(images: Sequence[ImageHeader], normal: Float64[np.ndarray, " 3"]) -> str:
    if len(images) == 1:
        return SINGLE_IMAGE
    step = _position(images[-1]) - _position(images[0])
    angle = np.degrees(np.arccos(min(abs(normal[2]), abs(step[2]) / np.linalg.norm(step), 1.0)))
    is_axial = angle <= MAX_TILT_DEGREES
    return "" if is_axial else f"slices are {angle:.0f} degrees off axial; at most {MAX_TILT_DEGREES:g} are accepted"
