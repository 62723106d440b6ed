"""Writes a DICOM series and returns the truth: what a reader should find in each of its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Real

from dicom_writer.geometry import Plane, SliceGeometry, geometry_of_affine
from dicom_writer.options import LOSSY_TOLERANCE_HU, DicomOptions
from dicom_writer.plan import Identity, PlannedImage, Role, identity_of, plan_images, unique_uid
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom import Phantom
from meddinov3_stroke.system.atomic import write_bytes

LEAST_JPEG_2000_PIXELS = 32
"""Rows and columns below which the encoder's six resolutions do not fit."""

if TYPE_CHECKING:
    from dicom_writer.companions import CompanionFile


@dataclass(frozen=True, eq=False)
class DicomImageTruth:
    """What is known about one image that was written."""

    file: str
    """Name within the folder."""
    sop_instance_uid: str
    """Empty if the file is not DICOM."""
    frame_number: int | None
    """1-based, in a multi-frame object; None if the file is the image."""
    slice_index: int | None
    """Index in the voxels given; None if it shows none of their slices."""
    plane: Plane | None
    """None if it has no position."""
    hu: Float32[np.ndarray, "row col"] | None
    """As it should be read, padding as air; None if it has no HU."""
    role: Role
    faults: tuple[str, ...]
    """What is wrong with it, in words."""


@dataclass(frozen=True, eq=False)
class DicomSeriesTruth:
    """What is known about a folder that was written."""

    folder: Path
    identity: Identity
    images: tuple[DicomImageTruth, ...]
    """Every image file and frame, and every other file."""
    tolerance_hu: float
    """Most that a lossy transfer syntax changes a pixel at slope 1; 0 where every value is kept."""

    @property
    def used(self) -> tuple[DicomImageTruth, ...]:
        """The images that make the volume, from inferior to superior."""
        images = [image for image in self.images if image.role == "used" and image.plane is not None]
        return tuple(sorted(images, key=_height_mm))

    @property
    def hu(self) -> Float32[np.ndarray, "slice row col"]:
        """HU of `used`, rows and columns as stored."""
        return np.stack([image.hu for image in self.used if image.hu is not None])

    @property
    def positions_mm(self) -> Float64[np.ndarray, "slice 3"]:
        """LPS of the first voxel of each of `used`."""
        return np.stack([image.plane.position_mm for image in self.used if image.plane is not None])


def write_dicom_series(
    folder: Path,
    hu: Real[np.ndarray, "slice row col"],
    geometry: SliceGeometry,
    options: DicomOptions | None = None,
) -> DicomSeriesTruth:
    """What is known about a DICOM series written into `folder`; the same arguments give the same bytes.

    Args:
        folder: Made if it is not there; files of the same names are replaced.
        hu: Slices in the order of `geometry`; values are rounded to what the pixels can hold.
        geometry: Where each slice lies.
        options: How the series is written and what is wrong with it; None is a plain, sound series.

    Raises:
        UsageError: voxels and geometry do not match, an option names a slice that is not there, or none is left.
        StorageError: the folder cannot be written.
    """
    folder, options = Path(folder), options or DicomOptions()
    _require_match(hu, geometry, options)
    identity = identity_of(options)
    images = plan_images(hu, geometry, options)
    if options.layout == "single":
        truths = list(_write_single(folder, images, identity, geometry, options))
    else:
        truths = list(_write_multiframe(folder, images, identity, geometry, options))
    truths.extend(_write_companions(folder, identity, geometry, options))
    return DicomSeriesTruth(folder, identity, tuple(truths), LOSSY_TOLERANCE_HU.get(options.transfer_syntax, 0.0))


def write_dicom_phantom(folder: Path, phantom: Phantom, options: DicomOptions | None = None) -> DicomSeriesTruth:
    """What is known about a head phantom written into `folder` as a DICOM series; by default its seed is the head's.

    The slices lie where the phantom's affine puts them: a tilted phantom is a head tilted in a straight gantry.

    Raises:
        UsageError, StorageError: as for `write_dicom_series`.
    """
    options = DicomOptions(seed=phantom.spec.seed) if options is None else options
    n_slices, n_rows, n_columns = phantom.hu.shape
    geometry = geometry_of_affine(phantom.affine, (n_slices, n_rows, n_columns))
    return write_dicom_series(folder, phantom.hu, geometry, options)


def _require_match(hu: Real[np.ndarray, "slice row col"], geometry: SliceGeometry, options: DicomOptions) -> None:
    n_slices = len(geometry.positions_mm)
    if hu.shape != (n_slices, *geometry.shape):
        raise UsageError(
            f"DICOM voxels of shape {hu.shape}: expected {(n_slices, *geometry.shape)}, as the geometry has"
        )
    least = LEAST_JPEG_2000_PIXELS if options.transfer_syntax.startswith("jpeg_2000") else 1
    if min(geometry.shape) < least:
        raise UsageError(f"JPEG 2000 of {geometry.shape} pixels: expected at least {least} each way")
    named = {*options.missing_slices, *options.copied_slices, *options.repeated_slices}
    unknown = sorted(index for index in named if not 0 <= index < n_slices)
    if unknown:
        raise UsageError(f"DICOM options name slices {unknown}: expected 0 to {n_slices - 1}")
    if len(set(options.missing_slices)) == n_slices:
        raise UsageError(f"DICOM options leave out all {n_slices} slices: expected at least one to be written")


def _write_single(
    folder: Path,
    images: tuple[PlannedImage, ...],
    identity: Identity,
    geometry: SliceGeometry,
    options: DicomOptions,
) -> Iterator[DicomImageTruth]:
    from dicom_writer.encoding import file_bytes
    from dicom_writer.header import image_dataset

    plain = DicomOptions()  # the file meta group has UIDs of DICOM's form even where the data set has not
    for image in images:
        file = image.file + options.extension
        content = file_bytes(
            image_dataset(image, identity, options, geometry.gantry_tilt_degrees),
            image.pixels.values[None],
            transfer_syntax=options.transfer_syntax,
            container=options.container,
            meta_uid=unique_uid(plain, options.seed, image.sop_instance_uid),
        )
        write_bytes(folder / file, content)
        yield _truth(image, file, image.sop_instance_uid, None)


def _write_multiframe(
    folder: Path,
    images: tuple[PlannedImage, ...],
    identity: Identity,
    geometry: SliceGeometry,
    options: DicomOptions,
) -> Iterator[DicomImageTruth]:
    from dicom_writer.encoding import file_bytes
    from dicom_writer.multiframe import multiframe_dataset

    if options.names == "shuffled":
        order = np.random.default_rng([options.seed, 14]).permutation(len(images))
        images = tuple(images[index] for index in order)
    uid = unique_uid(options, options.seed, "multi-frame", str(options.series_number))
    content = file_bytes(
        multiframe_dataset(images, identity, options, uid, geometry.gantry_tilt_degrees),
        np.stack([image.pixels.values for image in images]),
        transfer_syntax=options.transfer_syntax,
        container=options.container,
    )
    names = ["FRAMES", "FRAMES_COPY"] if options.copied_slices else ["FRAMES"]
    for name in names:
        file = name + options.extension
        write_bytes(folder / file, content)
        for number, image in enumerate(images, start=1):
            truth = _truth(image, file, uid, number)
            yield truth if name == "FRAMES" else _as_copy(truth)


def _write_companions(
    folder: Path, identity: Identity, geometry: SliceGeometry, options: DicomOptions
) -> Iterator[DicomImageTruth]:
    if not options.companions:
        return
    from dicom_writer.companions import companion_files

    for companion in companion_files(identity, geometry, options):
        write_bytes(folder / companion.file, companion.content)
        yield _companion_truth(companion)


def _companion_truth(companion: CompanionFile) -> DicomImageTruth:
    return DicomImageTruth(
        file=companion.file,
        sop_instance_uid=companion.sop_instance_uid,
        frame_number=None,
        slice_index=None,
        plane=companion.plane,
        hu=None,
        role="set aside",
        faults=(companion.fault,),
    )


def _truth(image: PlannedImage, file: str, sop_instance_uid: str, frame_number: int | None) -> DicomImageTruth:
    return DicomImageTruth(
        file=file,
        sop_instance_uid=sop_instance_uid,
        frame_number=frame_number,
        slice_index=image.slice_index,
        plane=image.plane,
        hu=image.pixels.hu,
        role=image.role,
        faults=image.faults,
    )


def _as_copy(truth: DicomImageTruth) -> DicomImageTruth:
    return truth if truth.role == "set aside" else replace(truth, role="duplicate", faults=("copied file",))


def _height_mm(image: DicomImageTruth) -> float:
    """Along the normal that points upwards."""
    if image.plane is None:
        return 0.0
    normal = np.cross(image.plane.row_direction, image.plane.column_direction)
    return float(image.plane.position_mm @ normal * np.sign(normal[2]))
