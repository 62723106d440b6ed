"""The skull, the face, the scalp and the head-holder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.solids import (
    Field,
    Points,
    capsule,
    ellipsoid,
    paint,
    plane_waves,
    ramp,
    smoothstep,
)
from meddinov3_stroke.phantom.spec import HeadSpec

AIR_HU, SINUS_HU, FAT_HU, EYE_HU, SKIN_HU, MUSCLE_HU, PLASTIC_HU = -1000.0, -930.0, -85.0, 14.0, 45.0, 55.0, 110.0
DIPLOE_HU, THIN_BONE_HU, CORTICAL_HU = 550.0, 700.0, 1250.0
"""Typical CT numbers of what lies around the brain; the head-holder is of plastic."""
SKIN_MM = 2.2
"""Thickness of the skin over the fat of the scalp."""
HOLDER_GAP_MM = 7.0
"""Distance between the back of the head and the head-holder."""


class _Shell(NamedTuple):
    """Where points lie with respect to the skull, in mm."""

    vault: Field
    """Depth below the inner table of the vault along the ray to it; negative outside."""
    floor: Field
    """Height above the floor of the skull."""
    petrous: Field
    """Distance from the petrous bones; negative inside them."""
    depth: Field
    """Depth below the inner surface of the whole skull; negative outside the cavity."""


def paint_outside(hu: Field, points: Points, vault_mm: Field, head: HeadSpec) -> Field:
    """Depth below the inner surface of the skull in mm; scalp, skull and face are painted into `hu`, in place."""
    random = np.random.default_rng([head.seed, 3])
    side = points.on_right()
    floor = (points.z - _floor_height(side)) * 0.8
    petrous = -capsule(side, (17, -6, -41), (60, -24, -32), 6.0, 9.0)
    shell = _Shell(vault_mm, floor, petrous, np.minimum(np.minimum(vault_mm, floor), petrous))
    skull_mm = head.skull_mm * (1 + 0.13 * plane_waves(points, random, 70.0, 4))
    nape = smoothstep(-points.z, 24, 56) * smoothstep(-points.y, 10, 60)
    scalp = skull_mm + head.scalp_mm + 13 * nape + vault_mm
    paint(hu, scalp + SKIN_MM, 1.0, SKIN_HU)
    paint(hu, scalp, 1.0, FAT_HU)
    muscle = np.maximum(ellipsoid(side, (70, 18, -18), (16, 34, 34)), 10 * nape - 4)
    paint(hu, np.minimum(muscle, scalp - 2), 1.5, MUSCLE_HU)
    front = head.half_length_mm + head.skull_mm + head.scalp_mm
    nose = capsule(points, (0, front - 8, -26), (0, front + 2, -58), 6.0, 11.0)
    paint(hu, nose, 1.5, SKIN_HU)
    _paint_bone(hu, shell, skull_mm)
    low = np.asarray((points.z < 2) & (shell.depth < 1))
    face = hu[low]
    _paint_face(face, points.at(low), _Shell(*[distance[low] for distance in shell]), random)
    hu[low] = face
    return shell.depth


def _floor_height(side: Points) -> Field:
    """Height of the floor: anterior fossa with the orbital roofs, middle fossa with the sella, posterior fossa."""
    pole = np.exp(np.square((side.x - 36) * (1 / 15)) * -1)
    anterior = smoothstep(side.y - 17 * pole, 6, 22)
    posterior = smoothstep(-side.y - 0.35 * side.x, -4, 20)
    roof = np.exp(np.square((side.x - 32) * (1 / 15)) * -1)
    front = -27 + 12 * roof + 9 * smoothstep(side.y, 52, 82)
    middle = -27 - 15 * smoothstep(side.x, 10, 26) + 14 * smoothstep(side.x, 44, 68)
    return np.asarray(anterior * front + posterior * -66 + (1 - anterior - posterior) * middle)


def _paint_bone(hu: Field, shell: _Shell, skull_mm: Field) -> None:
    outer = skull_mm + shell.vault
    wall = np.minimum(np.minimum(outer, shell.floor + 7), 0.6 - shell.depth)
    paint(hu, wall, 1.2, CORTICAL_HU)
    diploe = skull_mm * 0.22 - np.abs(-shell.vault - skull_mm * 0.5)
    paint(hu, np.minimum(diploe, wall), 1.5, DIPLOE_HU)
    paint(hu, np.minimum(-shell.petrous, outer), 1.5, CORTICAL_HU)


def _paint_face(hu: Field, points: Points, shell: _Shell, random: np.random.Generator) -> None:
    side = points.on_right()
    deep = np.minimum(shell.vault + 3, -shell.floor - 4)
    paint(hu, deep, 2.0, MUSCLE_HU)
    planes = 1.0 - 5 * np.abs(plane_waves(points, random, 36.0, 5))
    paint(hu, np.minimum(deep, planes), 2.5, FAT_HU)
    sinus = _maxillary_sinus(side)
    maxilla = np.maximum(sinus, capsule(side, (46, 54, -56), (60, 16, -52), 3.0, 1.5))
    orbit = capsule(side, (31, 57, -38), (15, 22, -34), 17.0, 5.0)
    paint(hu, np.maximum(maxilla, orbit) + 1.6, 1.5, THIN_BONE_HU)
    _paint_orbit(hu, side, orbit)
    _paint_air_cells(hu, points, shell, sinus, random)


def _maxillary_sinus(side: Points) -> Field:
    # three-sided in cross-section: front wall, medial wall, and one that runs back from the cheek
    walls = np.minimum(70 - side.y, side.x - 13)
    walls = np.minimum(walls, 0.6 * (side.y - 30) - 0.8 * (side.x - 30))
    return np.asarray(np.minimum(walls, ellipsoid(side, (27, 53, -72), (16, 20, 18))))


def _paint_orbit(hu: Field, side: Points, orbit: Field) -> None:
    open_front = np.minimum(orbit, 74 - side.y)
    paint(hu, np.maximum(open_front, np.minimum(orbit + 2, side.y - 62)), 1.5, FAT_HU)
    paint(hu, 2.2 - np.abs(orbit + 1.2) - np.maximum(66 - side.y, 0), 1.5, SKIN_HU)
    paint(hu, ellipsoid(side, (32, 61, -38), (12, 12, 12)), 1.2, EYE_HU)
    paint(hu, capsule(side, (31, 50, -38), (16, 24, -34), 2.0, 2.0), 1.5, MUSCLE_HU - 15)
    for x_mm in (20.0, 41.0):
        paint(hu, capsule(side, (x_mm, 56, -38), (17, 26, -34), 2.2, 1.5), 1.5, MUSCLE_HU)


def _paint_air_cells(hu: Field, points: Points, shell: _Shell, maxillary: Field, random: np.random.Generator) -> None:
    cells = plane_waves(points, random, 11.0, 6)
    bone = np.minimum(ellipsoid(points.on_right(), (54, -30, -46), (15, 17, 22)), 3 - shell.vault)
    paint(hu, np.minimum(bone, -shell.depth), 1.5, CORTICAL_HU - 300)
    mastoid = np.minimum(bone - 2, 0.5 - cells)
    ethmoid = np.minimum(ellipsoid(points, (0, 50, -44), (12, 29, 17)), 1.4 - cells * cells)
    sphenoid = np.minimum(ellipsoid(points, (2, 18, -42), (14, 12, 11)), np.abs(points.x - 2) - 1)
    frontal = np.minimum(ellipsoid(points, (4, 84, -12), (16, 6, 12)), -shell.vault - 2)
    inner = np.maximum(np.maximum(ethmoid, sphenoid), np.maximum(maxillary, mastoid))
    inner = np.minimum(inner, np.maximum(-shell.floor - 2, -shell.depth - 5))
    paint(hu, np.maximum(inner, frontal), 1.5, SINUS_HU)


def paint_holder(
    hu: Float32[np.ndarray, "*grid"], x: Float32[np.ndarray, "*grid"], y: Float32[np.ndarray, "*grid"], head: HeadSpec
) -> None:
    """Paint a thin head-holder behind the head, in place."""
    radius_mm = head.half_length_mm + head.skull_mm + head.scalp_mm - 18 + HOLDER_GAP_MM
    sheet = np.minimum(1.0 - np.abs(np.sqrt(np.square(x) + np.square(y + 18)) - radius_mm), -y - 30)
    hu += ramp(sheet.reshape(-1), 1.2).reshape(hu.shape) * (hu < -900) * (PLASTIC_HU - hu)
