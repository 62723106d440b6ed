"""The skull, the face and the scalp, and how deep a point lies in the cavity of the skull."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from meddinov3_stroke.phantom.solids import Points, capsule, ellipsoid, paint, plane_waves, ramp, smoothstep
from meddinov3_stroke.phantom.spec import HeadSpec

AIR_HU, FAT_HU, SKIN_HU, MUSCLE_HU, THIN_BONE_HU, CORTICAL_HU, DIPLOE_HU = (
    -1000.0,
    -85.0,
    45.0,
    55.0,
    700.0,
    1250.0,
    550.0,
)
"""Typical CT numbers of what lies around the brain."""
SINUS_HU, EYE_HU, PLASTIC_HU = -930.0, 14.0, 110.0
"""Of paranasal air, of the eyeball and of the head-holder."""
SKIN_MM = 2.2
"""Thickness of the skin over the fat of the scalp."""
HOLDER_GAP_MM = 7.0
"""Distance between the back of the head and the head-holder."""


@dataclass(frozen=True, eq=False)
class Shell:
    """Where points lie with respect to the skull."""

    vault_mm: Float32[np.ndarray, " n"]
    """Depth below the inner table of the vault along the ray to it; negative outside."""
    floor_mm: Float32[np.ndarray, " n"]
    """Height above the floor of the skull."""
    petrous_mm: Float32[np.ndarray, " n"]
    """Distance from the petrous bones; negative inside them."""
    depth_mm: Float32[np.ndarray, " n"]
    """Depth below the inner surface of the whole skull; negative outside the cavity."""

    def __getitem__(self, chosen: Bool[np.ndarray, " n"]) -> Shell:
        """The shell at the chosen points."""
        return Shell(self.vault_mm[chosen], self.floor_mm[chosen], self.petrous_mm[chosen], self.depth_mm[chosen])


def vault_gauge(
    head: HeadSpec, x: Float32[np.ndarray, "*n"], y: Float32[np.ndarray, "*n"], z: Float32[np.ndarray, "*n"]
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """(gauge, radius): the gauge is 1 on the inner table and grows in proportion along the ray from the centre; the
    radius is the distance in mm along that ray. Below the origin the rays are horizontal."""
    taper = np.float32(1) - np.float32(0.2 / 60**2) * np.square(np.clip(z, -60, 0))
    v = y * np.float32(1 / head.half_length_mm)
    u = x / (np.float32(head.half_width_mm) * (np.float32(1) - np.float32(head.egg) * v) * taper)
    v = np.where(y < 0, v / taper, v)
    up = np.maximum(z, 0)
    w = up * np.float32(1 / head.height_mm)
    u2, v2, w2 = u * u, v * v, w * w
    square = u2 + v2 + w2
    fourth = square * (square + np.float32(2 * head.skew) * u * v) - np.float32(head.squareness) * u2 * v2
    gauge = np.sqrt(np.sqrt(np.maximum(fourth, 1e-8)))
    return gauge, np.sqrt(x * x + y * y + up * up)


def shell_of(points: Points, vault_mm: Float32[np.ndarray, " n"]) -> Shell:
    """Where the points lie with respect to vault, floor and petrous bones."""
    side = Points(np.abs(points.x), points.y, points.z)
    floor_mm = (points.z - _floor_height(side)) * np.float32(0.8)
    petrous_mm = -capsule(side, (17, -6, -41), (60, -24, -32), 6.0, 9.0)
    return Shell(vault_mm, floor_mm, petrous_mm, np.minimum(np.minimum(vault_mm, floor_mm), petrous_mm))


def _floor_height(side: Points) -> Float32[np.ndarray, " n"]:
    """Height of the floor: anterior fossa with the orbital roofs, middle fossa with the sella, posterior fossa."""
    pole = np.exp(np.square((side.x - np.float32(36)) * np.float32(1 / 15)) * np.float32(-1))
    anterior = smoothstep(side.y - np.float32(17) * pole, 6, 22)
    posterior = smoothstep(-side.y - np.float32(0.35) * side.x, -4, 20)
    roof = np.exp(np.square((side.x - np.float32(32)) * np.float32(1 / 15)) * np.float32(-1))
    front = np.float32(-27) + np.float32(12) * roof + np.float32(9) * smoothstep(side.y, 52, 82)
    middle = np.float32(-27) - np.float32(15) * smoothstep(side.x, 10, 26)
    middle += np.float32(14) * smoothstep(side.x, 44, 68)
    return np.asarray(anterior * front + posterior * np.float32(-66) + (np.float32(1) - anterior - posterior) * middle)


def paint_outside(hu: Float32[np.ndarray, " n"], points: Points, shell: Shell, head: HeadSpec) -> None:
    """Paint scalp, skull and face into `hu`, in place; the cavity itself is left to the brain."""
    random = np.random.default_rng([head.seed, 3])
    uneven = plane_waves(points, random, 70.0, 4)
    skull_mm = np.float32(head.skull_mm) * (np.float32(1) + np.float32(0.13) * uneven)
    outside = -shell.vault_mm
    nape = smoothstep(-points.z, 24, 56) * smoothstep(-points.y, 10, 60)
    scalp_mm = skull_mm + np.float32(head.scalp_mm) + np.float32(13) * nape
    paint(hu, scalp_mm - outside + np.float32(SKIN_MM), 1.0, SKIN_HU)
    paint(hu, scalp_mm - outside, 1.0, FAT_HU)
    temporal = ellipsoid(Points(np.abs(points.x), points.y, points.z), (70, 18, -18), (16, 34, 34))
    muscle = np.maximum(temporal, np.float32(10) * nape - np.float32(4))
    paint(hu, np.minimum(muscle, scalp_mm - outside - np.float32(2)), 1.5, MUSCLE_HU)
    _paint_nose(hu, points, head)
    _paint_bone(hu, shell, skull_mm)
    low = np.asarray((points.z < 2) & (shell.depth_mm < 1))
    face = hu[low]
    _paint_face(face, points[low], shell[low], random)
    hu[low] = face


def _paint_bone(hu: Float32[np.ndarray, " n"], shell: Shell, skull_mm: Float32[np.ndarray, " n"]) -> None:
    outside = -shell.vault_mm
    wall = np.minimum(skull_mm - outside, shell.floor_mm + np.float32(7))
    wall = np.minimum(wall, np.float32(0.6) - shell.depth_mm)
    paint(hu, wall, 1.2, CORTICAL_HU)
    diploe = skull_mm * np.float32(0.22) - np.abs(outside - skull_mm * np.float32(0.5))
    paint(hu, np.minimum(diploe, wall), 1.5, DIPLOE_HU)
    paint(hu, np.minimum(-shell.petrous_mm, skull_mm - outside), 1.5, CORTICAL_HU)


def _paint_nose(hu: Float32[np.ndarray, " n"], points: Points, head: HeadSpec) -> None:
    front = head.half_length_mm + head.skull_mm + head.scalp_mm
    paint(hu, capsule(points, (0, front - 8, -26), (0, front + 2, -58), 6.0, 11.0), 1.5, SKIN_HU)


def _paint_face(hu: Float32[np.ndarray, " n"], points: Points, shell: Shell, random: np.random.Generator) -> None:
    below, side = -shell.floor_mm, Points(np.abs(points.x), points.y, points.z)
    deep = np.minimum(shell.vault_mm + np.float32(3), below - np.float32(4))
    paint(hu, deep, 2.0, MUSCLE_HU)
    planes = np.float32(1.0) - np.float32(5) * np.abs(plane_waves(points, random, 36.0, 5))
    paint(hu, np.minimum(deep, planes), 2.5, FAT_HU)
    maxilla = np.maximum(_maxillary(side), capsule(side, (46, 54, -56), (60, 16, -52), 3.0, 1.5))
    orbit = capsule(side, (31, 57, -38), (15, 22, -34), 17.0, 5.0)
    paint(hu, np.maximum(maxilla, orbit) + np.float32(1.6), 1.5, THIN_BONE_HU)
    _paint_orbit(hu, side, orbit)
    _paint_sinuses(hu, points, side, shell, random)


def _maxillary(side: Points) -> Float32[np.ndarray, " n"]:
    # three-sided in cross-section: front wall, medial wall, and one that runs back from the cheek
    walls = np.minimum(np.float32(70) - side.y, side.x - np.float32(13))
    walls = np.minimum(walls, np.float32(0.6) * (side.y - np.float32(30)) - np.float32(0.8) * (side.x - np.float32(30)))
    return np.asarray(np.minimum(walls, ellipsoid(side, (27, 53, -72), (16, 20, 18))))


def _paint_orbit(hu: Float32[np.ndarray, " n"], side: Points, orbit: Float32[np.ndarray, " n"]) -> None:
    open_front = np.minimum(orbit, np.float32(74) - side.y)
    paint(hu, np.maximum(open_front, np.minimum(orbit + np.float32(2), side.y - np.float32(62))), 1.5, FAT_HU)
    paint(hu, np.float32(2.2) - np.abs(orbit + np.float32(1.2)) - np.maximum(np.float32(66) - side.y, 0), 1.5, SKIN_HU)
    paint(hu, ellipsoid(side, (32, 61, -38), (12, 12, 12)), 1.2, EYE_HU)
    paint(hu, capsule(side, (31, 50, -38), (16, 24, -34), 2.0, 2.0), 1.5, MUSCLE_HU - 15)
    for x_mm in (20.0, 41.0):
        paint(hu, capsule(side, (x_mm, 56, -38), (17, 26, -34), 2.2, 1.5), 1.5, MUSCLE_HU)


def _paint_sinuses(
    hu: Float32[np.ndarray, " n"], points: Points, side: Points, shell: Shell, random: np.random.Generator
) -> None:
    cells = plane_waves(points, random, 11.0, 6)
    below, outer = -shell.floor_mm, -shell.vault_mm
    bone = np.minimum(ellipsoid(side, (54, -30, -46), (15, 17, 22)), outer + np.float32(3))
    paint(hu, np.minimum(bone, -shell.depth_mm), 1.5, CORTICAL_HU - 300)
    mastoid = np.minimum(bone - np.float32(2), np.float32(0.5) - cells)
    ethmoid = np.minimum(ellipsoid(points, (0, 50, -44), (12, 29, 17)), np.float32(1.4) - cells * cells)
    sphenoid = np.minimum(ellipsoid(points, (2, 18, -42), (14, 12, 11)), np.abs(points.x - np.float32(2)) - 1)
    maxillary = _maxillary(side)
    frontal = np.minimum(ellipsoid(points, (4, 84, -12), (16, 6, 12)), outer - np.float32(2))
    inner = np.maximum(np.maximum(ethmoid, sphenoid), np.maximum(maxillary, mastoid))
    inner = np.minimum(inner, np.maximum(below - np.float32(2), -shell.depth_mm - np.float32(5)))
    paint(hu, np.maximum(inner, frontal), 1.5, SINUS_HU)


def paint_holder(
    hu: Float32[np.ndarray, "slice row col"],
    x: Float32[np.ndarray, "slice row col"],
    y: Float32[np.ndarray, "slice row col"],
    head: HeadSpec,
) -> None:
    """Paint a thin head-holder behind the head, in place."""
    radius_mm = head.half_length_mm + head.skull_mm + head.scalp_mm - 18 + HOLDER_GAP_MM
    around = np.sqrt(np.square(x) + np.square(y + np.float32(18)))
    sheet = np.minimum(np.float32(1.0) - np.abs(around - np.float32(radius_mm)), -y - np.float32(30))
    share = ramp(sheet.reshape(-1), 1.2).reshape(hu.shape) * (hu < -900)
    hu += share * (np.float32(PLASTIC_HU) - hu)
