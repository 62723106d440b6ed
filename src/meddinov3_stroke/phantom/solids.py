"""Points, simple solids and smooth random fields to build anatomy from.

Distances are in mm, positive inside a solid and negative outside it. All arrays are float32, and stay float32 when they
are combined with Python numbers.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from meddinov3_stroke.phantom.spec import HeadSpec, Number, Vector

Field = Float32[np.ndarray, " n"]
"""One value for each point."""
Mask = Bool[np.ndarray, " n"]


class Points(NamedTuple):
    """Head coordinates in mm of some voxels."""

    x: Field
    y: Field
    z: Field

    def at(self, chosen: Mask) -> Points:
        """The chosen points."""
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])

    def on_right(self) -> Points:
        """The points with the left half mirrored to the right, for anatomy that both sides share."""
        return Points(np.abs(self.x), self.y, self.z)


def ellipsoid(points: Points, centre_mm: Vector, half_mm: Vector) -> Field:
    """Approximate distance to the surface of an ellipsoid with its axes along x, y and z."""
    u, v, w = ((axis - centre) / half for axis, centre, half in zip(points, centre_mm, half_mm, strict=True))
    return np.asarray((1 - np.sqrt(u * u + v * v + w * w)) * min(half_mm))


def capsule(points: Points, start_mm: Vector, end_mm: Vector, start_radius_mm: Number, end_radius_mm: Number) -> Field:
    """Distance to the surface of a rod whose radius changes from start to end."""
    ax, ay, az = (np.float32(end - start) for start, end in zip(start_mm, end_mm, strict=True))
    px, py, pz = (axis - start for axis, start in zip(points, start_mm, strict=True))
    along = np.clip((px * ax + py * ay + pz * az) / (ax * ax + ay * ay + az * az), 0, 1)
    px, py, pz = px - along * ax, py - along * ay, pz - along * az
    radius = start_radius_mm + along * (end_radius_mm - start_radius_mm)
    return np.asarray(radius - np.sqrt(px * px + py * py + pz * pz))


def union(*distances_mm: Field) -> Field:
    """Distance into any of the solids."""
    return reduce(np.maximum, distances_mm)


def intersection(*distances_mm: Field) -> Field:
    """Distance into all of the solids at once."""
    return reduce(np.minimum, distances_mm)


def smooth_union(first_mm: Field, second_mm: Field, blend_mm: Number) -> Field:
    """Distance into two solids that flow into each other over `blend_mm`."""
    overlap = np.maximum(blend_mm - np.abs(first_mm - second_mm), 0)
    return np.asarray(np.maximum(first_mm, second_mm) + overlap * overlap * (0.25 / blend_mm))


def ramp(distance_mm: Field, width_mm: Number) -> Field:
    """Share of a voxel inside a surface, from 0 to 1 over `width_mm` around it."""
    return np.asarray(np.clip(distance_mm * (1 / width_mm) + 0.5, 0, 1))


def smoothstep(value: Field, low: Number, high: Number) -> Field:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def paint(hu: Field, distance_mm: Field, width_mm: Number, value: Number) -> None:
    """Blend `value` into `hu`, in place, inside the surface where `distance_mm` is 0."""
    hu += ramp(distance_mm, width_mm) * (value - hu)


def plane_waves(points: Points, random: np.random.Generator, wavelength_mm: Number, n_waves: int) -> Field:
    """A smooth random field of unit variance: plane waves of one wavelength in random directions."""
    field = np.zeros_like(points.x)
    for _ in range(n_waves):
        direction = random.normal(size=3)
        wave = (direction / np.linalg.norm(direction) * (2 * np.pi / wavelength_mm)).astype(np.float32)
        phase = random.uniform(0, 2 * np.pi)
        field += np.sin(points.x * wave[0] + points.y * wave[1] + points.z * wave[2] + phase)
    return field * math.sqrt(2 / n_waves)


def vault_gauge(
    head: HeadSpec, x: Float32[np.ndarray, "*n"], y: Float32[np.ndarray, "*n"], z: Float32[np.ndarray, "*n"]
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """(gauge, radius): the gauge is 1 on the inner table and grows in proportion along the ray from the centre; the
    radius is the distance in mm along that ray. Below the origin the rays are horizontal."""
    taper = 1 - (0.2 / 60**2) * np.square(np.clip(z, -60, 0))
    v = y * (1 / head.half_length_mm)
    u = x / (head.half_width_mm * (1 - head.egg * v) * taper)
    v = np.where(y < 0, v / taper, v)
    up = np.maximum(z, 0)
    w = up * (1 / head.height_mm)
    u2, v2, w2 = u * u, v * v, w * w
    square = u2 + v2 + w2
    fourth = square * (square + 2 * head.skew * u * v) - head.squareness * u2 * v2
    gauge = np.sqrt(np.sqrt(np.maximum(fourth, 1e-8)))
    return gauge, np.sqrt(x * x + y * y + up * up)
