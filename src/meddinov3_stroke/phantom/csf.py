"""Spaces filled with cerebrospinal fluid: sulci, fissures, cisterns, ventricles.

Each function gives a distance in mm, positive inside the space. `side` holds points mirrored to the right half.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.displacement import Displaced
from meddinov3_stroke.phantom.solids import Points, capsule, ellipsoid, plane_waves, smooth_union
from meddinov3_stroke.phantom.spec import HeadSpec

SULCUS_SPACING_MM = 34.0
"""Wavelength of the folding pattern on the surface of the brain; a sulcus lies at every half of it."""
DEEPEST_SULCUS_MM = 30.0
"""Below this depth no sulcus is looked for."""
FAR_MM = -20.0
"""Stands for any distance well outside."""


def rim(
    moved: Displaced, depth_mm: Float32[np.ndarray, " n"], head: HeadSpec, random: np.random.Generator
) -> Float32[np.ndarray, " n"]:
    """Into the film of fluid between brain and skull, of uneven thickness; thin where the brain is pressed outwards."""
    uneven = np.float32(0.55) + np.float32(0.4) * plane_waves(moved.points, random, 60.0, 4)
    film = np.float32(head.csf_rim_mm) * uneven * (np.float32(1) - moved.squeeze)
    return np.asarray(np.maximum(film - moved.vault_mm, np.float32(0.4) - depth_mm))


def sulci(
    moved: Displaced, tentorium_mm: Float32[np.ndarray, " n"], head: HeadSpec, random: np.random.Generator
) -> Float32[np.ndarray, " n"]:
    """Into the sulci: winding sheets at right angles to the vault, wider at the surface, some of them closed."""
    into = np.full_like(tentorium_mm, FAR_MM)
    near = (moved.vault_mm < DEEPEST_SULCUS_MM) & (tentorium_mm > 0)
    points, depth_mm = moved.points[near], moved.vault_mm[near]
    folded, scale = _folded(points, random)
    field = plane_waves(folded, random, SULCUS_SPACING_MM, 9)
    across = np.abs(field) * np.float32(SULCUS_SPACING_MM / (2 * np.pi) * 0.95) / scale
    slow = plane_waves(folded, random, 48.0, 5)
    bottom = np.float32(head.sulcus_depth_mm) * (np.float32(1) + np.float32(0.3) * slow)
    openness = np.clip(np.float32(0.9) + np.float32(0.55) * plane_waves(folded, random, 40.0, 5), 0, 2)
    half_width = np.float32(head.sulcus_mm / 2) * openness * (np.float32(1) - np.float32(0.85) * moved.squeeze[near])
    half_width = half_width * (np.float32(1.45) - depth_mm / np.maximum(bottom, 3))
    into[near] = np.minimum(half_width - across, bottom - depth_mm)
    return into


def _folded(points: Points, random: np.random.Generator) -> tuple[Points, Float32[np.ndarray, " n"]]:
    # nearly constant along a ray, so that the sheets stand on the surface; warped, so that they wind
    height = points.z + np.float32(5)
    radius = np.sqrt(np.square(points.x) + np.square(points.y) + np.square(height))
    scale = np.float32(52) / np.maximum(radius, 5) + np.float32(0.3)
    folded = Points(points.x * scale, points.y * scale, height * scale)
    warps = [np.float32(3.0) * plane_waves(folded, random, 26.0, 2) for _ in range(3)]
    return Points(folded.x + warps[0], folded.y + warps[1], folded.z + warps[2]), scale


def fissure(median: Points, head: HeadSpec) -> Float32[np.ndarray, " n"]:
    """Into the interhemispheric fissure; `median` holds distances from the midline as x."""
    half_width = np.float32(0.55 + 0.4 * head.sulcus_mm)
    edge = np.hypot(median.y * np.float32(0.75), median.z - np.float32(4)) - np.float32(31)
    return np.asarray(np.minimum(half_width - median.x, np.minimum(edge, median.z + np.float32(16))))


def cisterns(side: Points, head: HeadSpec, random: np.random.Generator) -> Float32[np.ndarray, " n"]:
    """Into the basal cisterns, the Sylvian fissures and the cisterna magna."""
    wide = 0.75 + 0.25 * head.sulcus_mm
    into = _sylvian(side, wide, random)
    low = np.asarray((side.z < 6) & (side.x < 32))
    basal = side[low]
    stem = brainstem(basal)
    around = np.minimum(np.minimum(np.float32(3.0 * wide) + stem, -stem), np.float32(-9) - basal.z)
    around = np.minimum(around, basal.y + np.float32(24) + np.float32(0.3) * basal.x)
    suprasellar = ellipsoid(basal, (0, 10, -20), (11 * wide, 10 * wide, 6))
    stalk = capsule(basal, (8, 12, -19), (28, 14, -14), 2.6 * wide, 1.8 * wide)
    quadrigeminal = ellipsoid(basal, (0, -34, -5), (10 * wide, 3, 6))
    magna = ellipsoid(basal, (0, -60, -60), (11 * wide, 9, 9))
    joined = np.maximum(np.maximum(around, smooth_union(suprasellar, stalk, 3.0)), np.maximum(quadrigeminal, magna))
    into[low] = np.maximum(into[low], joined)
    return into


def _sylvian(side: Points, wide: float, random: np.random.Generator) -> Float32[np.ndarray, " n"]:
    # a sheet over the insula, and a sheet that climbs backwards from it to the surface
    into = np.full_like(side.x, FAR_MM)
    near = np.asarray((side.x > 25) & (side.z > -26) & (side.z < 32) & (side.y > -40) & (side.y < 34))
    points = side[near]
    winding = np.float32(2.2) * plane_waves(points, random, 30.0, 5)
    bowed = np.abs(points.x - np.float32(39) + np.square(points.y - np.float32(2)) * np.float32(0.01) + winding)
    extent = np.square((points.y - np.float32(2)) * np.float32(1 / 21)) + np.square(points.z * np.float32(1 / 14))
    insula = np.minimum(np.float32(1.0 * wide) - bowed, (np.float32(1) - extent) * np.float32(10))
    climb = points.z + np.float32(3) + np.float32(0.9) * (points.y - np.float32(6))
    climb = (climb + np.float32(0.5) * (points.x - np.float32(50)) + np.float32(1.5) * winding) * np.float32(0.7)
    stem = np.minimum(np.float32(1.1 * wide) - np.abs(climb), points.x - np.float32(37))
    stem = np.minimum(stem, np.minimum(np.float32(24) - points.y, points.y + np.float32(30)))
    into[near] = np.maximum(insula, stem)
    return into


def brainstem(side: Points) -> Float32[np.ndarray, " n"]:
    """Distance into midbrain, pons and medulla."""
    midbrain = capsule(side, (0, -15, -8), (0, -15, -24), 13.0, 13.0)
    pons = ellipsoid(side, (0, -13, -33), (17, 14, 14))
    medulla = capsule(side, (0, -16, -40), (0, -26, -75), 9.0, 7.5)
    return np.asarray(np.maximum(np.maximum(midbrain, pons), medulla))


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


def ventricles(side: Points, head: HeadSpec) -> Float32[np.ndarray, " n"]:
    """Into the lateral, third and fourth ventricles."""
    into = np.full_like(side.x, FAR_MM)
    near = np.asarray((side.x < 46) & (side.y > -78) & (side.y < 46) & (side.z > -54) & (side.z < 38))
    points = side[near]
    k = head.ventricle_scale
    lateral = np.full_like(points.x, FAR_MM)
    for start_mm, end_mm, start_radius_mm, end_radius_mm in VENTRICLE_RODS:
        rod = capsule(points, start_mm, end_mm, start_radius_mm * k, end_radius_mm * k)
        lateral = smooth_union(lateral, rod, 3.0)
    lateral = np.minimum(lateral, points.x - np.float32(0.8))
    third = ellipsoid(points, (0, -6, 0), (2.2 * k, 15, 11))
    fourth = ellipsoid(points, (0, -33, -36), (7.5 * k, 5.0 * k, 12))
    into[near] = np.maximum(lateral, np.maximum(third, fourth))
    return into
