"""One door for volumes: what the input is decides who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke.ct.contents import is_nifti_name, machine_errors, require_nifti
from meddinov3_stroke.ct.nifti import read_nifti
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import Volume, VolumeInput

if TYPE_CHECKING:
    from meddinov3_stroke.ct.dicom.read import OpenedDicom

MAX_VOXELS = 2**28
"""Voxels above which a header is refused unread: 1024 slices of 512x512, far above any head CT."""

Source = Path | str | VolumeInput | Sequence[Path | str]
"""A NIfTI file; a DICOM file, folder, zip archive, list (.txt) or header index (.parquet); or DICOM files."""


def read_volume(
    source: Source, *, series: str | None = None, max_voxels: int = MAX_VOXELS, allow_single_slice: bool = False
) -> Volume:
    """The head CT in `source`, in canonical orientation, after its container was checked to the last byte.

    Reads .nii and .nii.gz (NIfTI-1 and NIfTI-2), and DICOM: a folder, a zip archive, a list of files (.txt), a series
    of a header index (.parquet), a file (one frame or many), or the files themselves. Each DICOM slice keeps its own
    position; nothing is resampled. The container is judged here; whether the picture is a head CT is not.

    Args:
        source: where it is.
        series: SeriesInstanceUID of the series to read, where the input holds several; without it the rule of
            `volume.dicom.choice` decides.
        max_voxels: refuse a header that declares more, before anything is allocated.
        allow_single_slice: take a 2-D NIfTI image, or a volume or series of one slice.

    Raises:
        MissingInput: no such file, an empty one, a folder without DICOM, or no such series.
        CorruptInput: truncated, changed, or contradicting itself; too many voxels that are no number.
        UnsupportedInput: a sound file of another kind (named), a NIfTI that is no 3-D scalar volume in mm, a transfer
            syntax that is not decoded, or no series that can be read.
        AmbiguousInput: several patients or studies, and no series named.
        OutOfScope: a single slice, or slices more than 45 degrees off axial.
        MachineError: the input cannot be opened or read for the machine's own reasons.
        UsageError: a series named for a NIfTI file.
    """
    wanted = as_input(source, series)
    if isinstance(wanted, VolumeInput) and is_nifti_name(wanted.path):
        _refuse_series(wanted)
        with machine_errors(wanted.path):
            require_nifti(wanted.path)
            return read_nifti(wanted.path, max_voxels=max_voxels, allow_single_slice=allow_single_slice)
    return _open_dicom(wanted, max_voxels, allow_single_slice).volume()


def input_digest(source: Source, *, series: str | None = None) -> str:
    """`read_volume(source).source.sha256`, without decoding a pixel.

    Raises:
        InputError, OutOfScope, MachineError, UsageError: as `read_volume`, where it shows before decoding.
    """
    wanted = as_input(source, series)
    if isinstance(wanted, VolumeInput) and is_nifti_name(wanted.path):
        _refuse_series(wanted)
        with machine_errors(wanted.path):
            return sha256_of_file(wanted.path)
    return _open_dicom(wanted).digest


def _open_dicom(
    wanted: VolumeInput | tuple[Path, ...], max_voxels: int = MAX_VOXELS, allow_single_slice: bool = False
) -> OpenedDicom:
    from meddinov3_stroke.ct.dicom.read import open_dicom  # pydicom is loaded for DICOM alone

    source, series = (wanted.path, wanted.series_uid) if isinstance(wanted, VolumeInput) else (wanted, None)
    return open_dicom(source, series, max_voxels=max_voxels, allow_single_slice=allow_single_slice)


def as_input(source: Source, series: str | None = None) -> VolumeInput | tuple[Path, ...]:
    """`source` as an input with the series it names, or as DICOM files.

    Raises:
        UsageError: no files, a series named beside single files, or another series than the input's own.
    """
    if isinstance(source, VolumeInput):
        if series is not None and source.series_uid not in (None, series):
            raise UsageError(f"series {series} asked of an input that names series {source.series_uid}; name one")
        return VolumeInput(source.path, series or source.series_uid)
    if isinstance(source, (str, Path)):
        return VolumeInput(Path(source), series)
    if series is not None:
        raise UsageError("a series named beside single files; give the files of that series alone")
    if not source:
        raise UsageError("no files named; expected the DICOM files of one series")
    return tuple(Path(path) for path in source)


def source_path(source: Source) -> Path:
    """The path that stands for `source` in messages and names: of files, their folder."""
    wanted = as_input(source)
    return wanted.path if isinstance(wanted, VolumeInput) else wanted[0].parent


def _refuse_series(wanted: VolumeInput) -> None:
    if wanted.series_uid is not None:
        raise UsageError(f"{wanted.path} is NIfTI and holds no series {wanted.series_uid}; leave --series out")
