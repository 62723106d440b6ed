"""The skull, the face and the scalp, and how deep a point lies in the cavity of the skull."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.solids import Points, capsule, ellipsoid, paint, plane_waves, ramp, smoothstep
from meddinov3_stroke.phantom.spec import HeadSpec

AIR_HU, FAT_HU, SKIN_HU, MUSCLE_HU, CORTICAL_HU, DIPLOE_HU = -1000.0, -85.0, 35.0, 55.0, 1250.0, 550.0
"""Typical CT numbers of what lies around the brain."""


@dataclass(frozen=True, eq=False)
class Shell:
    """Where points lie with respect to the skull."""

    vault_mm: Float32[np.ndarray, " n"]
    """Depth below the inner table of the vault along the ray to it; negative outside."""
    floor_mm: Float32[np.ndarray, " n"]
    """Height above the floor of the skull."""
    petrous_mm: Float32[np.ndarray, " n"]
    """Distance from the petrous bones; negative inside them."""

    @property
    def depth_mm(self) -> Float32[np.ndarray, " n"]:
        """Depth below the inner surface of the whole skull; negative outside the cavity."""
        return np.asarray(np.minimum(np.minimum(self.vault_mm, self.floor_mm), self.petrous_mm))


def vault_gauge(
    head: HeadSpec, x: Float32[np.ndarray, "*n"], y: Float32[np.ndarray, "*n"], z: Float32[np.ndarray, "*n"]
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """(gauge, radius): the gauge is 1 on the inner table and grows in proportion along the ray from the centre; the
    radius is the distance in mm along that ray. Below the origin the rays are horizontal."""
    taper = np.float32(1) - np.float32(0.2 / 60**2) * np.square(np.clip(z, -60, 0))
    v = y * np.float32(1 / head.half_length_mm)
    u = x / (np.float32(head.half_width_mm) * (np.float32(1) - np.float32(head.egg) * v) * taper)
    v = v / taper
    up = np.maximum(z, 0)
    w = up * np.float32(1 / head.height_mm)
    u2, v2, w2 = u * u, v * v, w * w
    square = u2 + v2 + w2
    fourth = square * (square + np.float32(2 * head.skew) * u * v) - np.float32(head.squareness) * u2 * v2
    gauge = np.sqrt(np.sqrt(np.maximum(fourth, 1e-8)))
    return gauge, np.sqrt(x * x + y * y + up * up)


def vault_depth(
    head: HeadSpec, x: Float32[np.ndarray, "*n"], y: Float32[np.ndarray, "*n"], z: Float32[np.ndarray, "*n"]
) -> Float32[np.ndarray, "*n"]:
    """Depth in mm below the inner table of the vault, along the ray; negative outside."""
    gauge, radius = vault_gauge(head, x, y, z)
    return np.asarray(radius / gauge - radius)


def shell_of(points: Points, vault_mm: Float32[np.ndarray, " n"]) -> Shell:
    """Where the points lie with respect to vault, floor and petrous bones."""
    side = Points(np.abs(points.x), points.y, points.z)
    anterior = smoothstep(points.y, 12, 32)
    posterior = smoothstep(-points.y, -4, 22)
    middle = np.float32(-27) - np.float32(15) * smoothstep(side.x, 10, 24)
    floor = anterior * np.float32(-21) + posterior * np.float32(-66)
    floor += (np.float32(1) - anterior - posterior) * middle
    petrous = -capsule(side, (17, -6, -41), (60, -24, -32), 6.5, 9.0)
    return Shell(vault_mm, (points.z - floor) * np.float32(0.85), petrous)


def paint_outside(hu: Float32[np.ndarray, " n"], points: Points, shell: Shell, head: HeadSpec) -> None:
    """Paint scalp, skull and face into `hu`, in place; the cavity itself is left to the brain."""
    random = np.random.default_rng([head.seed, 3])
    uneven = plane_waves(points, random, 70.0, 4)
    skull_mm = np.float32(head.skull_mm) * (np.float32(1) + np.float32(0.13) * uneven)
    outside = -shell.vault_mm
    scalp_mm = skull_mm + np.float32(head.scalp_mm)
    paint(hu, scalp_mm - outside + np.float32(1.5), 1.2, SKIN_HU)
    paint(hu, scalp_mm - outside, 1.2, FAT_HU)
    temporal = np.minimum(ellipsoid(Points(np.abs(points.x), points.y, points.z), (70, 18, -18), (16, 34, 34)), outside)
    paint(hu, temporal, 2.0, MUSCLE_HU)
    _paint_nose(hu, points, head, random)
    _paint_bone(hu, shell, skull_mm)
    low = (points.z < 2) & (shell.depth_mm < 1)
    face = hu[low]
    _paint_face(face, points[low], shell, low, random)
    hu[low] = face


def _paint_bone(hu: Float32[np.ndarray, " n"], shell: Shell, skull_mm: Float32[np.ndarray, " n"]) -> None:
    outside = -shell.vault_mm
    wall = np.minimum(skull_mm - outside, shell.floor_mm + np.float32(9))
    wall = np.minimum(wall, -shell.depth_mm + np.float32(0.6))
    paint(hu, wall, 1.2, CORTICAL_HU)
    diploe = skull_mm * np.float32(0.22) - np.abs(outside - skull_mm * np.float32(0.5))
    paint(hu, np.minimum(diploe, wall), 1.5, DIPLOE_HU)
    paint(hu, np.minimum(-shell.petrous_mm, skull_mm - outside), 1.5, CORTICAL_HU)


def _paint_nose(hu: Float32[np.ndarray, " n"], points: Points, head: HeadSpec, random: np.random.Generator) -> None:
    front = head.half_length_mm + head.skull_mm + head.scalp_mm
    nose = capsule(points, (0, front - 8, -28), (0, front + 10, -58), 7.0, 11.0)
    paint(hu, nose, 1.5, SKIN_HU)


def _paint_face(
    hu: Float32[np.ndarray, " n"], points: Points, shell: Shell, low: np.ndarray, random: np.random.Generator
) -> None:
    below = -shell.floor_mm[low]
    inner = shell.vault_mm[low]
    inside = np.minimum(inner + np.float32(3), below - np.float32(5))
    paint(hu, inside, 2.0, MUSCLE_HU)
    side = Points(np.abs(points.x), points.y, points.z)
    orbit = capsule(side, (31, 66, -38), (16, 28, -32), 17.0, 6.0)
    paint(hu, orbit + np.float32(2.0), 1.5, 700.0)
    paint(hu, orbit, 1.5, FAT_HU)
    paint(hu, ellipsoid(side, (32, 68, -38), (12, 12, 12)), 1.2, 14.0)
    paint(hu, capsule(side, (31, 57, -38), (17, 30, -33), 2.0, 2.0), 1.5, 35.0)
    cells = plane_waves(points, random, 11.0, 6)
    ethmoid = np.minimum(ellipsoid(points, (0, 48, -42), (13, 30, 17)), np.float32(1.2) - cells)
    sphenoid = np.minimum(ellipsoid(points, (2, 18, -42), (14, 12, 11)), below - np.float32(3))
    frontal = ellipsoid(points, (4, 84, -12), (16, 5, 12))
    mastoid = np.minimum(ellipsoid(side, (56, -28, -46), (14, 15, 20)), np.float32(0.5) - cells)
    paint(hu, np.minimum(ellipsoid(side, (56, -28, -46), (17, 18, 24)), -shell.depth_mm[low]), 1.5, 900.0)
    for cavity in (ethmoid, sphenoid, np.minimum(frontal, -inner - np.float32(2)), mastoid):
        paint(hu, np.minimum(cavity, -shell.depth_mm[low] - np.float32(1.5)), 1.5, -930.0)


def paint_holder(
    hu: Float32[np.ndarray, "slice row col"],
    x: Float32[np.ndarray, "slice row col"],
    y: Float32[np.ndarray, "slice row col"],
    head: HeadSpec,
) -> None:
    """Paint a thin head-holder behind the head, in place."""
    radius = np.sqrt(np.square(x) + np.square(y + np.float32(18)))
    rim = head.half_length_mm + head.skull_mm + head.scalp_mm - 18 + 14
    share = np.float32(1.3) - np.abs(radius - np.float32(rim))
    behind = np.minimum(share, -y - np.float32(45))
    share = ramp(behind.reshape(-1), 1.2).reshape(hu.shape) * (hu < -900)
    hu += share * (np.float32(-180) - hu)
