"""Points, simple solids and smooth fields to build anatomy from.

Distances are positive inside a solid and negative outside it, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

Number = int | float
"""Spelt out, since the run-time checks of the tests do not take an int for a float."""
Vector = tuple[Number, Number, Number]
"""Head coordinates (x, y, z), in mm where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Points:
    """Head coordinates in mm of some voxels."""

    x: Float32[np.ndarray, " n"]
    y: Float32[np.ndarray, " n"]
    z: Float32[np.ndarray, " n"]

    def __getitem__(self, chosen: Bool[np.ndarray, " n"]) -> Points:
        """Those that are chosen."""
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])


def ellipsoid(points: Points, centre_mm: Vector, half_mm: Vector) -> Float32[np.ndarray, " n"]:
    """Approximate distance to the surface of an ellipsoid with its axes along x, y and z; positive inside."""
    u = (points.x - centre_mm[0]) / half_mm[0]
    v = (points.y - centre_mm[1]) / half_mm[1]
    w = (points.z - centre_mm[2]) / half_mm[2]
    return np.asarray((np.float32(1) - np.sqrt(u * u + v * v + w * w)) * np.float32(min(half_mm)))


def capsule(
    points: Points,
    start_mm: Vector,
    end_mm: Vector,
    start_radius_mm: Number,
    end_radius_mm: Number,
) -> Float32[np.ndarray, " n"]:
    """Distance to the surface of a rod whose radius changes from start to end; positive inside."""
    ax, ay, az = (np.float32(e - s) for s, e in zip(start_mm, end_mm, strict=True))
    px, py, pz = points.x - start_mm[0], points.y - start_mm[1], points.z - start_mm[2]
    along = np.clip((px * ax + py * ay + pz * az) / (ax * ax + ay * ay + az * az), 0, 1)
    px, py, pz = px - along * ax, py - along * ay, pz - along * az
    radius = np.float32(start_radius_mm) + along * np.float32(end_radius_mm - start_radius_mm)
    return np.asarray(radius - np.sqrt(px * px + py * py + pz * pz))


def ramp(distance_mm: Float[np.ndarray, " n"], width_mm: Number) -> Float32[np.ndarray, " n"]:
    """Share of a voxel inside a surface, from 0 to 1 over `width_mm` around it."""
    return np.asarray(np.clip(distance_mm * np.float32(1 / width_mm) + np.float32(0.5), 0, 1))


def smoothstep(value: Float32[np.ndarray, " n"], low: Number, high: Number) -> Float32[np.ndarray, " n"]:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (np.float32(3) - np.float32(2) * t))


def paint(
    hu: Float32[np.ndarray, " n"], distance_mm: Float32[np.ndarray, " n"], width_mm: Number, value: Number
) -> None:
    """Blend `value` into `hu`, in place, inside the surface where `distance_mm` is 0."""
    share = ramp(distance_mm, width_mm)
    hu += share * (np.float32(value) - hu)


def plane_waves(
    points: Points, random: np.random.Generator, wavelength_mm: Number, n_waves: int
) -> Float32[np.ndarray, " n"]:
    """A smooth random field of unit variance: plane waves of one wavelength in random directions."""
    field = np.zeros_like(points.x)
    for _ in range(n_waves):
        direction = random.normal(size=3)
        wave = (direction / np.linalg.norm(direction) * (2 * np.pi / wavelength_mm)).astype(np.float32)
        phase = np.float32(random.uniform(0, 2 * np.pi))
        field += np.sin(points.x * wave[0] + points.y * wave[1] + points.z * wave[2] + phase)
    return field * np.float32(np.sqrt(2 / n_waves))


def smooth_union(
    first_mm: Float32[np.ndarray, " n"], second_mm: Float32[np.ndarray, " n"], blend_mm: Number
) -> Float32[np.ndarray, " n"]:
    """Distance into two solids that flow into each other over `blend_mm`."""
    overlap = np.maximum(np.float32(blend_mm) - np.abs(first_mm - second_mm), 0)
    return np.asarray(np.maximum(first_mm, second_mm) + overlap * overlap * np.float32(0.25 / blend_mm))
