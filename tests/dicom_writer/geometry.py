"""Where the slices of a DICOM series lie: each its own position, in the patient's coordinates (LPS, mm)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Real

Number = int | float
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's axes run to left and posterior, NIfTI's to right and anterior."""
SIGNIFICANT_DIGITS = 10
"""Of a number in a header: DICOM's decimal strings hold 16 characters, sign, point and exponent included."""
DECIMALS = 12
"""Kept of a number close to 0, so that its exponent has two digits."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Where one image lies."""

    position_mm: Float64[np.ndarray, " 3"]
    """LPS, centre of the first voxel: Image Position (Patient)."""
    row_direction: Float64[np.ndarray, " 3"]
    """Unit vector, LPS, in which the column index grows: first half of Image Orientation (Patient)."""
    column_direction: Float64[np.ndarray, " 3"]
    """Unit vector, LPS, in which the row index grows."""
    pixel_spacing_mm: tuple[float, float]
    """(between rows, between columns)."""
    shape: tuple[int, int]
    """(rows, columns)."""
    thickness_mm: float

    @property
    def voxel_positions_mm(self) -> Float64[np.ndarray, "row col 3"]:
        """LPS of every voxel centre (DICOM PS3.3 C.7.6.2.1.1)."""
        down = np.arange(self.shape[0])[:, None, None] * (self.pixel_spacing_mm[0] * self.column_direction)
        across = np.arange(self.shape[1])[None, :, None] * (self.pixel_spacing_mm[1] * self.row_direction)
        return np.asarray(self.position_mm + down + across)


@dataclass(frozen=True, eq=False)
class SliceGeometry:
    """Where each slice of a series lies. Every number is one that a decimal string holds exactly."""

    positions_mm: Float64[np.ndarray, "slice 3"]
    """LPS, centre of the first voxel of each slice: Image Position (Patient)."""
    row_direction: Float64[np.ndarray, " 3"]
    """Unit vector, LPS, in which the column index grows: first half of Image Orientation (Patient)."""
    column_direction: Float64[np.ndarray, " 3"]
    """Unit vector, LPS, in which the row index grows."""
    pixel_spacing_mm: tuple[float, float]
    """(between rows, between columns)."""
    shape: tuple[int, int]
    """(rows, columns)."""
    thickness_mm: float

    @property
    def normal(self) -> Float64[np.ndarray, " 3"]:
        """Unit vector at right angles to the slices; row direction, column direction and it are right-handed."""
        return np.cross(self.row_direction, self.column_direction)

    @property
    def gantry_tilt_degrees(self) -> float:
        """Angle by which the stack is sheared along its columns; positive raises the front, 0 is a single slice."""
        travel = self.positions_mm[-1] - self.positions_mm[0]
        length = float(np.linalg.norm(travel))
        if length == 0:
            return 0.0
        to_posterior = self.column_direction * np.sign(self.column_direction[1])
        slope = float(travel @ to_posterior) / length * float(np.sign(travel[2]))
        return -float(np.degrees(np.arcsin(np.clip(slope, -1, 1))))

    def plane(self, slice_index: int) -> Plane:
        """Where one slice lies."""
        return Plane(
            position_mm=self.positions_mm[slice_index],
            row_direction=self.row_direction,
            column_direction=self.column_direction,
            pixel_spacing_mm=self.pixel_spacing_mm,
            shape=self.shape,
            thickness_mm=self.thickness_mm,
        )


def as_written(values: Real[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The numbers that the decimal strings of `values` stand for."""
    flat = [float(decimal_string(value)) for value in np.ravel(values)]
    return np.reshape(np.array(flat, dtype=np.float64), np.shape(values))


def decimal_string(value: Number) -> str:
    """A number as DICOM's decimal string, at most 16 characters."""
    return f"{round(float(value), DECIMALS):.{SIGNIFICANT_DIGITS}g}"


def axial_geometry(
    spacings_mm: Sequence[Number],
    shape: tuple[int, int] = (64, 64),
    *,
    pixel_spacing_mm: tuple[Number, Number] = (3.5, 3.5),
    tilt_degrees: Number = 0.0,
    is_turned: bool = False,
    centre_mm: tuple[Number, Number, Number] = (0.0, 0.0, 0.0),
) -> SliceGeometry:
    """Axial slices as a scanner takes them: the couch moves along z, whatever the tilt of the gantry.

    Args:
        spacings_mm: Travel of the couch between neighbouring slices, inferior to superior; one fewer than slices.
        shape: (rows, columns).
        pixel_spacing_mm: (between rows, between columns).
        tilt_degrees: Of the gantry; positive raises the front. The stack is then sheared, as it is in life.
        is_turned: The image is turned by 180 degrees, as a viewer that shows the patient prone would have it.
        centre_mm: LPS of the middle of the stack.
    """
    angle = np.radians(float(tilt_degrees))
    sign = -1.0 if is_turned else 1.0
    row_direction = as_written(np.array([sign, 0.0, 0.0]))
    column_direction = as_written(sign * np.array([0.0, np.cos(angle), -np.sin(angle)]))
    heights = np.concatenate([[0.0], np.cumsum([float(step) for step in spacings_mm])])
    middle = np.array(centre_mm, dtype=np.float64) - np.array([0.0, 0.0, heights[-1] / 2])
    middle = middle - row_direction * float(pixel_spacing_mm[1]) * (shape[1] - 1) / 2
    middle = middle - column_direction * float(pixel_spacing_mm[0]) * (shape[0] - 1) / 2
    positions_mm = middle + heights[:, None] * np.array([0.0, 0.0, 1.0])
    return SliceGeometry(
        positions_mm=as_written(np.round(positions_mm, 6)),
        row_direction=row_direction,
        column_direction=column_direction,
        pixel_spacing_mm=(float(pixel_spacing_mm[0]), float(pixel_spacing_mm[1])),
        shape=shape,
        thickness_mm=float(min(spacings_mm, default=5.0)),
    )


def geometry_of_affine(affine: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]) -> SliceGeometry:
    """Where the slices of canonical voxels lie.

    Args:
        affine: Maps (slice, row, column, 1) to RAS+ mm.
        shape: (slices, rows, columns).
    """
    steps = affine[:3, :3] * LPS_TO_RAS[:, None]
    slice_mm, row_mm, column_mm = np.linalg.norm(steps, axis=0)
    first = affine[:3, 3] * LPS_TO_RAS
    positions_mm = first + np.arange(shape[0])[:, None] * steps[:, 0]
    spacing_mm = as_written(np.array([row_mm, column_mm]))
    return SliceGeometry(
        positions_mm=as_written(np.round(positions_mm, 6)),
        row_direction=as_written(steps[:, 2] / column_mm),
        column_direction=as_written(steps[:, 1] / row_mm),
        pixel_spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1])),
        shape=shape[1:],
        thickness_mm=round(float(slice_mm), 3),
    )


def sample_hu(
    hu_at: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], geometry: SliceGeometry
) -> Float32[np.ndarray, "slice row col"]:
    """A function HU(x, y, z) of RAS+ mm, taken at the centre of every voxel."""
    slices = []
    for index in range(len(geometry.positions_mm)):
        ras = geometry.plane(index).voxel_positions_mm * LPS_TO_RAS
        slices.append(np.asarray(hu_at(ras[..., 0], ras[..., 1], ras[..., 2]), dtype=np.float32))
    return np.stack(slices)


def nearest_hu(
    hu: Real[np.ndarray, "slice row col"], geometry: SliceGeometry, points_mm: Float64[np.ndarray, "*grid 3"]
) -> Real[np.ndarray, "*grid"]:
    """The voxel nearest to each point (LPS): the slice nearest along the normal, then the pixel nearest in it."""
    heights = geometry.positions_mm @ geometry.normal
    slices = np.abs(points_mm @ geometry.normal - heights[:, None, None]).argmin(axis=0)
    offsets = points_mm - geometry.positions_mm[slices]
    rows = np.rint(offsets @ geometry.column_direction / geometry.pixel_spacing_mm[0]).astype(int)
    columns = np.rint(offsets @ geometry.row_direction / geometry.pixel_spacing_mm[1]).astype(int)
    last_row, last_column = geometry.shape[0] - 1, geometry.shape[1] - 1
    return np.asarray(hu[slices, np.clip(rows, 0, last_row), np.clip(columns, 0, last_column)])


def coronal_planes(geometry: SliceGeometry, n_planes: int) -> tuple[Plane, ...]:
    """Planes at right angles to the slices, through the middle of the stack, evenly spaced from row to row; head up."""
    rows = (np.arange(n_planes) + 1) * geometry.shape[0] // (n_planes + 1)
    middle = geometry.positions_mm[len(geometry.positions_mm) // 2]
    upwards = geometry.normal * np.sign(geometry.normal[2])
    height_mm = geometry.pixel_spacing_mm[0] * (geometry.shape[0] - 1) / 2
    top = middle + upwards * height_mm
    return tuple(
        Plane(
            position_mm=as_written(np.round(top + row * geometry.pixel_spacing_mm[0] * geometry.column_direction, 6)),
            row_direction=geometry.row_direction,
            column_direction=as_written(-upwards),
            pixel_spacing_mm=geometry.pixel_spacing_mm,
            shape=geometry.shape,
            thickness_mm=geometry.thickness_mm,
        )
        for row in rows
    )
