"""Images put into the stacks they belong to, each in the order of its slices along the normal, with a verdict.

A stack is what may become one volume: one SeriesInstanceUID, size, pixel spacing, orientation and kernel. Order is by
Image Position along the normal alone (DICOM PS3.3 C.7.6.2.1.1); Instance Number and file names decide nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydicom.config import IGNORE
from pydicom.uid import UID

from meddinov3_stroke.ct.dicom.codecs import CODEC_SYNTAXES
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.pixels import NATIVE_SYNTAXES
from meddinov3_stroke.ct.dicom.roles import role_fault
from meddinov3_stroke.ct.geometry import MAX_TILT_DEGREES

Verdict = Literal["usable", "set aside", "refused"]
"""May be read; is no volume of slices (named why); is one, but cannot be trusted (named why)."""

SamePixels = Callable[[ImageHeader, ImageHeader], bool]
"""Whether two images hold the same stored pixels."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines up to which two images have one orientation (0.06 degrees)."""

SPACING_TOLERANCE_MM = 1e-4
"""Difference of pixel spacings up to which they are the same."""

MAX_PLANES = 64
"""Orientations in one series above which its other images are refused; a reformat in every direction has a few."""

_PLANE_TOLERANCES = np.repeat([DIRECTION_TOLERANCE, SPACING_TOLERANCE_MM], [6, 2])

POSITION_TOLERANCE_MM = 0.01
"""Images closer than this along the normal are at one position; the thinnest CT reconstructions are 0.1 mm apart."""

SINGLE_IMAGE = "a single image"
"""Why one image alone is set aside; a caller that takes single slices takes it all the same."""

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's patient axes to NIfTI's."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Images that belong together, inferior to superior where they are axial."""

    images: tuple[ImageHeader, ...]
    set_aside: tuple[tuple[ImageHeader, str], ...] = ()
    """Images that were dropped from it, each with its reason: duplicates."""
    verdict: Verdict = "usable"
    reason: str = ""
    """Why it is not usable."""

    @property
    def first(self) -> ImageHeader:
        """Its first image, which stands for what all have in common."""
        return self.images[0]

    @property
    def series_instance_uid(self) -> str:
        """The series it is of."""
        return self.first.series_instance_uid

    @property
    def study_instance_uid(self) -> str:
        """The study it is of."""
        return self.first.study_instance_uid

    @property
    def slice_positions_mm(self) -> Float64[np.ndarray, "slice 3"]:
        """RAS+ mm of the centre of the first stored voxel of each image; of placed images only."""
        return np.asarray(np.array([image.position_mm for image in self.images]) * LPS_TO_RAS)

    @property
    def distances_mm(self) -> Float64[np.ndarray, " slice"]:
        """Position of each image along the normal."""
        return np.asarray(np.array([image.position_mm for image in self.images]) @ self.first.normal)


def distance_mm(image: ImageHeader, normal: Float64[np.ndarray, " 3"]) -> float:
    """Where an image lies along a normal (LPS)."""
    assert image.position_mm is not None  # placed images only
    return float(image.position_mm @ normal)


def assemble(headers: Iterable[ImageHeader], same_pixels: SamePixels | None = None) -> tuple[Stack, ...]:
    """Every image in exactly one stack; stacks in the order of series number, UID and size.

    `same_pixels` decides whether two images of different UIDs at one position are copies; without it they are not.
    """
    apart: dict[tuple[str, str, int, int, str], list[ImageHeader]] = defaultdict(list)
    groups: dict[tuple[object, ...], list[ImageHeader]] = defaultdict(list)
    for image in headers:
        fault = role_fault(image)
        if fault:
            size = (image.pixels.rows, image.pixels.columns)
            apart[image.study_instance_uid, image.series_instance_uid, *size, fault].append(image)
        else:
            groups[_group_of(image)].append(image)
    stacks = [Stack(tuple(images), verdict="set aside", reason=key[-1]) for key, images in apart.items()]
    for images in groups.values():
        planes, beyond = _same_plane(sorted(images, key=_by_content))
        stacks += [stack for plane in planes for stack in _stacks_of(plane, same_pixels)]
        if beyond:
            stacks.append(Stack(tuple(beyond), verdict="refused", reason=f"more than {MAX_PLANES} orientations"))
    return tuple(sorted(stacks, key=_place))


def _place(stack: Stack) -> tuple[object, ...]:
    number = stack.first.series_number
    return (number is None, number or 0, stack.series_instance_uid, -len(stack.images), stack.reason)


def _group_of(image: ImageHeader) -> tuple[object, ...]:
    """What the images of one stack have in common: whose they are, what they show and how, and in which space."""
    return (
        image.patient_id,
        image.study_instance_uid,
        image.series_instance_uid,
        image.frame_of_reference_uid,
        (image.pixels.rows, image.pixels.columns),
        image.kernel,
        image.contrast,
        "DERIVED" in image.image_type,
    )


def _by_content(image: ImageHeader) -> tuple[object, ...]:
    """An order that file names and the order of files leave alone, but among copies of one image."""
    assert image.position_mm is not None  # placed images only
    return (*image.position_mm.tolist(), image.sop_instance_uid, image.frame or 0, image.file)


def _same_plane(images: Sequence[ImageHeader]) -> tuple[list[list[ImageHeader]], list[ImageHeader]]:
    """The images by orientation and pixel spacing, each within tolerance of the first of its group, and those that
    would be of one group too many."""
    planes: list[list[ImageHeader]] = []
    beyond: list[ImageHeader] = []
    firsts = np.empty((MAX_PLANES, 8))
    for image in images:
        plane = np.concatenate([image.directions.ravel(), np.array(image.pixel_spacing_mm)])
        alike = (np.abs(firsts[: len(planes)] - plane) <= _PLANE_TOLERANCES).all(axis=1)
        if alike.any():
            planes[int(alike.argmax())].append(image)
        elif len(planes) < MAX_PLANES:
            firsts[len(planes)] = plane
            planes.append([image])
        else:
            beyond.append(image)
    return planes, beyond


def _stacks_of(images: list[ImageHeader], same_pixels: SamePixels | None) -> list[Stack]:
    """One stack, or one for each acquisition where different images lie at one position."""
    stack = _stack(images, same_pixels)
    if stack.verdict != "refused":
        return [stack]
    acquisitions: dict[int | None, list[ImageHeader]] = defaultdict(list)
    for image in images:
        acquisitions[image.acquisition_number].append(image)
    if len(acquisitions) == 1:
        return [stack]
    return [_stack(one, same_pixels) for one in acquisitions.values()]


def _stack(images: list[ImageHeader], same_pixels: SamePixels | None) -> Stack:
    if fault := _codec_fault(images):
        return Stack(tuple(images), (), "refused", fault)
    normal = images[0].normal
    upward = 1.0 if normal[2] >= 0 else -1.0
    ordered = sorted(
        images, key=lambda image: (upward * distance_mm(image, normal), image.sop_instance_uid, image.file)
    )
    kept, dropped, clashes = _without_duplicates(ordered, normal, same_pixels)
    if clashes:
        copies = {id(image) for image, _ in dropped}
        all_but_copies = tuple(image for image in ordered if id(image) not in copies)
        return Stack(all_but_copies, tuple(dropped), "refused", _clash_text(clashes))
    if fault := _shared_uid(kept):
        return Stack(tuple(kept), tuple(dropped), "refused", fault)
    if fault := _plane_fault(kept, normal):
        return Stack(tuple(kept), tuple(dropped), "set aside", fault)
    return Stack(tuple(kept), tuple(dropped))


def _shared_uid(images: Sequence[ImageHeader]) -> str:
    """Which different images bear one SOP Instance UID, so that a finding could not be pointed back; or nothing."""
    bearers: dict[tuple[str, int | None], str] = {}
    for image in images:
        other = bearers.setdefault((image.sop_instance_uid, image.frame), image.file)
        if other != image.file and image.sop_instance_uid:
            return f"different images bear one SOP Instance UID ({other} and {image.file} the first)"
    return ""


def _codec_fault(images: Sequence[ImageHeader]) -> str:
    """Which transfer syntax has no decoder here, or nothing."""
    for image in images:
        if image.transfer_syntax not in NATIVE_SYNTAXES | CODEC_SYNTAXES:
            uid = UID(image.transfer_syntax, IGNORE)
            return f"transfer syntax {uid} ({uid.name}) is not read here; export the series uncompressed"
    return ""


def _without_duplicates(
    ordered: Sequence[ImageHeader], normal: Float64[np.ndarray, " 3"], same_pixels: SamePixels | None
) -> tuple[list[ImageHeader], list[tuple[ImageHeader, str]], list[tuple[ImageHeader, ImageHeader]]]:
    """(images kept, copies dropped with the reason, different images at one position)."""
    kept: list[ImageHeader] = []
    dropped: list[tuple[ImageHeader, str]] = []
    clashes: list[tuple[ImageHeader, ImageHeader]] = []
    for image in ordered:
        twin = kept[-1] if kept else None
        if twin is None or abs(distance_mm(image, normal) - distance_mm(twin, normal)) > POSITION_TOLERANCE_MM:
            kept.append(image)
        elif _is_same_place(image, twin) and same_pixels is not None and same_pixels(image, twin):
            dropped.append((image, f"a copy of {twin.file}: same position, same pixels"))
        else:
            clashes.append((twin, image))
    return kept, dropped, clashes


def _is_same_place(first: ImageHeader, second: ImageHeader) -> bool:
    assert first.position_mm is not None  # placed images only
    assert second.position_mm is not None
    return bool(np.abs(first.position_mm - second.position_mm).max() <= POSITION_TOLERANCE_MM)


def _clash_text(clashes: Sequence[tuple[ImageHeader, ImageHeader]]) -> str:
    first, second = clashes[0]
    times = "once" if len(clashes) == 1 else f"{len(clashes)} times"
    return (
        f"different images at one position ({times}; {first.file} and {second.file} the first), and no "
        "acquisition number that parts them"
    )


def _plane_fault(images: Sequence[ImageHeader], normal: Float64[np.ndarray, " 3"]) -> str:
    """Why these images are no axial stack, or nothing."""
    if len(images) == 1:
        return SINGLE_IMAGE
    first, last = images[0].position_mm, images[-1].position_mm
    assert first is not None  # placed images only
    assert last is not None
    step = last - first
    angle = np.degrees(np.arccos(min(abs(normal[2]), abs(step[2]) / np.linalg.norm(step), 1.0)))
    if angle > MAX_TILT_DEGREES:
        return f"slices stand {angle:.0f} degrees off axial; at most {MAX_TILT_DEGREES:g} are taken"
    return ""
