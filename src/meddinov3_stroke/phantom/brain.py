"""The brain: cortex and white matter, spaces filled with cerebrospinal fluid, falx and tentorium.

`side` is points with the left half mirrored to the right; `median` is points whose x is the distance from the midline.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from meddinov3_stroke.phantom import solids
from meddinov3_stroke.phantom.solids import Field, Points, capsule, ellipsoid, intersection, paint, plane_waves, union
from meddinov3_stroke.phantom.spec import HeadSpec

DURA_HU = 52.0
"""Falx and tentorium: denser than brain, so that density alone does not make a haemorrhage."""
PINEAL_HU, CHOROID_HU = 190.0, 150.0
"""Normal calcifications of the pineal gland and of the choroid plexus; no label."""
CORTEX_MM = 3.2
CUPPING_MM = 9.0
"""Depth over which the residual beam hardening below the skull falls off."""
SULCUS_SPACING_MM = 34.0
"""Wavelength of the folding pattern on the surface of the brain; a sulcus lies at every half of it."""
DEEPEST_SULCUS_MM = 30.0
FAR_MM = -20.0
"""Stands for any distance well outside."""
VENTRICLE_RODS = (
    ((6.0, 10.0, 14.0), (13.0, 34.0, 8.0), 3.4, 2.4),
    ((4.5, 10.0, 8.0), (11.0, 31.0, 2.0), 2.0, 1.7),
    ((6.0, 11.0, 15.0), (11.0, -22.0, 21.0), 4.4, 4.4),
    ((11.0, -22.0, 21.0), (22.0, -38.0, 9.0), 4.6, 6.4),
    ((22.0, -38.0, 9.0), (24.0, -62.0, 5.0), 5.2, 2.0),
    ((23.0, -38.0, 7.0), (34.0, -20.0, -12.0), 3.6, 2.0),
    ((34.0, -20.0, -12.0), (32.0, 0.0, -18.0), 1.9, 1.4),
)
"""The right lateral ventricle: frontal horn (two), body, atrium, occipital and temporal horn (two), as rods with the
radius at each end in mm at scale 1."""


class Displaced(NamedTuple):
    """The part of the undisturbed brain found at each point."""

    points: Points
    vault_mm: Field
    """Depth there below the inner table."""
    squeeze: Field
    """0 where nothing presses, 1 where sulci are closed."""


class Brain(NamedTuple):
    """Anatomy at the points inside the skull; distances in mm, positive inside."""

    points: Points
    side: Points
    """Where each point lay before haemorrhages displaced it, mirrored to the right."""
    surface: Points
    """The point of the vault's inner table on the ray through each point."""
    depth_mm: Field
    """Below the inner surface of the skull, its base included."""
    vault_mm: Field
    """Below the inner table of the vault."""
    csf_mm: Field
    """Into the rim, sulci, fissures and cisterns; ventricles excluded."""
    sulcal_mm: Field
    """As `csf_mm`, without the rim over the convexity."""
    ventricle_mm: Field
    falx_mm: Field
    """Into the sheet of the falx (about 1 mm thick)."""
    midline_mm: Field
    """Distance to the right of the falx."""
    tentorium_mm: Field
    """Above the tentorium (negative: below it)."""


def build_brain(
    points: Points, surface: Points, depth_mm: Field, vault_mm: Field, moved: Displaced, head: HeadSpec
) -> Brain:
    """The anatomy at points inside the skull, where `moved` gives the part of the undisturbed brain at each."""
    random = np.random.default_rng([head.seed, 4])
    origin, side = moved.points, moved.points.on_right()
    midline = origin.x + 0.7 * plane_waves(origin, random, 55.0, 3)
    median = Points(np.abs(midline), origin.y, origin.z)
    # a tent that falls off to the sides and back; large in front of it
    sheet = -4 - 0.38 * side.x + 0.22 * (side.y + 35)
    tentorium = (side.z - sheet) * 0.9 + 3 * np.maximum(side.y + 16 + 0.1 * side.x, 0)
    fissure = _median_sheet(median, 0.55 + 0.4 * head.sulcus_mm, 0.75, 31, 16)
    sulcal = union(_sulci(moved, tentorium, head, random), fissure, _cisterns(side, head, random))
    # the film of fluid over the convexity is uneven, and thin where the brain is pressed outwards
    film = head.csf_rim_mm * (0.55 + 0.4 * plane_waves(origin, random, 60.0, 4)) * (1 - moved.squeeze)
    csf = union(sulcal, film - moved.vault_mm, 0.4 - depth_mm)
    ventricles, falx = _ventricles(side, head.ventricle_scale), _median_sheet(median, 0.7, 0.72, 36, 14)
    return Brain(points, side, surface, depth_mm, vault_mm, csf, sulcal, ventricles, falx, midline, tentorium)


def _median_sheet(median: Points, half_width_mm: float, flat: float, radius_mm: int, below_mm: int) -> Field:
    # falx or fissure: the free edge arches over the corpus callosum, nearer to the vault in front than behind
    edge = np.hypot(median.y * flat, median.z - 4) - radius_mm
    return intersection(half_width_mm - median.x, edge, median.z + below_mm)


def _sulci(moved: Displaced, tentorium_mm: Field, head: HeadSpec, random: np.random.Generator) -> Field:
    # winding sheets at right angles to the vault, wider at the surface, some of them closed
    into = np.full_like(tentorium_mm, FAR_MM)
    near = (moved.vault_mm < DEEPEST_SULCUS_MM) & (tentorium_mm > 0)
    points, depth_mm = moved.points.at(near), moved.vault_mm[near]
    # nearly constant along a ray, so that the sheets are at right angles to the surface; warped, so that they wind
    height = points.z + 5
    radius = np.sqrt(np.square(points.x) + np.square(points.y) + np.square(height))
    scale = 52 / np.maximum(radius, 5) + 0.3
    rays = Points(points.x * scale, points.y * scale, height * scale)
    folded = Points(*[axis + 3.0 * plane_waves(rays, random, 26.0, 2) for axis in rays])
    field = plane_waves(folded, random, SULCUS_SPACING_MM, 9)
    across = np.abs(field) * (SULCUS_SPACING_MM / (2 * np.pi) * 0.95) / scale
    bottom = head.sulcus_depth_mm * (1 + 0.3 * plane_waves(folded, random, 48.0, 5))
    openness = np.clip(0.9 + 0.55 * plane_waves(folded, random, 40.0, 5), 0, 2)
    half_width = head.sulcus_mm / 2 * openness * (1 - 0.85 * moved.squeeze[near])
    half_width *= 1.45 - depth_mm / np.maximum(bottom, 3)
    into[near] = intersection(half_width - across, bottom - depth_mm)
    return into


def _cisterns(side: Points, head: HeadSpec, random: np.random.Generator) -> Field:
    # the Sylvian fissures, the basal cisterns and the cisterna magna
    wide = 0.75 + 0.25 * head.sulcus_mm
    into = _sylvian(side, wide, random)
    low = np.asarray((side.z < 6) & (side.x < 32))
    basal = side.at(low)
    stem = _brainstem(basal)
    around = intersection(3.0 * wide + stem, -stem, -9 - basal.z, basal.y + 24 + 0.3 * basal.x)
    suprasellar = ellipsoid(basal, (0, 10, -20), (11 * wide, 10 * wide, 6))
    stalk = capsule(basal, (8, 12, -19), (28, 14, -14), 2.6 * wide, 1.8 * wide)
    quadrigeminal = ellipsoid(basal, (0, -34, -5), (10 * wide, 3, 6))
    magna = ellipsoid(basal, (0, -60, -60), (11 * wide, 9, 9))
    into[low] = union(into[low], around, solids.smooth_union(suprasellar, stalk, 3.0), quadrigeminal, magna)
    return into


def _sylvian(side: Points, wide: float, random: np.random.Generator) -> Field:
    # a sheet over the insula, and a sheet that climbs backwards from it to the surface
    into = np.full_like(side.x, FAR_MM)
    near = np.asarray((side.x > 25) & (side.z > -26) & (side.z < 32) & (side.y > -40) & (side.y < 34))
    x, y, z = points = side.at(near)
    winding = 2.2 * plane_waves(points, random, 30.0, 5)
    extent = np.square((y - 2) * (1 / 21)) + np.square(z * (1 / 14))
    insula = intersection(wide - np.abs(x - 39 + np.square(y - 2) * 0.01 + winding), (1 - extent) * 10)
    climb = (z + 3 + 0.9 * (y - 6) + 0.5 * (x - 50) + 1.5 * winding) * 0.7
    into[near] = union(insula, intersection(1.1 * wide - np.abs(climb), x - 37, 24 - y, y + 30))
    return into


def _brainstem(side: Points) -> Field:
    midbrain = capsule(side, (0, -15, -8), (0, -15, -24), 13.0, 13.0)
    pons = ellipsoid(side, (0, -13, -33), (17, 14, 14))
    medulla = capsule(side, (0, -16, -40), (0, -26, -75), 9.0, 7.5)
    return union(midbrain, pons, medulla)


def _ventricles(side: Points, scale: float) -> Field:
    # lateral, third and fourth
    into = np.full_like(side.x, FAR_MM)
    near = np.asarray((side.x < 46) & (side.y > -78) & (side.y < 46) & (side.z > -54) & (side.z < 38))
    points = side.at(near)
    lateral = np.full_like(points.x, FAR_MM)
    for start_mm, end_mm, start_radius, end_radius in VENTRICLE_RODS:
        rod = capsule(points, start_mm, end_mm, start_radius * scale, end_radius * scale)
        lateral = solids.smooth_union(lateral, rod, 3.0)
    third = ellipsoid(points, (0, -6, 0), (2.2 * scale, 15, 11))
    fourth = ellipsoid(points, (0, -33, -36), (7.5 * scale, 5.0 * scale, 12))
    into[near] = union(intersection(lateral, points.x - 0.8), third, fourth)
    return into


def paint_brain(hu: Field, brain: Brain, head: HeadSpec) -> None:
    """Paint the brain into `hu` (the points inside the skull), in place."""
    random = np.random.default_rng([head.seed, 5])
    side, below = brain.side, -brain.tentorium_mm
    hu[:] = head.white_hu + 0.7 * plane_waves(brain.points, random, 22.0, 3)
    paint(hu, brain.csf_mm + CORTEX_MM, 1.5, head.grey_hu)
    caudate, lentiform = ellipsoid(side, (16, 20, 9), (5, 11, 9)), ellipsoid(side, (26, 3, 3), (7, 17, 10))
    thalamus = ellipsoid(side, (11, -14, 6), (8.5, 13, 10))
    paint(hu, union(caudate, lentiform, thalamus), 2.0, head.grey_hu)
    folia = plane_waves(brain.points, random, 8.0, 4)
    hu += solids.smoothstep(below, -1, 1) * (head.grey_hu - 3 + 1.2 * folia - hu)
    paint(hu, intersection(ellipsoid(side, (16, -42, -36), (10, 13, 9)), below), 4.0, head.white_hu + 1)
    paint(hu, _brainstem(side), 2.0, (head.grey_hu + head.white_hu) / 2)
    paint(hu, brain.csf_mm, 1.5, head.csf_hu)
    paint(hu, brain.ventricle_mm, 1.6, head.csf_hu)
    paint(hu, brain.falx_mm, 1.2, DURA_HU)
    paint(hu, intersection(0.8 - np.abs(below), 70 + side.y), 1.2, DURA_HU - 4)
    if head.calcified_pineal:
        paint(hu, ellipsoid(side, (0, -27, 1), (2.6, 3.2, 3.0)), 1.5, PINEAL_HU)
    if head.calcified_choroid:
        paint(hu, ellipsoid(side, (22, -38, 9), (2.6, 3.4, 3.4)), 1.5, CHOROID_HU)
    hu += head.cupping_hu * np.exp(np.maximum(brain.depth_mm, 0) * (-1 / CUPPING_MM))
    # the dark band between the petrous bones
    across = np.square((brain.points.z + 40) * (1 / 8)) + np.square((brain.points.y + 15) * (1 / 7))
    hu -= 1.6 * head.cupping_hu * np.exp(-across)
