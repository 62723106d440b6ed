"""The anatomy of a head: solids to build it from, scalp, skull and face, and the brain with its spaces of fluid.

Distances are in mm, positive inside a solid and negative outside. Arrays are float32, and stay so when combined with
Python numbers. `side` is points with the left half mirrored to the right.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from meddinov3_stroke.phantom.spec import HeadSpec, Number, Vector

Field = Float32[np.ndarray, "*n"]  # one value for each point
Mask = Bool[np.ndarray, "*n"]
AIR_HU, SINUS_HU, FAT_HU, EYE_HU, SKIN_HU, MUSCLE_HU = -1000.0, -930.0, -85.0, 14.0, 45.0, 55.0
DIPLOE_HU, THIN_BONE_HU, CORTICAL_HU = 550.0, 700.0, 1250.0
DURA_HU = 52.0  # denser than brain, so that density alone does not make a haemorrhage
PINEAL_HU, CHOROID_HU = 190.0, 150.0  # normal calcifications
SKIN_MM, CORTEX_MM = 2.2, 3.2
CUPPING_MM = 9.0  # depth over which the residual beam hardening below the skull falls off
SULCUS_SPACING_MM, DEEPEST_SULCUS_MM = 34.0, 30.0  # wavelength of the folds; a sulcus lies at every half of it
FAR_MM = -20.0  # any distance well outside
VENTRICLE_RODS = (  # the right lateral ventricle: start, end, radius at each, in mm at scale 1
    ((6.0, 10.0, 14.0), (13.0, 34.0, 8.0), 3.4, 2.4),  # frontal horn
    ((4.5, 10.0, 8.0), (11.0, 31.0, 2.0), 2.0, 1.7),
    ((6.0, 11.0, 15.0), (11.0, -22.0, 21.0), 4.4, 4.4),  # body
    ((11.0, -22.0, 21.0), (22.0, -38.0, 9.0), 4.6, 6.4),  # atrium
    ((22.0, -38.0, 9.0), (24.0, -62.0, 5.0), 5.2, 2.0),  # occipital horn
    ((23.0, -38.0, 7.0), (34.0, -20.0, -12.0), 3.6, 2.0),  # temporal horn
    ((34.0, -20.0, -12.0), (32.0, 0.0, -18.0), 1.9, 1.4),
)


class Points(NamedTuple):
    """Head coordinates in mm of some voxels."""

    x: Field
    y: Field
    z: Field

    def at(self, chosen: Mask) -> Points:
        """The chosen points."""
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])


class Brain(NamedTuple):
    """Anatomy at the points inside the skull; distances in mm, positive inside."""

    points: Points
    side: Points  # where each point lay before haemorrhages displaced it, mirrored to the right
    surface: Points  # the point of the vault's inner table on the ray through each point
    depth_mm: Field  # below the inner surface of the skull, its base included
    vault_mm: Field  # below the inner table of the vault
    csf_mm: Field  # into the rim, sulci, fissures and cisterns; ventricles excluded
    sulcal_mm: Field  # as `csf_mm`, without the rim over the convexity
    ventricle_mm: Field
    falx_mm: Field  # into a sheet of about 1 mm
    midline_mm: Field  # to the right of the falx
    tentorium_mm: Field  # above it


def norm(*axes: Field) -> Field:
    """Euclidean length of the vectors with these components."""
    return np.asarray(np.sqrt(sum(np.square(axis) for axis in axes)))


def ramp(distance_mm: Field, width_mm: Number) -> Field:
    """Share of a voxel inside a surface, from 0 to 1 over `width_mm` around it."""
    return np.asarray(np.clip(distance_mm * (1 / width_mm) + 0.5, 0, 1))


def plane_waves(points: Points, random: np.random.Generator, wavelength_mm: Number, n_waves: int) -> Field:
    """A smooth random field of unit variance: plane waves of one wavelength in random directions."""
    field = np.zeros_like(points.x)
    for _ in range(n_waves):
        direction = random.normal(size=3)
        wave = (direction / np.linalg.norm(direction) * (2 * np.pi / wavelength_mm)).astype(np.float32)
        phase = random.uniform(0, 2 * np.pi)
        field += np.sin(points.x * wave[0] + points.y * wave[1] + points.z * wave[2] + phase)
    return field * float(np.sqrt(2 / n_waves))


def vault_gauge(head: HeadSpec, x: Field, y: Field, z: Field) -> tuple[Field, Field]:
    """(gauge, radius in mm): 1 on the inner table, in proportion along the ray from the centre; the distance along it.

    Below the origin the rays are horizontal.
    """
    taper = 1 - (0.2 / 60**2) * np.square(np.clip(z, -60, 0))
    v = y * (1 / head.half_length_mm)
    u = x / (head.half_width_mm * (1 - head.egg * v) * taper)
    v = np.where(y < 0, v / taper, v)
    up = np.maximum(z, 0)
    u2, v2 = u * u, v * v
    square = u2 + v2 + np.square(up * (1 / head.height_mm))
    fourth = square * (square + 2 * head.skew * u * v) - head.squareness * u2 * v2
    return np.sqrt(np.sqrt(np.maximum(fourth, 1e-8))), norm(x, y, up)


def _ellipsoid(points: Points, centre_mm: Vector, half_mm: Vector) -> Field:
    scaled = [(axis - centre) / half for axis, centre, half in zip(points, centre_mm, half_mm, strict=True)]
    return (1 - norm(*scaled)) * min(half_mm)


def _rod(points: Points, start_mm: Vector, end_mm: Vector, start_radius_mm: Number, end_radius_mm: Number) -> Field:
    ax, ay, az = (np.float32(end - start) for start, end in zip(start_mm, end_mm, strict=True))
    px, py, pz = (axis - start for axis, start in zip(points, start_mm, strict=True))
    along = np.clip((px * ax + py * ay + pz * az) / (ax * ax + ay * ay + az * az), 0, 1)
    radius = start_radius_mm + along * (end_radius_mm - start_radius_mm)
    return np.asarray(radius - norm(px - along * ax, py - along * ay, pz - along * az))


def _union(*distances_mm: Field) -> Field:
    return reduce(np.maximum, distances_mm)


def _both(*distances_mm: Field) -> Field:
    return reduce(np.minimum, distances_mm)


def _blend(first_mm: Field, second_mm: Field) -> Field:
    # a union whose solids flow into each other over 3 mm
    overlap = np.maximum(3.0 - np.abs(first_mm - second_mm), 0)
    return np.asarray(np.maximum(first_mm, second_mm) + overlap * overlap * (0.25 / 3.0))


def _within(near: Mask, distance_mm: Float32[np.ndarray, " near"]) -> Field:
    # a distance known for the points of `near` only
    into = np.full(near.shape, FAR_MM, dtype=np.float32)
    into[near] = distance_mm
    return into


def _smoothstep(value: Field, low: Number, high: Number) -> Field:
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _bell(value: Field, middle: Number, width: Number) -> Field:
    return np.asarray(np.exp(np.square((value - middle) * (1 / width)) * -1))


def _paint(hu: Field, distance_mm: Field, width_mm: Number, value: Number) -> None:
    hu += ramp(distance_mm, width_mm) * (value - hu)


def paint_outside(hu: Field, points: Points, vault_mm: Field, head: HeadSpec) -> Field:
    """Depth in mm below the inner surface of the skull; scalp, skull and face are painted into `hu`, in place."""
    random = np.random.default_rng([head.seed, 3])
    side = points._replace(x=np.abs(points.x))
    floor = (points.z - _floor_height(side)) * 0.8
    petrous = -_rod(side, (17, -6, -41), (60, -24, -32), 6.0, 9.0)
    depth_mm = _both(vault_mm, floor, petrous)
    skull_mm = head.skull_mm * (1 + 0.13 * plane_waves(points, random, 70.0, 4))
    nape = _smoothstep(-points.z, 24, 56) * _smoothstep(-points.y, 10, 60)
    scalp = skull_mm + head.scalp_mm + 13 * nape + vault_mm
    _paint(hu, scalp + SKIN_MM, 1.0, SKIN_HU)
    _paint(hu, scalp, 1.0, FAT_HU)
    muscle = _union(_ellipsoid(side, (70, 18, -18), (16, 34, 34)), 10 * nape - 4)
    _paint(hu, _both(muscle, scalp - 2), 1.5, MUSCLE_HU)
    front = head.half_length_mm + head.skull_mm + head.scalp_mm
    _paint(hu, _rod(points, (0, front - 8, -26), (0, front + 2, -58), 6.0, 11.0), 1.5, SKIN_HU)  # nose
    outer = skull_mm + vault_mm
    wall = _both(outer, floor + 7, 0.6 - depth_mm)
    _paint(hu, wall, 1.2, CORTICAL_HU)
    _paint(hu, _both(skull_mm * 0.22 - np.abs(-vault_mm - skull_mm * 0.5), wall), 1.5, DIPLOE_HU)
    _paint(hu, _both(-petrous, outer), 1.5, CORTICAL_HU)
    low = np.asarray((points.z < 2) & (depth_mm < 1))
    face = hu[low]
    _paint_face(face, points.at(low), -vault_mm[low], -floor[low], -depth_mm[low], random)
    hu[low] = face
    return depth_mm


def _floor_height(side: Points) -> Field:
    # anterior fossa with the orbital roofs, middle fossa with the sella, posterior fossa
    anterior = _smoothstep(side.y - 17 * _bell(side.x, 36, 15), 6, 22)
    posterior = _smoothstep(-side.y - 0.35 * side.x, -4, 20)
    front = -27 + 12 * _bell(side.x, 32, 15) + 9 * _smoothstep(side.y, 52, 82)
    middle = -27 - 15 * _smoothstep(side.x, 10, 26) + 14 * _smoothstep(side.x, 44, 68)
    return np.asarray(anterior * front + posterior * -66 + (1 - anterior - posterior) * middle)


def _paint_face(
    hu: Field, points: Points, outer: Field, below: Field, outside: Field, random: np.random.Generator
) -> None:
    # distances: outside the vault, below the floor, outside the cavity
    side = points._replace(x=np.abs(points.x))
    deep = _both(3 - outer, below - 4)
    _paint(hu, deep, 2.0, MUSCLE_HU)
    _paint(hu, _both(deep, 1 - 5 * np.abs(plane_waves(points, random, 36.0, 5))), 2.5, FAT_HU)
    # maxillary sinus, three-sided in cross-section: front wall, medial wall, and one that runs back from the cheek
    walls = _both(70 - side.y, side.x - 13, 0.6 * (side.y - 30) - 0.8 * (side.x - 30))
    maxillary = _both(walls, _ellipsoid(side, (27, 53, -72), (16, 20, 18)))
    cheekbone = _rod(side, (46, 54, -56), (60, 16, -52), 3.0, 1.5)
    orbit = _rod(side, (31, 57, -38), (15, 22, -34), 17.0, 5.0)
    _paint(hu, _union(maxillary, cheekbone, orbit) + 1.6, 1.5, THIN_BONE_HU)
    # orbit: fat, lids, eye, optic nerve, two muscles
    _paint(hu, _union(_both(orbit, 74 - side.y), _both(orbit + 2, side.y - 62)), 1.5, FAT_HU)
    _paint(hu, 2.2 - np.abs(orbit + 1.2) - np.maximum(66 - side.y, 0), 1.5, SKIN_HU)
    _paint(hu, _ellipsoid(side, (32, 61, -38), (12, 12, 12)), 1.2, EYE_HU)
    _paint(hu, _rod(side, (31, 50, -38), (16, 24, -34), 2.0, 2.0), 1.5, MUSCLE_HU - 15)
    for x_mm in (20.0, 41.0):
        _paint(hu, _rod(side, (x_mm, 56, -38), (17, 26, -34), 2.2, 1.5), 1.5, MUSCLE_HU)
    # mastoid bone and its cells, and the other air-filled sinuses
    cells = plane_waves(points, random, 11.0, 6)
    bone = _both(_ellipsoid(side, (54, -30, -46), (15, 17, 22)), outer + 3)
    _paint(hu, _both(bone, outside), 1.5, CORTICAL_HU - 300)
    mastoid = _both(bone - 2, 0.5 - cells)
    ethmoid = _both(_ellipsoid(points, (0, 50, -44), (12, 29, 17)), 1.4 - cells * cells)
    sphenoid = _both(_ellipsoid(points, (2, 18, -42), (14, 12, 11)), np.abs(points.x - 2) - 1)
    frontal = _both(_ellipsoid(points, (4, 84, -12), (16, 6, 12)), outer - 2)
    inner = _both(_union(ethmoid, sphenoid, maxillary, mastoid), _union(below - 2, outside - 5))
    _paint(hu, _union(inner, frontal), 1.5, SINUS_HU)


def build_brain(
    points: Points,
    surface: Points,
    depth_mm: Field,
    vault_mm: Field,
    moved: tuple[Points, Field, Field],
    head: HeadSpec,
) -> Brain:
    """The anatomy at points inside the skull; `moved` is what `displace` returns for them."""
    random = np.random.default_rng([head.seed, 4])
    origin, moved_vault_mm, squeeze = moved
    side = origin._replace(x=np.abs(origin.x))
    midline = origin.x + 0.7 * plane_waves(origin, random, 55.0, 3)
    median = origin._replace(x=np.abs(midline))
    # a tent that falls off to the sides and back; large in front of it
    sheet = -4 - 0.38 * side.x + 0.22 * (side.y + 35)
    tentorium = (side.z - sheet) * 0.9 + 3 * np.maximum(side.y + 16 + 0.1 * side.x, 0)
    fissure = _median_sheet(median, 0.55 + 0.4 * head.sulcus_mm, 0.75, 31, 16)
    sulci = _sulci(origin, moved_vault_mm, squeeze, tentorium, head, random)
    sulcal = _union(sulci, fissure, _cisterns(side, 0.75 + 0.25 * head.sulcus_mm, random))
    # the film of fluid over the convexity is uneven, and thin where the brain is pressed outwards
    film = head.csf_rim_mm * (0.55 + 0.4 * plane_waves(origin, random, 60.0, 4)) * (1 - squeeze)
    csf = _union(sulcal, film - moved_vault_mm, 0.4 - depth_mm)
    ventricles = _ventricles(side, head.ventricle_scale)
    return Brain(points, side, surface, depth_mm, vault_mm, csf, sulcal, ventricles, falx(median), midline, tentorium)


def falx(median: Points) -> Field:
    """Distance into the falx; `median` is points whose x is their distance from the midline."""
    return _median_sheet(median, 0.7, 0.72, 36, 14)


def _median_sheet(median: Points, half_width_mm: float, flat: float, radius_mm: int, below_mm: int) -> Field:
    # falx or fissure: the free edge arches over the corpus callosum, nearer to the vault in front than behind
    edge = np.hypot(median.y * flat, median.z - 4) - radius_mm
    return _both(half_width_mm - median.x, edge, median.z + below_mm)


def _sulci(
    origin: Points, vault_mm: Field, squeeze: Field, tentorium_mm: Field, head: HeadSpec, random: np.random.Generator
) -> Field:
    # winding sheets at right angles to the vault, wider at the surface, some of them closed
    near = (vault_mm < DEEPEST_SULCUS_MM) & (tentorium_mm > 0)
    (x, y, z), depth_mm = origin.at(near), vault_mm[near]
    # nearly constant along a ray, so that the sheets are at right angles to the surface; warped, so that they wind
    height = z + 5
    scale = 52 / np.maximum(norm(x, y, height), 5) + 0.3
    rays = Points(x * scale, y * scale, height * scale)
    folded = Points(*[axis + 3.0 * plane_waves(rays, random, 26.0, 2) for axis in rays])
    field = plane_waves(folded, random, SULCUS_SPACING_MM, 9)
    across = np.abs(field) * (SULCUS_SPACING_MM / (2 * np.pi) * 0.95) / scale
    bottom = head.sulcus_depth_mm * (1 + 0.3 * plane_waves(folded, random, 48.0, 5))
    openness = np.clip(0.9 + 0.55 * plane_waves(folded, random, 40.0, 5), 0, 2)
    half_width = head.sulcus_mm / 2 * openness * (1 - 0.85 * squeeze[near])
    half_width *= 1.45 - depth_mm / np.maximum(bottom, 3)
    return _within(near, _both(half_width - across, bottom - depth_mm))


def _cisterns(side: Points, wide: float, random: np.random.Generator) -> Field:
    # Sylvian fissure: a sheet over the insula, and a sheet that climbs backwards from it to the surface
    lateral = np.asarray((side.x > 25) & (side.z > -26) & (side.z < 32) & (side.y > -40) & (side.y < 34))
    x, y, z = points = side.at(lateral)
    winding = 2.2 * plane_waves(points, random, 30.0, 5)
    extent = np.square((y - 2) * (1 / 21)) + np.square(z * (1 / 14))
    insula = _both(wide - np.abs(x - 39 + np.square(y - 2) * 0.01 + winding), (1 - extent) * 10)
    climb = (z + 3 + 0.9 * (y - 6) + 0.5 * (x - 50) + 1.5 * winding) * 0.7
    sylvian = _union(insula, _both(1.1 * wide - np.abs(climb), x - 37, 24 - y, y + 30))
    # basal cisterns: around the brainstem, suprasellar with its arms, quadrigeminal, cisterna magna
    low = np.asarray((side.z < 6) & (side.x < 32))
    basal = side.at(low)
    stem = _brainstem(basal)
    around = _both(3.0 * wide + stem, -stem, -9 - basal.z, basal.y + 24 + 0.3 * basal.x)
    suprasellar = _ellipsoid(basal, (0, 10, -20), (11 * wide, 10 * wide, 6))
    arms = _rod(basal, (8, 12, -19), (28, 14, -14), 2.6 * wide, 1.8 * wide)
    quadrigeminal = _ellipsoid(basal, (0, -34, -5), (10 * wide, 3, 6))
    magna = _ellipsoid(basal, (0, -60, -60), (11 * wide, 9, 9))
    return _union(
        _within(lateral, sylvian), _within(low, _union(around, _blend(suprasellar, arms), quadrigeminal, magna))
    )


def _brainstem(side: Points) -> Field:
    # midbrain, pons, medulla
    pons = _ellipsoid(side, (0, -13, -33), (17, 14, 14))
    medulla = _rod(side, (0, -16, -40), (0, -26, -75), 9.0, 7.5)
    return _union(_rod(side, (0, -15, -8), (0, -15, -24), 13.0, 13.0), pons, medulla)


def _ventricles(side: Points, scale: float) -> Field:
    near = np.asarray((side.x < 46) & (side.y > -78) & (side.y < 46) & (side.z > -54) & (side.z < 38))
    points = side.at(near)
    rods = (_rod(points, start, end, r0 * scale, r1 * scale) for start, end, r0, r1 in VENTRICLE_RODS)
    lateral = reduce(_blend, rods, np.full_like(points.x, FAR_MM))
    third = _ellipsoid(points, (0, -6, 0), (2.2 * scale, 15, 11))
    fourth = _ellipsoid(points, (0, -33, -36), (7.5 * scale, 5.0 * scale, 12))
    return _within(near, _union(_both(lateral, points.x - 0.8), third, fourth))


def paint_brain(brain: Brain, head: HeadSpec) -> Field:
    """HU of the brain at the points inside the skull."""
    random = np.random.default_rng([head.seed, 5])
    side, below = brain.side, -brain.tentorium_mm
    hu = head.white_hu + 0.7 * plane_waves(brain.points, random, 22.0, 3)
    _paint(hu, brain.csf_mm + CORTEX_MM, 1.5, head.grey_hu)
    # deep grey matter: caudate, lentiform, thalamus
    caudate, lentiform = _ellipsoid(side, (16, 20, 9), (5, 11, 9)), _ellipsoid(side, (26, 3, 3), (7, 17, 10))
    _paint(hu, _union(caudate, lentiform, _ellipsoid(side, (11, -14, 6), (8.5, 13, 10))), 2.0, head.grey_hu)
    # cerebellum with its folia and white matter; brainstem
    folia = plane_waves(brain.points, random, 8.0, 4)
    hu += _smoothstep(below, -1, 1) * (head.grey_hu - 3 + 1.2 * folia - hu)
    _paint(hu, _both(_ellipsoid(side, (16, -42, -36), (10, 13, 9)), below), 4.0, head.white_hu + 1)
    _paint(hu, _brainstem(side), 2.0, (head.grey_hu + head.white_hu) / 2)
    _paint(hu, brain.csf_mm, 1.5, head.csf_hu)
    _paint(hu, brain.ventricle_mm, 1.6, head.csf_hu)
    _paint(hu, brain.falx_mm, 1.2, DURA_HU)
    _paint(hu, _both(0.8 - np.abs(below), 70 + side.y), 1.2, DURA_HU - 4)
    if head.calcified_pineal:
        _paint(hu, _ellipsoid(side, (0, -27, 1), (2.6, 3.2, 3.0)), 1.5, PINEAL_HU)
    if head.calcified_choroid:
        _paint(hu, _ellipsoid(side, (22, -38, 9), (2.6, 3.4, 3.4)), 1.5, CHOROID_HU)
    hu += head.cupping_hu * np.exp(np.maximum(brain.depth_mm, 0) * (-1 / CUPPING_MM))
    # the dark band between the petrous bones
    across = np.square((brain.points.z + 40) * (1 / 8)) + np.square((brain.points.y + 15) * (1 / 7))
    hu -= 1.6 * head.cupping_hu * np.exp(-across)
    return hu
