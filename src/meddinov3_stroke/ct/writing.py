"""A volume as NIfTI: as acquired, on an even grid, or by dcm2niix; and the slice geometry that NIfTI cannot store.

An even grid is for tools that need one; inference never resamples between slices.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int16

from meddinov3_stroke.ct.contents import is_nifti_name
from meddinov3_stroke.errors import MachineError, UnsupportedInput, UsageError
from meddinov3_stroke.system.nifti_bytes import NIFTI_SUFFIX, nifti_bytes
from meddinov3_stroke.types import AIR_HU, Volume

POSITION_TOLERANCE_MM = 0.05
"""The position of a slice further than this from where the affine puts it is lost in NIfTI."""

METHOD = (
    "linear interpolation at each slice's own position; anti-aliasing where the grid is coarser: a triangle of the "
    "grid's spacing across slices, a Gaussian of (ratio - 1) / 2 pixels within; outside the volume -1000 HU"
)
"""How `resample` interpolates, in words."""

EDGE_TOLERANCE = 1e-4
"""Pixels beyond the outermost centres that still count as inside, against rounding."""

MAX_RESAMPLED_VOXELS = 2**29
"""Voxels above which a grid is refused: 512 x 1024 x 1024."""

PLAIN_NAME = "volume"
"""File name given to dcm2niix, which would replace %d, %p and the like in a name chosen by the user."""

TIMEOUT_S = 600
"""Seconds that dcm2niix may take for a series."""

_Plane = Float32[np.ndarray, "_ _"]
_Pair = Float64[np.ndarray, " 2"]


def nifti_bytes_of(volume: Volume, axis_codes: str = "LAS") -> bytes:
    """The bytes of a .nii.gz of a volume as acquired: voxels and scaling as stored, geometry by its affine."""
    scaling = {"slope": volume.slope, "intercept": volume.intercept}
    return nifti_bytes(volume.stored, volume.affine, **scaling, axis_codes=axis_codes)


def misplaced_mm(volume: Volume) -> float:
    """Largest distance of a slice from where the affine puts it, which is above 0 for unevenly spaced slices."""
    on_a_line = volume.affine[:3, 3] + np.arange(volume.n_slices)[:, None] * volume.affine[:3, 0]
    return float(np.linalg.norm(volume.slice_positions_mm - on_a_line, axis=1).max())


def slices_document(volume: Volume) -> dict[str, Any]:
    """Position, steps and image of each canonical slice, inferior to superior, in RAS+ mm."""
    return {
        "order": "canonical: slices inferior to superior, rows anterior to posterior, columns patient right to left",
        "slice_positions_mm": volume.slice_positions_mm.tolist(),
        "row_steps_mm": volume.slice_steps_mm[:, :, 0].tolist(),
        "column_steps_mm": volume.slice_steps_mm[:, :, 1].tolist(),
        "sop_instance_uids": [image.sop_instance_uid for image in volume.source.images] or None,
        "instance_numbers": [image.instance_number for image in volume.source.images] or None,
        "nifti_misplaces_slices_by_mm": round(misplaced_mm(volume), 4),
    }


@dataclass(frozen=True, eq=False)
class Resampled:
    """HU on an even grid: slices along the normal of the acquired ones, rows and columns along theirs."""

    hu: Int16[np.ndarray, "slice row col"]
    affine: Float64[np.ndarray, "4 4"]
    """Maps (slice, row, col, 1) to RAS+ mm."""
    n_clipped: int = 0
    """Voxels beyond the range of int16, set to its limit."""


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Resampled:
    """The volume on a grid of `spacing_mm` (slice, row, column); a gantry tilt is straightened by shifting slices.

    The grid spans from the first slice to the last, and in plane all that any slice covers. Raises `UsageError` for a
    spacing that is not above zero, or a grid of more than `MAX_RESAMPLED_VOXELS`.
    """
    if not all(np.isfinite(side) and side > 0 for side in spacing_mm):
        raise UsageError(f"--spacing {' '.join(map(str, spacing_mm))}: expected three numbers of mm above 0")
    sides_mm = np.linalg.norm(volume.slice_steps_mm[0], axis=0)
    row, column = (volume.slice_steps_mm[0] / sides_mm).T
    normal = np.cross(row, column)
    way = volume.slice_positions_mm[-1] - volume.slice_positions_mm[0]
    axes = np.stack([normal if normal @ way >= 0 else -normal, row, column])  # unit vectors in RAS+
    origins = volume.slice_positions_mm @ axes.T  # [slice, (normal, row, column)] mm along the grid's axes
    first, last = origins.min(axis=0), origins.max(axis=0)
    last[1:] += (np.array(volume.stored.shape[1:]) - 1) * sides_mm
    shape = tuple(int(n) + 1 for n in np.floor((last - first) / spacing_mm + 1e-6))
    if math.prod(shape) > MAX_RESAMPLED_VOXELS:
        raise UsageError(f"--spacing: a grid of {' x '.join(map(str, shape))} voxels; at most {MAX_RESAMPLED_VOXELS}")
    hu, n_clipped, limits = np.empty(shape, dtype=np.int16), 0, np.iinfo(np.int16)
    offsets, scale = (first[1:] - origins[:, 1:]) / sides_mm, np.array(spacing_mm[1:]) / sides_mm
    for k in range(shape[0]):
        weights = _slice_weights(origins[:, 0], first[0] + k * spacing_mm[0], spacing_mm[0])
        plane = np.zeros(hu.shape[1:], dtype=np.float32)
        for index, weight in weights.items():
            plane += weight * _moved_slice(volume.hu_slices([index])[0], offsets[index], scale, plane.shape)
        plane = np.rint(plane)
        hu[k] = plane.clip(limits.min, limits.max)
        n_clipped += int(np.count_nonzero(plane != hu[k]))
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.array(spacing_mm)
    affine[:3, 3] = axes.T @ first
    return Resampled(hu, affine, n_clipped)


def _slice_weights(distances_mm: Float64[np.ndarray, " slice"], at_mm: float, width_mm: float) -> dict[int, float]:
    """Slice -> its share in the plane at `at_mm`; shares add up to 1."""
    after = int(np.clip(np.searchsorted(distances_mm, at_mm), 1, len(distances_mm) - 1))
    gap = distances_mm[after] - distances_mm[after - 1]
    weights = np.clip(1 - np.abs(distances_mm - at_mm) / max(width_mm, gap), 0, None)
    if width_mm <= gap:  # only the two slices around it
        weights[: after - 1] = weights[after + 1 :] = 0
    return {int(k): float(weights[k] / weights.sum()) for k in np.flatnonzero(weights)}


def _moved_slice(hu: _Plane, offset: _Pair, scale: _Pair, shape: tuple[int, ...]) -> _Plane:
    """A slice on the grid, whose index (i, j) lies at pixel `offset + scale * (i, j)` of it."""
    from scipy import ndimage  # slow to import

    tol, blur = EDGE_TOLERANCE, np.clip((scale - 1) / 2, 0, None)
    if blur.any():
        hu = ndimage.gaussian_filter(hu, blur, mode="nearest")
    moved = ndimage.affine_transform(hu, scale, offset, shape, order=1, mode="nearest")
    places = (offset[i] + scale[i] * np.arange(shape[i]) for i in range(2))
    rows, columns = ((-tol <= at) & (at <= n - 1 + tol) for at, n in zip(places, hu.shape, strict=True))
    return np.where(rows[:, None] & columns, moved, np.float32(AIR_HU))


def dcm2niix_program() -> str:
    """The path of dcm2niix; MachineError if it is not installed."""
    program = shutil.which("dcm2niix")
    if program is None:
        raise MachineError("no dcm2niix on this machine; install it (pip install dcm2niix), or omit --dcm2niix")
    return program


def dcm2niix_files(source: Path, series_uid: str | None, *, join_series: bool = False) -> dict[str, bytes]:
    """Ending of a name -> content of each file of dcm2niix: `.nii.gz` first, then further ones (`_Tilt_Eq.nii.gz`).

    Raises:
        UnsupportedInput: NIfTI, or a series for which dcm2niix writes nothing.
        InputError: no series that can be read.
        MachineError: dcm2niix is not installed, or it failed.
    """
    program = dcm2niix_program()
    if is_nifti_name(source):
        raise UnsupportedInput(f"{source} is NIfTI already; dcm2niix converts DICOM")
    from meddinov3_stroke.ct.dicom.read import DicomInput  # pydicom is loaded for DICOM alone

    with TemporaryDirectory(prefix="dcm2niix-") as folder:
        images, converted = Path(folder, "images"), Path(folder, "converted")
        images.mkdir()
        converted.mkdir()
        for k, content in enumerate(DicomInput(source, series_uid, join_series=join_series).image_files()):
            (images / f"{k:05d}.dcm").write_bytes(content)
        _run([program, "-z", "y", "-b", "n", "-f", PLAIN_NAME, "-o", str(converted), str(images)])
        found = sorted(converted.glob(f"{PLAIN_NAME}*{NIFTI_SUFFIX}"), key=lambda path: len(path.name))
        contents = {path.name.removeprefix(PLAIN_NAME): path.read_bytes() for path in found}
    if not contents:
        raise UnsupportedInput(f"dcm2niix wrote nothing for {source}; convert it without --dcm2niix")
    return contents


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except OSError as error:
        raise MachineError(f"dcm2niix cannot be run ({error.strerror}); install it again") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"dcm2niix did not end within {TIMEOUT_S} s") from error
    if done.returncode:
        message = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise MachineError(f"dcm2niix failed with {done.returncode}: {message[0]}")
