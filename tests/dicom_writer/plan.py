"""Which images a series has, where each lies, what each stores and which of them a reader should use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Real

from dicom_writer.geometry import Plane, SliceGeometry, coronal_planes, nearest_hu
from dicom_writer.options import DicomOptions
from dicom_writer.pixels import StoredPixels, store_pixels

Role = Literal["used", "duplicate", "set aside"]
"""What a reader should do with an image; of two alike, either may be the one used."""


@dataclass(frozen=True)
class Identity:
    """The identifiers of a series."""

    patient_id: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    """Shared by the series of a study."""


@dataclass(frozen=True, eq=False)
class PlannedImage:
    """One image to be written: a file of its own, or a frame."""

    file: str
    """Name without the extension; unused in a multi-frame layout."""
    sop_instance_uid: str
    instance_number: int | None
    slice_index: int | None
    """Of the voxels given; None for an image that is none of them."""
    plane: Plane
    pixels: StoredPixels
    role: Role
    faults: tuple[str, ...]


def identity_of(options: DicomOptions) -> Identity:
    """The identifiers of a series, all drawn from its seeds."""
    study_seed = options.seed if options.study_seed is None else options.study_seed
    return Identity(
        patient_id=options.patient_id or f"PH_{_digest(study_seed, 'patient')[:10]}",
        study_uid=unique_uid(options, study_seed, "study"),
        series_uid=unique_uid(options, options.seed, "series", str(options.series_number)),
        frame_of_reference_uid=unique_uid(options, study_seed, "frame of reference"),
    )


def unique_uid(options: DicomOptions, seed: int, *words: str) -> str:
    """A UID that the same seed and words always give: of DICOM's form, or of RSNA's where headers are stripped."""
    digest = _digest(seed, *words)
    return f"ID_{digest[:10]}" if options.header == "stripped" else f"2.25.{int(digest, 16)}"


def plan_images(
    hu: Real[np.ndarray, "slice row col"], geometry: SliceGeometry, options: DicomOptions
) -> tuple[PlannedImage, ...]:
    """The images of a series in the order of their slices, duplicates after the slice they repeat."""
    images: list[PlannedImage] = []
    for index in range(len(hu)):
        if index in options.missing_slices:
            continue
        image = _planned(hu[index], geometry.plane(index), options, index, f"slice {index}")
        images.append(image)
        if index in options.copied_slices and options.layout == "single":
            images.append(replace(image, role="duplicate", faults=("copied file",)))
        if index in options.repeated_slices:
            uid = unique_uid(options, options.seed, f"slice {index} again")
            images.append(replace(image, sop_instance_uid=uid, role="duplicate", faults=("repeated slice",)))
    images.extend(_coronal(hu, geometry, options))
    return _named(images, options)


def _planned(
    hu: Real[np.ndarray, "row col"], plane: Plane, options: DicomOptions, index: int | None, what: str
) -> PlannedImage:
    pixels = store_pixels(hu, options, 0 if index is None else index + 1)
    faults = ("wrapped values",) if options.pixels == "wrapped12" else ()
    sop_instance_uid = unique_uid(options, options.seed, str(options.series_number), what)
    return PlannedImage("", sop_instance_uid, None, index, plane, pixels, "used", faults)


def _coronal(
    hu: Real[np.ndarray, "slice row col"], geometry: SliceGeometry, options: DicomOptions
) -> list[PlannedImage]:
    images = []
    for number, plane in enumerate(coronal_planes(geometry, options.n_coronal)):
        reformatted = nearest_hu(hu, geometry, plane.voxel_positions_mm)
        image = _planned(reformatted, plane, options, None, f"coronal {number}")
        images.append(replace(image, role="set aside", faults=("another orientation",)))
    return images


def _named(images: list[PlannedImage], options: DicomOptions) -> tuple[PlannedImage, ...]:
    """The images with file names and instance numbers."""
    order = np.random.default_rng([options.seed, 12]).permutation(len(images)) + 1
    named = []
    for position, image in enumerate(images):
        number = {"ordered": position + 1, "shuffled": int(order[position]), "constant": 1, "absent": None}
        if options.names == "sop_uid":
            file = image.sop_instance_uid + ("_copy" if image.faults == ("copied file",) else "")
        elif options.names == "shuffled":
            file = _digest(options.seed, "file", str(position))[:8].upper()
        else:
            file = f"IM{position + 1:04d}"
        named.append(replace(image, file=file, instance_number=number[options.instance_numbers]))
    return tuple(named)


def _digest(seed: int, *words: str) -> str:
    text = "\0".join(("phantom DICOM", str(seed), *words))
    return hashlib.blake2s(text.encode(), digest_size=16).hexdigest()
