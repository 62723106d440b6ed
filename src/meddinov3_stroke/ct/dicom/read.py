"""A DICOM input as its digest and as a canonical volume, from one reading of its files; nothing is resampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.ct.contents import OpenedInput, machine_errors, require_dicom_input
from meddinov3_stroke.ct.dicom.choice import choose
from meddinov3_stroke.ct.dicom.container import DicomContent
from meddinov3_stroke.ct.dicom.files import InputFile, files_of_series, is_header_index, open_files
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.hounsfield import ImageHu, image_hu
from meddinov3_stroke.ct.dicom.layout import file_shape, layout_of, slice_geometry, stack_affine
from meddinov3_stroke.ct.dicom.pixels import MAX_PIXELS, decode_frame
from meddinov3_stroke.ct.dicom.series import Stack, scaling_fault
from meddinov3_stroke.ct.dicom.survey import KeptFiles, Survey, survey, walked, warnings_about
from meddinov3_stroke.ct.geometry import Orientation, canonical_orientation, check_voxels
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput
from meddinov3_stroke.system.digest import sha256_of_array, sha256_of_document
from meddinov3_stroke.types import SliceImage, Volume, VolumeSource

READER_VERSION = 1
"""Raised when the same files would give other slices or HU, so that cached embeddings are not reused."""


def open_dicom(
    source: Path | Sequence[Path],
    series_uid: str | None = None,
    *,
    max_voxels: int = MAX_PIXELS,
    allow_single_slice: bool = False,
) -> OpenedDicom:
    """A folder, archive, list, header index or file of DICOM, or the files of one series; nothing is read yet.

    Args:
        source: where it is.
        series_uid: the series to read; without it the rule of `choice` decides.
        max_voxels: refuse a series that declares more, before anything is decoded.
        allow_single_slice: read a single image if there is nothing else.
    """
    return OpenedDicom(source, series_uid, max_voxels, allow_single_slice)


class OpenedDicom(OpenedInput):
    """A DICOM input. Each of its files is read once, when the digest or the volume is first asked for."""

    def __init__(
        self, source: Path | Sequence[Path], series_uid: str | None, max_voxels: int, allow_single_slice: bool
    ) -> None:
        self.path = source if isinstance(source, Path) else source[0].parent
        """The path that represents the input; for files, their folder."""
        self._source, self._series_uid = source, series_uid
        self._max_voxels, self._allow_single_slice = max_voxels, allow_single_slice
        self._kept = KeptFiles()

    @property
    def reader_version(self) -> int:
        """Decides the digest besides the files, so a remembered digest of another version is not used."""
        return READER_VERSION

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that the input depends on, found without reading any image: for a header index, the index and the
        files of the series.

        Raises:
            InputError, MachineError, UsageError: as `open_files` and `files_of_series`.
        """
        with open_files(self._listed) as files:
            listed = [file.path for file in files]
        return tuple(dict.fromkeys([self.path, *listed] if self.path.is_file() else listed))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the digests of the files of the chosen stack, regardless of their order and names.

        Raises:
            CorruptInput: a DICOM file that cannot be read, since its series is unknown.
            InputError, OutOfScope: no stack to read, as `choice.choose`.
            MachineError, UsageError: as `files`.
        """
        _, stack = self._found
        frames = [image.frame for image in stack.images if image.frame is not None]
        digests = sorted(self._kept.digests[name] for name in _files_of(stack))
        return sha256_of_document({"dicom": digests, "reader": READER_VERSION, "frames": frames})

    def volume(self) -> Volume:
        """The volume of the chosen stack.

        Raises:
            CorruptInput: pixels shorter than declared, a damaged codestream, an impossible scaling.
            UnsupportedInput: an unsupported transfer syntax, or more voxels than `max_voxels`.
            InputError, OutOfScope, MachineError, UsageError: as `digest`.
        """
        found, stack = self._found
        _require_few_voxels(stack, self.path, self._max_voxels)
        if fault := scaling_fault(stack):
            raise CorruptInput(fault)
        pixels = _Pixels(stack)
        for k, (image, content) in enumerate(self._contents(stack)):
            pixels.put(k, image_hu(decode_frame(content, image.pixels, image.frame or 0, image.file), image, content))
        return _volume(found, stack, pixels, self.path, self.digest)

    def image_files(self) -> Iterator[bytes]:
        """The bytes of each file of the chosen stack, read once more."""
        _, stack = self._found
        with open_files(self._listed) as files:
            by_name = {file.name: file for file in files}
            yield from (by_name[name].read() for name in _files_of(stack))

    @cached_property
    def _listed(self) -> Path | Sequence[Path]:
        if not isinstance(self._source, Path):
            return self._source
        with machine_errors(self._source):
            require_dicom_input(self._source)
        if is_header_index(self._source):
            return files_of_series(self._source, self._series_uid)
        return self._source

    @cached_property
    def _found(self) -> tuple[Survey, Stack]:
        """What the input holds, and the stack to read; its files are kept, as far as `KEEP_BYTES` suffice."""
        listed = self._listed
        is_index = isinstance(self._source, Path) and listed is not self._source
        where = f"{self.path}, series {self._series_uid}" if is_index else str(self.path)
        with open_files(listed) as files:
            found = survey(files, self._kept)
            _require_sound(found, where)
            stack = choose(found.stacks, self._series_uid, where, allow_single_slice=self._allow_single_slice)
            names = _files_of(stack)
            self._kept.keep_only(names)
            for name in names:
                if name not in self._kept.digests:  # an input too large to be kept as a whole
                    content, digest = walked(found.files[name])
                    self._kept.add(name, digest, content)
        return found, stack

    def _contents(self, stack: Stack) -> Iterator[tuple[ImageHeader, DicomContent]]:
        """Each image with its file's content, which is dropped after its last image."""
        last = {image.file: k for k, image in enumerate(stack.images)}
        name, content = "", None
        reopened: dict[str, InputFile] = {}
        with ExitStack() as opened:
            for k, image in enumerate(stack.images):
                if image.file != name or content is None:
                    name, content = image.file, self._kept.contents.get(image.file)
                if content is None:
                    if not reopened:
                        reopened = {file.name: file for file in opened.enter_context(open_files(self._listed))}
                    content = self._read_once_more(reopened, name)
                if content.pixel_data is None or content.transfer_syntax != image.transfer_syntax:
                    raise CorruptInput(f"{name} changed while it was read; read it again")
                if k == last[name]:
                    self._kept.contents.pop(name, None)
                yield image, content

    def _read_once_more(self, files: dict[str, InputFile], name: str) -> DicomContent:
        if name in files:
            content, digest = walked(files[name])
            if digest == self._kept.digests[name]:
                return content
        raise CorruptInput(f"{name} changed while it was read; read it again")


def _files_of(stack: Stack) -> dict[str, None]:
    """The names of a stack's files, each once, in the order of its images."""
    return dict.fromkeys(image.file for image in stack.images)


def _require_sound(found: Survey, where: str) -> None:
    """Raise for a damaged file, which may belong to any series, or if there is no image at all."""
    if found.damaged:
        name, error = found.damaged[0]
        more = f" ({len(found.damaged)} such files)" if len(found.damaged) > 1 else ""
        raise type(error)(f"{error}{more}" if name in str(error) else f"{name}: {error}{more}")
    if not found.stacks:
        raise _no_image(found, where)


def _no_image(found: Survey, where: str) -> InputError:
    names = [name for name, _ in found.without_images]
    if names == [where]:
        return UnsupportedInput(
            f"{where} is {found.without_images[0][1]} and not .nii or .nii.gz; expected a head CT: a NIfTI file, a "
            "DICOM file or folder, or a zip archive of one"
        )
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return MissingInput(
        f"{where} holds no DICOM image (found {listed}); expected a DICOM series; give a NIfTI volume by its own path"
    )


@dataclass(eq=False)
class _Pixels:
    """The slices of a stack in HU as they are decoded, int16 until one does not fit."""

    stack: Stack
    n_padding_to_air: int = 0
    n_repaired: int = 0
    hu: Real[np.ndarray, "slice row col"] = field(init=False)

    def __post_init__(self) -> None:
        self.hu = np.empty(file_shape(self.stack), dtype=np.int16)

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
                f"{self.n_repaired} of {len(self.hu)} slices had a wrong intercept and values wrapped at 4096 (the "
                "RSNA 2019 fault); repaired"
            )
        if self.n_padding_to_air:
            warnings.append(f"{self.n_padding_to_air} pixels of declared padding read as air")
        return tuple(warnings)


def _volume(found: Survey, stack: Stack, pixels: _Pixels, path: Path, digest: str) -> Volume:
    affine = stack_affine(stack)
    orientation = canonical_orientation(affine)
    stored = np.ascontiguousarray(_canonical(pixels.hu, orientation))
    stored.flags.writeable = False
    n_padding, voxel_warnings = check_voxels(stored, 1.0, 0.0, path)
    positions, steps = slice_geometry(stack, orientation)
    row_mm, column_mm = (float(np.linalg.norm(steps[0, :, axis])) for axis in range(2))
    source = VolumeSource(
        path=path,
        format="dicom",
        sha256=digest,
        pixels_sha256=sha256_of_array(stored, slope=1.0, intercept=0.0),
        study_instance_uid=stack.study_instance_uid,
        series_instance_uid=stack.series_instance_uid,
        images=tuple(_slice_image(image) for image in stack.images[:: -1 if orientation.flips[0] else 1]),
    )
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
        warnings=(*warnings_about(found, stack), *pixels.warnings, *voxel_warnings),
    )


def _require_few_voxels(stack: Stack, path: Path, max_voxels: int) -> None:
    n, rows, columns = file_shape(stack)
    if n * rows * columns > max_voxels:
        raise UnsupportedInput(
            f"{path}: {n} slices of {rows} x {columns} pixels; at most {max_voxels} voxels are read; the headers are "
            "damaged, or raise max_voxels"
        )


def _canonical(hu: Real[np.ndarray, "i j k"], orientation: Orientation) -> Real[np.ndarray, "slice row col"]:
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in orientation.flips)
    return hu.transpose(orientation.axes)[steps]


def _slice_image(image: ImageHeader) -> SliceImage:
    return SliceImage(image.sop_instance_uid, None if image.frame is None else image.frame + 1)
