"""A DICOM input read as a volume, or its digest alone: folder, archive, list, header index, file or files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meddinov3_stroke.ct.contents import machine_errors, require_dicom_input
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.header_index import files_of_series, is_header_index
from meddinov3_stroke.ct.dicom.reading import find_stack, read_stack, stack_digest
from meddinov3_stroke.ct.dicom.stacks import Stack
from meddinov3_stroke.ct.dicom.survey import Survey
from meddinov3_stroke.types import Volume, VolumeInput


def read_dicom(wanted: VolumeInput | tuple[Path, ...], *, max_voxels: int, allow_single_slice: bool) -> Volume:
    """The volume in a DICOM input; as `read_volume` says."""
    with _found(wanted, allow_single_slice) as (found, stack, path):
        return read_stack(found, stack, path, max_voxels=max_voxels)


def dicom_digest(wanted: VolumeInput | tuple[Path, ...]) -> str:
    """Digest of the files that the volume of a DICOM input is read from; as `input_digest` says."""
    with _found(wanted) as (found, stack, _):
        return stack_digest(stack, found.files)


@contextmanager
def _found(
    wanted: VolumeInput | tuple[Path, ...], allow_single_slice: bool = False
) -> Iterator[tuple[Survey, Stack, Path]]:
    """What the input holds, the stack to read of it, and the path that stands for it."""
    if isinstance(wanted, tuple):
        with open_files(wanted) as files:
            path = wanted[0].parent
            yield *find_stack(files, None, str(path), allow_single_slice=allow_single_slice), path
        return
    path, series_uid = wanted.path, wanted.series_uid
    with machine_errors(path):
        require_dicom_input(path)
    of_index = files_of_series(path, series_uid) if is_header_index(path) else None
    with open_files(path if of_index is None else of_index) as files:
        where = str(path) if of_index is None else f"{path}, series {series_uid}"
        yield *find_stack(files, series_uid, where, allow_single_slice=allow_single_slice), path
