"""One stack as a canonical volume: each slice decoded, in HU, at its own position; nothing is resampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.ct.dicom.choice import choose
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.hounsfield import ImageHu, image_hu
from meddinov3_stroke.ct.dicom.pixels import decode_frame
from meddinov3_stroke.ct.dicom.remarks import remarks_on
from meddinov3_stroke.ct.dicom.spacing import layout_of
from meddinov3_stroke.ct.dicom.stack_geometry import file_shape, slice_geometry, stack_affine
from meddinov3_stroke.ct.dicom.stacks import Stack
from meddinov3_stroke.ct.dicom.structure import DicomContent, read_structure
from meddinov3_stroke.ct.dicom.survey import Survey, survey
from meddinov3_stroke.ct.geometry import Orientation, canonical_orientation
from meddinov3_stroke.ct.hounsfield import check_voxels
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput
from meddinov3_stroke.system.digest import sha256_of_array, sha256_of_document
from meddinov3_stroke.system.prefetch import read_ahead
from meddinov3_stroke.types import SliceImage, Volume, VolumeSource

READER_VERSION = 1
"""Raised when the same files would give other slices or HU: embeddings cached before are then not reused."""

FILES_AHEAD = 2
"""Files read, digested and walked ahead of the one that is decoded."""


def find_stack(
    files: Sequence[InputFile], series_uid: str | None, where: str, *, allow_single_slice: bool = False
) -> tuple[Survey, Stack]:
    """What the files hold, and the stack of it to read.

    Raises:
        CorruptInput: a DICOM file that cannot be read; which series it belongs to cannot be known.
        InputError, OutOfScope: no stack to read, as `choice.choose` says.
    """
    found = survey(files)
    if found.damaged:
        name, error = found.damaged[0]
        more = f" ({len(found.damaged)} such files)" if len(found.damaged) > 1 else ""
        raise type(error)(f"{error}{more}" if name in str(error) else f"{name}: {error}{more}")
    if not found.stacks:
        raise _no_image(found, where)
    return found, choose(found.stacks, series_uid, where, allow_single_slice=allow_single_slice)


def _no_image(found: Survey, where: str) -> InputError:
    names = [name for name, _ in found.without_images]
    if names == [where]:
        return UnsupportedInput(
            f"{where} is {found.without_images[0][1]}, and no .nii or .nii.gz; expected a head CT: a NIfTI file, a "
            "DICOM file or folder, or a zip archive of one"
        )
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return MissingInput(
        f"{where} holds no DICOM image (found {listed}); expected a DICOM series; a NIfTI volume is named by its file"
    )


def stack_digest(stack: Stack, files: dict[str, InputFile]) -> str:
    """Hex sha256 over the digests of the files of a stack, in whatever order or under whatever name they lie."""
    names = dict.fromkeys(image.file for image in stack.images)
    return _digest_of([sha256(files[name].read()).hexdigest() for name in names], stack)


def _digest_of(file_digests: Sequence[str], stack: Stack) -> str:
    frames = [image.frame for image in stack.images]
    return sha256_of_document(
        {
            "dicom": sorted(file_digests),
            "reader": READER_VERSION,
            "frames": [frame for frame in frames if frame is not None],
        }
    )


def read_stack(found: Survey, stack: Stack, path: Path, *, max_voxels: int) -> Volume:
    """The volume of a usable stack.

    Raises:
        CorruptInput: pixels shorter than declared, a damaged code stream, a scaling that cannot be.
        UnsupportedInput: a transfer syntax that is not decoded, or more than `max_voxels`.
    """
    _require_few_voxels(stack, path, max_voxels)
    if fault := scaling_fault(stack):
        raise CorruptInput(fault)
    pixels = _Pixels(stack)
    with closing(read_ahead(_opened(found, stack, pixels.file_digests), FILES_AHEAD)) as opened:
        for k, (image, content) in enumerate(opened):
            pixels.put(k, image_hu(decode_frame(content, image.pixels, image.frame or 0, image.file), image, content))
    affine = stack_affine(stack)
    orientation = canonical_orientation(affine)
    stored = np.ascontiguousarray(_canonical(pixels.hu, orientation))
    stored.flags.writeable = False
    n_padding, voxel_warnings = check_voxels(stored, 1.0, 0.0, path)
    positions, steps = slice_geometry(stack, orientation)
    images = stack.images[:: -1 if orientation.flips[0] else 1]
    source = VolumeSource(
        path=path,
        format="dicom",
        sha256=_digest_of(list(pixels.file_digests.values()), stack),
        pixels_sha256=sha256_of_array(stored, slope=1.0, intercept=0.0),
        study_instance_uid=stack.study_instance_uid,
        series_instance_uid=stack.series_instance_uid,
        images=tuple(_slice_image(image) for image in images),
    )
    row_mm, column_mm = (float(np.linalg.norm(steps[0, :, axis])) for axis in range(2))
    return Volume(
        stored=stored,
        slope=1.0,
        intercept=0.0,
        affine=orientation.apply_to_affine(affine, file_shape(stack)),
        slice_positions_mm=positions,
        slice_steps_mm=steps,
        spacing_mm=(layout_of(stack).nominal_mm, row_mm, column_mm),
        source=source,
        n_padding_voxels=n_padding + pixels.n_padding_to_air,
        warnings=(*remarks_on(found, stack), *pixels.warnings, *voxel_warnings),
    )


@dataclass(eq=False)
class _Pixels:
    """The slices of a stack in HU as they come, int16 until one does not fit."""

    stack: Stack
    n_padding_to_air: int = 0
    n_repaired: int = 0
    file_digests: dict[str, str] = field(default_factory=dict)
    hu: Real[np.ndarray, "slice row col"] = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.stack.first.pixels
        self.hu = np.empty((len(self.stack.images), pixels.rows, pixels.columns), dtype=np.int16)

    def put(self, k: int, image: ImageHu) -> None:
        if image.hu.dtype != self.hu.dtype and self.hu.dtype == np.int16:
            self.hu = self.hu.astype(np.float32)
        self.hu[k] = image.hu
        self.n_padding_to_air += image.n_padding_to_air
        self.n_repaired += image.is_repaired

    @property
    def warnings(self) -> tuple[str, ...]:
        warnings = []
        if self.n_repaired:
            warnings.append(
                f"{self.n_repaired} of {len(self.hu)} slices had an intercept that is not theirs and values wrapped at "
                "4096 (the RSNA 2019 fault); repaired"
            )
        if self.n_padding_to_air:
            warnings.append(f"{self.n_padding_to_air} pixels of declared padding read as air")
        return tuple(warnings)


def _opened(found: Survey, stack: Stack, file_digests: dict[str, str]) -> Iterator[tuple[ImageHeader, DicomContent]]:
    """Each image with its file's content; the frames of one file, which come together, share it."""
    name, content = "", None
    for image in stack.images:
        if image.file != name or content is None:
            name, content = image.file, None  # the last file's bytes go before the next ones come
            read = found.files[name].read()
            file_digests[name] = sha256(read).hexdigest()
            content = read_structure(read, name)
        if content is None or content.pixel_data is None or content.transfer_syntax != image.transfer_syntax:
            raise CorruptInput(f"{name} changed while it was read; read it again")
        yield image, content


def _require_few_voxels(stack: Stack, path: Path, max_voxels: int) -> None:
    pixels, n = stack.first.pixels, len(stack.images)
    if pixels.rows * pixels.columns * n > max_voxels:
        raise UnsupportedInput(
            f"{path}: {n} slices of {pixels.rows} x {pixels.columns} pixels; at most {max_voxels} voxels are read; the "
            "headers are damaged, or raise max_voxels"
        )


def scaling_fault(stack: Stack) -> str:
    """Which image of a stack has a slope and intercept that cannot be, or nothing."""
    for image in stack.images:
        if not image.rescale.is_sane and not image.has_modality_lut:
            return (
                f"{image.file}: Rescale Slope {image.rescale.slope:g} and Intercept {image.rescale.intercept:g} cannot "
                "be those of a CT; the header is damaged; fetch it again"
            )
    return ""


def _canonical(hu: Real[np.ndarray, "i j k"], orientation: Orientation) -> Real[np.ndarray, "slice row col"]:
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in orientation.flips)
    return hu.transpose(orientation.axes)[steps]


def _slice_image(image: ImageHeader) -> SliceImage:
    return SliceImage(image.sop_instance_uid, None if image.frame is None else image.frame + 1)
