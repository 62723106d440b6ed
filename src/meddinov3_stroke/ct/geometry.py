"""Where voxels lie: the affine of a NIfTI header, and the one canonical orientation of slices, rows and columns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float64, Real
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from meddinov3_stroke.errors import CorruptInput, OutOfScope, UnsupportedInput

SPACING_RANGE_MM = (1e-3, 1e3)
"""A voxel side outside this range is damage, not a scan."""

MAX_OFFSET_MM = 1e6
"""A volume further from the scanner's origin than a kilometre is damage."""

MIN_DETERMINANT = 1e-2
"""Least volume spanned by the unit axes (1 when square, cos(tilt) for a sheared gantry tilt): below it the axes lie
within about half a degree of one plane."""

AGREEMENT_VOXELS = 0.5
"""sform and qform agree when no corner moves by more than this share of the smallest voxel side; float32 quaternions
near 180 degrees are good to about 0.3 of it."""

SPACING_AGREEMENT = 0.01
"""Relative difference between `pixdim` and the affine's voxel sides that is worth a warning."""

MAX_TILT_DEGREES = 45.0
"""Slices whose axis or plane is further off axial are refused."""

TIE = 1e-5
"""Relative difference below which float32 header fields are equal."""

MAX_SPACING_RATIO = 2.0
"""Another axis with a spacing this many times the slice axis's: the volume was acquired along that axis."""


@dataclass(frozen=True, eq=False)
class Orientation:
    """How the file's axes become slices, rows and columns."""

    axes: tuple[int, int, int]
    """The file's axis that is the canonical slice, row and column axis."""
    flips: tuple[bool, bool, bool]
    """Whether that axis runs backwards in the file."""

    def file_view(self, stored: Real[np.ndarray, "slice row col"]) -> Real[np.ndarray, "i j k"]:
        """A view of canonical voxels in the file's axis order: what is written to it lands in its canonical place."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return stored[steps].transpose(np.argsort(self.axes))

    def apply_to_affine(
        self, affine: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]
    ) -> Float64[np.ndarray, "4 4"]:
        """The affine of the canonical index (slice, row, col, 1), for the affine and shape of the file's axes."""
        to_file = np.zeros((4, 4))
        to_file[3, 3] = 1.0
        for canonical, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_file[axis, canonical] = -1.0 if flip else 1.0
            to_file[axis, 3] = shape[axis] - 1 if flip else 0.0
        return affine @ to_file


def read_affine(
    fields: Nifti1Header, shape: tuple[int, int, int], path: Path
) -> tuple[Float64[np.ndarray, "4 4"], tuple[str, ...]]:
    """The affine from the file's voxel index to RAS+ mm, and warnings; the sform wins over the qform.

    Raises:
        CorruptInput: voxel sides, sform or qform are not finite, not positive, or span no volume.
        UnsupportedInput: neither an sform nor a qform is set, so that left and right are unknown.
    """
    _require_spacing(np.asarray(fields["pixdim"][1 : 1 + min(int(fields["dim"][0]), 3)], dtype=np.float64), path)
    sform_code, qform_code = int(fields["sform_code"]), int(fields["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        raise UnsupportedInput(
            f"{path}: sform_code and qform_code are {sform_code} and {qform_code}, so left, right, top and bottom are "
            "unknown; expected one above 0; convert again from DICOM with dcm2niix"
        )
    qform = _qform(fields) if qform_code > 0 else None
    if sform_code <= 0:
        if qform is None:
            raise CorruptInput(f"{path}: the qform's quaternion is no rotation, and there is no sform; fetch it again")
        return _require_affine(qform, "qform", path), ()
    sform = _require_affine(np.asarray(cast("Any", fields).get_sform(), dtype=np.float64), "sform", path)
    return sform, _disagreements(sform, qform, qform_code, fields, shape)


def _qform(fields: Nifti1Header) -> Float64[np.ndarray, "4 4"] | None:
    """The qform, or None where its quaternion or offset is no rotation or place; any qfac but a negative one is 1."""
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    if not np.isfinite([float(fields[name]) for name in names]).all():
        return None
    sane = cast("Any", fields).copy()
    sane["pixdim"][0] = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    try:
        return np.asarray(sane.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None


def _require_spacing(spacing_mm: Float64[np.ndarray, " axis"], path: Path) -> None:
    low, high = SPACING_RANGE_MM
    if not np.all((spacing_mm >= low) & (spacing_mm <= high)):
        shown = " x ".join(f"{side:g}" for side in spacing_mm)
        raise CorruptInput(
            f"{path}: voxel sides are {shown} mm; expected {low:g} to {high:g}; the header is damaged; convert it again"
        )


def _require_affine(affine: Float64[np.ndarray, "4 4"], name: str, path: Path) -> Float64[np.ndarray, "4 4"]:
    if not (np.isfinite(affine).all() and np.abs(affine[:3, 3]).max() <= MAX_OFFSET_MM):
        raise CorruptInput(f"{path}: the {name} holds NaN, infinity or an absurd offset; convert it again")
    sides_mm = voxel_sides(affine)
    _require_spacing(sides_mm, path)
    determinant = abs(float(np.linalg.det(affine[:3, :3] / sides_mm)))
    if determinant < MIN_DETERMINANT:
        raise CorruptInput(
            f"{path}: the axes of the {name} span no volume (determinant {determinant:.2g} of unit axes, at least "
            f"{MIN_DETERMINANT:g} needed); the header is damaged; convert it again"
        )
    return affine


def voxel_sides(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " axis"]:
    """Distance in mm between neighbours along each index axis."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)


def _disagreements(
    sform: Float64[np.ndarray, "4 4"],
    qform: Float64[np.ndarray, "4 4"] | None,
    qform_code: int,
    fields: Nifti1Header,
    shape: tuple[int, int, int],
) -> tuple[str, ...]:
    """Warnings where the header says one thing in the sform and another in the qform or the voxel sides."""
    sides_mm = voxel_sides(sform)
    if qform is not None:
        moved_mm = _largest_move_mm(sform, qform, shape)
        if not moved_mm <= AGREEMENT_VOXELS * sides_mm.min():
            return (f"sform and qform disagree by up to {moved_mm:.1f} mm; the sform is taken",)
        return ()
    if qform_code > 0:
        return ("the qform's quaternion is no rotation; the sform is taken",)
    pixdim = np.asarray(fields["pixdim"][1:4], dtype=np.float64)
    if int(fields["dim"][0]) > 2 and not np.allclose(pixdim, sides_mm, rtol=SPACING_AGREEMENT, atol=0.0):
        shown = [" x ".join(f"{side:.3g}" for side in sides) for sides in (pixdim, sides_mm)]
        return (f"voxel sides are {shown[0]} mm in pixdim and {shown[1]} mm in the sform; the sform is taken",)
    return ()


def _largest_move_mm(
    a: Float64[np.ndarray, "4 4"], b: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]
) -> float:
    """How far apart two affines put any corner voxel."""
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*((0.0, n - 1.0) for n in shape))])
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())


def axial_orientation(affine: Float64[np.ndarray, "4 4"], path: Path) -> Orientation:
    """`canonical_orientation` of a grid whose slice axis nothing but the affine names.

    Raises:
        OutOfScope: slices more than 45 degrees off axial, or thicker along another axis.
    """
    orientation = canonical_orientation(affine)
    _require_axial(affine, orientation.axes, path)
    return orientation


def canonical_orientation(affine: Float64[np.ndarray, "4 4"]) -> Orientation:
    """How the file's axes become slices (inferior -> superior), rows (to posterior) and columns (to patient left).

    The slice axis is the one nearest to superior; of the other two the pair nearest to its directions. Nothing is
    resampled: an oblique volume keeps its grid.
    """
    units = affine[:3, :3] / voxel_sides(affine)
    slice_axis = int(np.argmax(np.abs(units[2])))
    row_axis, col_axis = _row_and_column_axis(units, *(axis for axis in range(3) if axis != slice_axis))
    return Orientation(
        axes=(slice_axis, row_axis, col_axis),
        flips=(bool(units[2, slice_axis] < 0), bool(units[1, row_axis] > 0), bool(units[0, col_axis] > 0)),
    )


def _row_and_column_axis(units: Float64[np.ndarray, "3 3"], first: int, second: int) -> tuple[int, int]:
    """Of two index axes the one nearer to the anterior-posterior and the one nearer to the right-left direction."""
    straight = abs(units[1, first]) + abs(units[0, second])
    crossed = abs(units[1, second]) + abs(units[0, first])
    if abs(straight - crossed) < TIE:  # turned by 45 degrees: decide by what no order or flip of the axes changes
        return (first, second) if units[0, first] * units[1, first] > 0 else (second, first)
    return (first, second) if straight > crossed else (second, first)


def _require_axial(affine: Float64[np.ndarray, "4 4"], axes: tuple[int, int, int], path: Path) -> None:
    sides_mm = voxel_sides(affine)
    slice_axis, row_axis, col_axis = (affine[:3, axis] / sides_mm[axis] for axis in axes)
    normal = np.cross(row_axis, col_axis)
    cosine = min(abs(slice_axis[2]), abs(normal[2]) / np.linalg.norm(normal))
    angle = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if angle > MAX_TILT_DEGREES * (1 - TIE):  # at 45 degrees two axes are equally near to superior
        raise OutOfScope(
            f"{path}: slices stand {angle:.0f} degrees off axial; at most {MAX_TILT_DEGREES:g} are taken; give the "
            "axial series"
        )
    slice_mm, in_plane_mm = float(sides_mm[axes[0]]), float(max(sides_mm[axes[1]], sides_mm[axes[2]]))
    if in_plane_mm >= MAX_SPACING_RATIO * slice_mm * (1 - TIE):
        raise OutOfScope(
            f"{path}: spacing is {slice_mm:.3g} mm from bottom to top but {in_plane_mm:.3g} mm along another axis, so "
            "the slices are not axial (sagittal or coronal?); give the axial series"
        )
