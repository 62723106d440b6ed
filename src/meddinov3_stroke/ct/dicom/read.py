"""A DICOM input as its digest and as a canonical volume, from one reading of its files; nothing is resampled.

Warnings name no free text of headers and no files, which may identify a patient: they go into outputs and the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.ct.contents import HEAD_BYTES, OpenedInput, machine_errors, recognise, require_dicom_input
from meddinov3_stroke.ct.dicom.choice import choose, intended_use_hints
from meddinov3_stroke.ct.dicom.container import DicomContent
from meddinov3_stroke.ct.dicom.files import InputFile, files_of_series, is_header_index, open_files
from meddinov3_stroke.ct.dicom.grouping import difference, is_interleaved, mixture
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.layout import file_shape, layout_of, slice_affines, stack_affine
from meddinov3_stroke.ct.dicom.pixels import MAX_PIXELS, NEGATIVE, UNSIGNED, decode_frame, image_hu
from meddinov3_stroke.ct.dicom.series import Stack, scaling_fault
from meddinov3_stroke.ct.dicom.survey import DamagedFile, KeptFiles, Survey, survey, walked
from meddinov3_stroke.ct.geometry import canonical_orientation, check_voxels, voxel_sides
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, OutOfScope, UnsupportedInput
from meddinov3_stroke.system.digest import sha256_of_array, sha256_of_document
from meddinov3_stroke.types import SliceImage, Volume, VolumeSource

LOSSY = {"1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless", "1.2.840.10008.1.2.4.91": "JPEG 2000"}
"""Transfer syntaxes that may have changed values."""

MOST_STACKS = 6
"""Other stacks of the series that a warning names."""

READER_VERSION = 2
"""Raised when the same files would give other slices or HU, so that cached embeddings are not reused."""


class DicomInput(OpenedInput):
    """A DICOM input. Each of its files is read once, when the digest or the volume is first asked for.

    `source` is a folder, archive, list, header index or file, or the files of one series. `series_uid` names the series
    to read; without it the rule of `choice` decides. A series of more than `max_voxels` is refused before anything is
    decoded. With `allow_single_slice`, a single image is read if there is nothing else; with `join_series`, the slices
    of a study count as one series.
    """

    def __init__(
        self,
        source: Path | Sequence[Path],
        series_uid: str | None = None,
        *,
        max_voxels: int = MAX_PIXELS,
        allow_single_slice: bool = False,
        join_series: bool = False,
    ) -> None:
        self.path = source if isinstance(source, Path) else source[0].parent
        self._source, self._series_uid = source, series_uid
        self._max_voxels, self._allow_single_slice = max_voxels, allow_single_slice
        self.join_series = join_series
        self._kept = KeptFiles()

    @property
    def reader_version(self) -> int:
        """Decides the digest besides the files, so a remembered digest of another version is not used."""
        return READER_VERSION

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that the input depends on: for a header index, the index and the files of the series."""
        with open_files(self._listed) as files:
            listed = [file.path for file in files]
        return tuple(dict.fromkeys([self.path, *listed] if self.path.is_file() else listed))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the files and frames of the chosen stack and of the warning about unread slices of its series;
        independent of file order, file names and other series."""
        found, stack = self._found
        images = sorted((self._kept.digests[image.file], image.frame or 0) for image in stack.images)
        not_read = list(_not_read(found, stack))  # a warning that is cached with what is computed
        return sha256_of_document({"dicom": images, "reader": READER_VERSION, "not_read": not_read})

    def volume(self) -> Volume:
        """The volume of the chosen stack."""
        found, stack = self._found
        n, rows, columns = file_shape(stack)
        if n * rows * columns > self._max_voxels:
            size = f"{n} slices of {rows} x {columns} pixels"
            raise UnsupportedInput(f"{self.path}: {size}; at most {self._max_voxels} voxels are read; raise max_voxels")
        if fault := scaling_fault(stack):
            raise CorruptInput(fault)
        hu, n_to_air, repairs = self._decoded(stack)
        affine = stack_affine(stack)
        orientation = canonical_orientation(affine)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in orientation.flips)
        stored = np.ascontiguousarray(hu.transpose(orientation.axes)[steps])
        stored.flags.writeable = False
        n_padding, voxel_warnings = check_voxels(stored, 1.0, 0.0, self.path)
        affines = slice_affines(stack, orientation)
        row_mm, column_mm = (float(side) for side in voxel_sides(affines[0])[1:])
        return Volume(
            stored=stored,
            slope=1.0,
            intercept=0.0,
            affine=orientation.apply_to_affine(affine, file_shape(stack)),
            slice_positions_mm=affines[:, :3, 3],
            slice_steps_mm=affines[:, :3, 1:3],
            spacing_mm=(layout_of(stack).nominal_mm, row_mm, column_mm),
            source=VolumeSource(
                path=self.path,
                format="dicom",
                sha256=self.digest,
                pixels_sha256=sha256_of_array(stored, slope=1.0, intercept=0.0),
                study_instance_uid=stack.study_instance_uid,
                series_instance_uid=stack.series_instance_uid,
                images=tuple(
                    SliceImage(
                        image.sop_instance_uid, None if image.frame is None else image.frame + 1, image.instance_number
                    )
                    for image in stack.images[steps[0]]
                ),
            ),
            header_hints=intended_use_hints(stack),
            n_padding_voxels=n_padding + n_to_air,
            warnings=(*_warnings(found, stack, repairs, n_to_air), *voxel_warnings),
        )

    def _decoded(self, stack: Stack) -> tuple[Real[np.ndarray, "slice row col"], int, Counter[str]]:
        """(HU of the images as stored, int16 if all fit; pixels of padding set to air; images of each repair)."""
        hu: Real[np.ndarray, "slice row col"] = np.empty(file_shape(stack), dtype=np.int16)
        n_to_air, repairs = 0, Counter[str]()
        for k, (image, content) in enumerate(self._contents(stack)):
            repaired: set[str] = set()
            stored = decode_frame(content, image.pixels, image.frame or 0, image.file, repaired)
            one = image_hu(stored, image, content)
            if one.hu.dtype != hu.dtype and hu.dtype == np.int16:
                hu = hu.astype(np.float32)
            hu[k] = one.hu
            n_to_air += one.n_padding_to_air
            repairs.update(repaired | ({one.repair} - {""}))
        n_signed = repairs.pop(NEGATIVE, 0)
        if n_signed and repairs[UNSIGNED]:
            found = f"{repairs[UNSIGNED]} slices hold unsigned values and {n_signed} signed ones"
            raise CorruptInput(f"{self.path}: {found}, all declared signed; export the series again")
        return hu, n_to_air, repairs

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
        is_index = isinstance(self._source, Path) and self._listed is not self._source
        where = f"{self.path}, series {self._series_uid}" if is_index else str(self.path)
        with open_files(self._listed) as files:
            found = survey(files, self._kept, join_series=self.join_series)
            stack = self._chosen(found, where)
            names = _files_of(stack)
            self._kept.contents = {name: one for name, one in self._kept.contents.items() if name in names}
            for name in names:
                if name not in self._kept.digests:  # an input too large to be kept as a whole
                    content, digest = walked(found.files[name])
                    self._kept.add(name, digest, content)
        return found, stack

    def _chosen(self, found: Survey, where: str) -> Stack:
        """The stack to read; damaged files of its series, or of an unknown one, are an error."""
        is_single, is_joined = self._allow_single_slice, self.join_series
        try:
            _require_images(found, where)
            stack = choose(found.stacks, self._series_uid, where, allow_single_slice=is_single, is_joined=is_joined)
        except (InputError, OutOfScope):
            _require_sound(found.damaged)
            raise
        uids = {image.series_instance_uid for image in stack.images}
        slices = [one for one in found.damaged if one.is_slice]
        _require_sound(
            [one for one in slices if is_joined or not one.series_instance_uid or one.series_instance_uid in uids]
        )
        if self._series_uid is None:  # of a series of which the rule has seen nothing
            known = {other.series_instance_uid for other in found.stacks}
            unseen = [one for one in slices if one.series_instance_uid not in known]
            _require_sound(unseen, f"; or name the series to read: --series {stack.name}")
        return stack

    def _contents(self, stack: Stack) -> Iterator[tuple[ImageHeader, DicomContent]]:
        """Each image with its file's content, which is dropped after its last image."""
        last = {image.file: k for k, image in enumerate(stack.images)}
        contents, files = self._kept.contents, dict[str, InputFile]()
        with ExitStack() as opened:
            for k, image in enumerate(stack.images):
                name, content = image.file, contents.get(image.file)
                if content is None:
                    files = files or {one.name: one for one in opened.enter_context(open_files(self._listed))}
                    content, digest = walked(files[name]) if name in files else (None, "")
                    content = content if digest == self._kept.digests[name] else None
                if content is None or content.pixel_data is None or content.transfer_syntax != image.transfer_syntax:
                    raise CorruptInput(f"{name} changed while it was read; read it again")
                contents[name] = content
                if k == last[name]:
                    del contents[name]
                yield image, content


def _files_of(stack: Stack) -> dict[str, None]:
    return dict.fromkeys(image.file for image in stack.images)


def _require_sound(damaged: Sequence[DamagedFile], remedy: str = "") -> None:
    if damaged:
        name, error = damaged[0].name, damaged[0].error
        more = f" ({len(damaged)} such files){remedy}" if len(damaged) > 1 else remedy
        raise type(error)(f"{error}{more}" if name in str(error) else f"{name}: {error}{more}")


def _require_images(found: Survey, where: str) -> None:
    if found.stacks:
        return
    names = [name for name, _ in found.without_images]
    if names == [where]:
        expected = "a NIfTI file, a DICOM file or folder, or a .zip, .tar or .tar.gz archive of one"
        what = f"{found.without_images[0][1]} and not .nii or .nii.gz"
        raise UnsupportedInput(f"{where} is {what}; expected a head CT: {expected}")
    listed = ", ".join(_named(found.files[name]) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    unpack = "unpack it, then " if any(found.files[name].is_member for name in names) else ""
    expected = f"expected a DICOM series; {unpack}give a NIfTI volume or an archive by its own path"
    raise MissingInput(f"{where} holds no DICOM image (found {listed}); {expected}")


def _named(file: InputFile) -> str:
    """A file that is not DICOM, with what it is if that is known."""
    kind = recognise(file.head(HEAD_BYTES))
    return file.name if kind is None else f"{file.name}, {kind.name}"


def _warnings(found: Survey, stack: Stack, repairs: Counter[str], n_to_air: int) -> Iterator[str]:
    yield from _joined(stack)
    yield from _left_out(found, stack)
    yield from layout_of(stack).notes
    if as_text := dict.fromkeys(name for image in stack.images for name in image.numbers_as_text):
        yield f"{', '.join(as_text)} stored as text or with a decimal comma; read as numbers"
    scalings = {(image.rescale.slope, image.rescale.intercept) for image in stack.images}
    if len(scalings) > 1:
        yield f"{len(scalings)} pairs of slope and intercept in one series; each slice is scaled by its own"
    if not all(image.rescale.is_stated or image.has_modality_lut for image in stack.images):
        yield "no rescale slope or intercept in the header; stored values are taken as HU"
    if lossy := LOSSY.get(stack.first.transfer_syntax):
        yield f"compressed with {lossy}, which may have changed values"
    for repair, n_repaired in sorted(repairs.items()):
        yield f"{n_repaired} of {len(stack.images)} slices {repair}"
    if n_to_air:
        yield f"{n_to_air} pixels of declared padding read as air"


def _joined(stack: Stack) -> Iterator[str]:
    if (n_uids := len({image.series_instance_uid for image in stack.images})) > 1:
        yield f"images of {n_uids} series UIDs are read as one series, {stack.series_instance_uid} (--join-series)"


def _rest_of_series(found: Survey, stack: Stack) -> list[Stack]:
    series = [one for one in found.stacks if one.series_instance_uid == stack.series_instance_uid]
    return [one for one in series if one is not stack and one.verdict == "usable"]


def _not_read(found: Survey, stack: Stack) -> Iterator[str]:
    if rest := _rest_of_series(found, stack):
        n_rest = sum(len(one.images) for one in rest)
        n_slices = f"only {len(stack.images)} of the {len(stack.images) + n_rest} slices of this series are read"
        differing = ", ".join(f"{one.name} ({difference(stack.images, one.images)})" for one in rest[:MOST_STACKS])
        more = f" and {len(rest) - MOST_STACKS} more" if len(rest) > MOST_STACKS else ""
        yield f"{n_slices} ({stack.name}); not read: {differing}{more}; --series reads one by such a name"


def _left_out(found: Survey, stack: Stack) -> Iterator[str]:
    if stack.set_aside:
        n_copies = _counted(stack.set_aside, "duplicate image was", "duplicate images were")
        yield f"{n_copies} left out (inspect lists them)"
    yield from _not_read(found, stack)
    rest = _rest_of_series(found, stack)
    reasons: list[str] = []
    for other in (one for one in found.stacks if one is not stack and one not in rest):
        reasons += [other.reason or "another usable series"] * len(other.images)
    if len({image.patient_id for image in stack.images}) > 1:
        yield "patient IDs that differ in case or blanks only are taken as one patient"
    if differing := mixture(stack.images):
        yield f"slices that differ in {differing} are read as one volume"
    if is_interleaved(stack.images):
        advice = "if these are passes of a head that moved, list the files of one in a .txt and read that"
        yield f"slices of several acquisitions alternate and are read as one volume; {advice}"
    if reasons:
        listed = ", ".join(f"{reason} ({count})" for reason, count in Counter(reasons).most_common())
        yield f"{_counted(reasons, 'other image was', 'other images were')} set aside: {listed}"
    if found.damaged:
        n_files = _counted(found.damaged, "damaged file", "damaged files")
        yield f"{n_files} of another series or kind left out (inspect lists them)"
    if others := [name for name, what in found.without_images if what == "not DICOM"]:
        n_files = _counted(others, "file is not DICOM and was", "files are not DICOM and were")
        yield f"{n_files} set aside (inspect lists them)"


def _counted(items: Sequence[object], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"
