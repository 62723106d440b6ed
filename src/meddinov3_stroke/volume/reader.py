"""One door for volumes: what the path is decides who reads it."""

from __future__ import annotations

from pathlib import Path

from meddinov3_stroke.types import Volume
from meddinov3_stroke.volume.contents import machine_errors, require_nifti
from meddinov3_stroke.volume.nifti import read_nifti

MAX_VOXELS = 2**28
"""Voxels above which a header is refused unread: 1024 slices of 512x512, far above any head CT."""


def read_volume(path: Path | str, *, max_voxels: int = MAX_VOXELS, allow_single_slice: bool = False) -> Volume:
    """The head CT at `path`, in canonical orientation, after its container was checked to the last byte.

    Reads .nii and .nii.gz (NIfTI-1 and NIfTI-2). The container is judged here; whether the picture is a head CT is not.

    Args:
        path: the file.
        max_voxels: refuse a header that declares more, before anything is allocated.
        allow_single_slice: take a 2-D image or a volume of one slice.

    Raises:
        MissingInput: no such file, an empty one, or a directory.
        CorruptInput: truncated, changed, or contradicting itself; too many voxels that are no number.
        UnsupportedInput: a sound file of another kind (named), or a NIfTI that is no 3-D scalar volume in mm.
        OutOfScope: a single slice, or slices more than 45 degrees off axial.
        MachineError: the file cannot be opened or read for the machine's own reasons.
    """
    path = Path(path)
    with machine_errors(path):
        require_nifti(path)
        return read_nifti(path, max_voxels=max_voxels, allow_single_slice=allow_single_slice)
