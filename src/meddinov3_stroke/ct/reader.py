"""From a path to a volume: NIfTI or DICOM, opened once for both its digest and its voxels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke.ct.contents import OpenedInput, is_nifti_name, machine_errors
from meddinov3_stroke.ct.nifti import NiftiInput
from meddinov3_stroke.errors import MissingInput, UnsupportedInput, UsageError
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import is_url, located
from meddinov3_stroke.types import Volume, VolumeInput

if TYPE_CHECKING:
    from meddinov3_stroke.ct.staged import Stage

MAX_VOXELS = 2**28
"""Voxels above which a header is refused unread: 1024 slices of 512x512, far above any head CT."""

Source = Path | str | VolumeInput | Sequence[Path | str]
"""A NIfTI file; a DICOM file, folder, archive (zip, tar), list (.txt) or header index (.parquet); or DICOM files."""


def open_input(
    source: Source,
    series: str | None = None,
    *,
    max_voxels: int = MAX_VOXELS,
    allow_single_slice: bool = False,
    join_series: bool = False,
) -> OpenedInput:
    """The input at `source`, for its digest, its volume, or both; arguments and errors as for `read_volume`."""
    wanted = as_input(source, series)
    if isinstance(wanted, VolumeInput) and is_url(wanted.path):
        from meddinov3_stroke.ct.staged import StagedInput

        limits: dict[str, Any] = {"max_voxels": max_voxels, "allow_single_slice": allow_single_slice}
        return StagedInput(
            replace(wanted, join_series=join_series or wanted.join_series), partial(open_input, **limits)
        )
    names.know(*((wanted.path,) if isinstance(wanted, VolumeInput) else wanted))
    files, uid = (wanted.path, wanted.series_uid) if isinstance(wanted, VolumeInput) else (wanted, None)
    join_series = join_series or getattr(wanted, "join_series", False)
    if isinstance(wanted, VolumeInput):
        if wanted.format == "nifti":
            _require_nifti_path(wanted.path)
        if wanted.format != "dicom" and is_nifti_name(wanted.path):
            if uid is not None:
                raise UsageError(f"{wanted.path} is NIfTI and has no series {uid}; omit --series")
            if join_series:
                raise UsageError(f"{wanted.path} is NIfTI and has no series to join; omit --join-series")
            return NiftiInput(wanted.path, max_voxels=max_voxels, allow_single_slice=allow_single_slice)
    from meddinov3_stroke.ct.dicom.read import DicomInput  # pydicom is loaded for DICOM alone

    return DicomInput(files, uid, max_voxels=max_voxels, allow_single_slice=allow_single_slice, join_series=join_series)


class Reader:
    """Opens the inputs of a run. Those at URLs, and with a `stage` folder all, are copied ahead of the reader."""

    def __init__(self, open_one: Callable[[Source], OpenedInput], stage: Path | None) -> None:
        self._open, self._folder = open_one, stage
        self._stage: Stage | None = None

    def ahead(
        self, sources: Iterable[Source | None], wanted: Callable[[OpenedInput, str | None], bool]
    ) -> Generator[Source | None, None, None]:
        """The sources, in order; a copy lasts until the next one is asked for.

        `wanted` says whether an input, with its series, is going to be read, so that its copy is worth making.
        """
        rest = iter(sources)
        for source in rest:
            if self._folder is None and not (source and is_url(source_path(source))):
                yield source
                continue
            from meddinov3_stroke.ct.staged import Stage

            self._stage = Stage(self._folder, self._open, wanted)
            yield from self._stage.ahead(chain([source], rest))

    def open(self, source: Source) -> OpenedInput:
        """As `open_input`."""
        return (self._stage and self._stage.open(source)) or self._open(source)


def read_volume(
    source: Source,
    series: str | None = None,
    *,
    max_voxels: int = MAX_VOXELS,
    allow_single_slice: bool = False,
    join_series: bool = False,
) -> Volume:
    """The head CT in `source`, in canonical orientation, after its container was checked to the last byte.

    Each DICOM slice keeps its own position; nothing is resampled. Whether the image is a head CT is not checked.

    Args:
        source: a .nii or .nii.gz file (NIfTI-1 or NIfTI-2), or any DICOM input of `Source`.
        series: the series to read if the input holds several: its UID, or UID#2 for its second volume, as `inspect`
            lists them; without it the rule of `ct.dicom.choice` decides.
        max_voxels: refuse a header that declares more, before anything is allocated.
        allow_single_slice: accept a 2-D NIfTI image, or a volume or series of one slice.
        join_series: read the slices of a DICOM study as one series, whatever their series UIDs.

    Raises:
        MissingInput: no such file, an empty one, a folder without DICOM, or no such series.
        CorruptInput: truncated, changed, or contradicting itself; too many voxels that are not finite.
        UnsupportedInput: another kind of file, not a 3-D scalar volume in mm, or a transfer syntax not decoded.
        AmbiguousInput: several patients or studies, and no series named.
        OutOfScope: a single slice, or slices more than 45 degrees off axial.
        MachineError: the system cannot open or read the input.
        UsageError: a series named, or series joined, for a NIfTI file.
    """
    return open_input(
        source, series, max_voxels=max_voxels, allow_single_slice=allow_single_slice, join_series=join_series
    ).volume()


def as_input(source: Source, series: str | None = None) -> VolumeInput | tuple[Path, ...]:
    """`source` as an input with the series it names, or as DICOM files; `UsageError` if they contradict each other."""
    if isinstance(source, VolumeInput):
        if series is not None and source.series_uid not in (None, series):
            raise UsageError(f"series {series} asked of an input that names series {source.series_uid}; name one")
        return replace(source, series_uid=series or source.series_uid)
    if isinstance(source, (str, Path)):
        return VolumeInput(located(Path(source)), series)
    if series is not None:
        raise UsageError("a series named beside single files; give the files of that series alone")
    if not source:
        raise UsageError("no files named; expected the DICOM files of one series")
    return tuple(Path(path) for path in source)


def source_path(source: Source) -> Path:
    """The path that represents `source` in messages and names: for single files, their folder."""
    wanted = as_input(source)
    return wanted.path if isinstance(wanted, VolumeInput) else wanted[0].parent


def _require_nifti_path(path: Path) -> None:
    expected = "expected a .nii or .nii.gz file"
    with machine_errors(path):
        if path.is_dir():
            raise MissingInput(f"{path} is a directory; {expected}; a DICOM folder belongs under dicom_path")
        if not path.exists():
            raise MissingInput(f"{path}: no such file; {expected}")
    if not is_nifti_name(path):
        raise UnsupportedInput(f"{path} is not a .nii or .nii.gz file; DICOM belongs under dicom_path")
