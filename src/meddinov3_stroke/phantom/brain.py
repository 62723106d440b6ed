"""The brain: cortex with sulci, white matter, deep grey matter, ventricles, cisterns, falx and tentorium."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.solids import Points, capsule, ellipsoid, paint, plane_waves, smoothstep
from meddinov3_stroke.phantom.spec import HeadSpec

DURA_HU = 52.0
"""Falx and tentorium: denser than brain, so that density alone is no haemorrhage."""
CORTEX_MM = 3.2
"""Thickness of the cortical ribbon."""


@dataclass(frozen=True, eq=False)
class Brain:
    """Anatomy at the points inside the skull; distances in mm, positive inside."""

    points: Points
    depth_mm: Float32[np.ndarray, " n"]
    """Below the inner surface of the skull."""
    surface: Points
    """The point of the vault's inner table on the ray through each point."""
    csf_mm: Float32[np.ndarray, " n"]
    """Into the rim, sulci, fissures and cisterns; ventricles excluded."""
    sulcal_mm: Float32[np.ndarray, " n"]
    """As `csf_mm`, without the rim over the convexity."""
    ventricle_mm: Float32[np.ndarray, " n"]
    falx_mm: Float32[np.ndarray, " n"]
    """Into the sheet of the falx (about 1 mm thick)."""
    tentorium_mm: Float32[np.ndarray, " n"]
    """Above the tentorium (negative: below it)."""


def build_brain(points: Points, depth_mm: Float32[np.ndarray, " n"], surface: Points, head: HeadSpec) -> Brain:
    """The anatomy at points inside the skull."""
    side = Points(np.abs(points.x), points.y, points.z)
    tentorium = tentorium_height(side)
    falx = _falx(side, depth_mm)
    sulci = np.maximum(_sulci(points, depth_mm, tentorium, head), _fissure(side, depth_mm, head))
    sulci = np.maximum(sulci, _cisterns(side, head))
    rim = np.float32(head.csf_rim_mm) - depth_mm
    ventricles = _ventricles(side, head)
    return Brain(points, depth_mm, surface, np.maximum(sulci, rim), sulci, ventricles, falx, tentorium)


def tentorium_height(side: Points) -> Float32[np.ndarray, " n"]:
    """Height in mm above the tentorium, a tent that falls off to the sides and back; large in front of it."""
    sheet = np.float32(-4) - np.float32(0.38) * side.x + np.float32(0.22) * (side.y + np.float32(35))
    in_front = np.maximum(side.y + np.float32(16) + np.float32(0.1) * side.x, 0)
    return points_above(side.z, sheet) + np.float32(3) * in_front


def points_above(z: Float32[np.ndarray, " n"], sheet: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Height above a sloping sheet, measured at right angles to it."""
    return np.asarray((z - sheet) * np.float32(0.9))


def _falx(side: Points, depth_mm: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    # the free edge arches over the corpus callosum, nearer to the vault in front than behind
    edge = np.hypot(side.y * np.float32(0.72), side.z - np.float32(4)) - np.float32(36)
    above = np.minimum(edge, side.z + np.float32(14))
    return np.asarray(np.minimum(np.float32(0.75) - side.x, above))


def _fissure(side: Points, depth_mm: Float32[np.ndarray, " n"], head: HeadSpec) -> Float32[np.ndarray, " n"]:
    half_width = np.float32(0.5 + 0.55 * head.sulcus_mm)
    edge = np.hypot(side.y * np.float32(0.75), side.z - np.float32(4)) - np.float32(31)
    return np.asarray(np.minimum(half_width - side.x, np.minimum(edge, side.z + np.float32(16))))


def _sulci(
    points: Points, depth_mm: Float32[np.ndarray, " n"], tentorium_mm: Float32[np.ndarray, " n"], head: HeadSpec
) -> Float32[np.ndarray, " n"]:
    # sheets at right angles to the surface: zero crossings of a field that changes slowly along the ray
    random = np.random.default_rng([head.seed, 4])
    radius = np.sqrt(np.square(points.x) + np.square(points.y) + np.square(points.z + np.float32(5)))
    scale = np.float32(52) / np.maximum(radius, 5) + np.float32(0.3)
    wavelength_mm = 38.0
    folded = Points(points.x * scale, points.y * scale, (points.z + np.float32(5)) * scale)
    field = plane_waves(folded, random, wavelength_mm, 9)
    uneven = np.float32(1) + np.float32(0.25) * plane_waves(folded, random, 60, 4)
    depth_of_sulcus = np.float32(head.sulcus_depth_mm) * uneven
    across = np.abs(field) * np.float32(wavelength_mm / (2 * np.pi) * 0.95) / scale
    half_width = np.float32(head.sulcus_mm / 2) * (np.float32(1.5) - depth_mm / depth_of_sulcus)
    half_width = np.where(tentorium_mm < 0, np.float32(-0.6), half_width)
    return np.asarray(np.minimum(half_width - across, depth_of_sulcus - depth_mm))


def _cisterns(side: Points, head: HeadSpec) -> Float32[np.ndarray, " n"]:
    wide = 0.8 + 0.25 * head.sulcus_mm
    stem = brainstem(side)
    around = np.minimum(np.float32(3.2 * wide) + stem, -stem)
    around = np.minimum(around, side.y + np.float32(26))
    around = np.minimum(around, np.float32(-9) - side.z)
    suprasellar = ellipsoid(side, (0, 11, -20), (13 * wide, 11 * wide, 6))
    sylvian = np.maximum(
        capsule(side, (16, 12, -17), (40, 12, -8), 2.2 * wide, 2.4 * wide),
        np.maximum(
            capsule(side, (40, 12, -8), (43, -16, 12), 2.6 * wide, 1.8 * wide),
            capsule(side, (40, 12, -6), (62, 16, -4), 2.4 * wide, 2.8 * wide),
        ),
    )
    quadrigeminal = ellipsoid(side, (0, -35, -5), (11 * wide, 4, 6))
    magna = ellipsoid(side, (0, -62, -58), (12 * wide, 10, 10))
    return np.asarray(
        np.maximum(np.maximum(around, suprasellar), np.maximum(np.maximum(sylvian, quadrigeminal), magna))
    )


def brainstem(side: Points) -> Float32[np.ndarray, " n"]:
    """Distance into midbrain, pons and medulla."""
    upper = capsule(side, (0, -15, -8), (0, -15, -24), 13.0, 13.0)
    pons = ellipsoid(side, (0, -13, -33), (17, 14, 14))
    return np.asarray(np.maximum(np.maximum(upper, pons), capsule(side, (0, -16, -40), (0, -26, -75), 9.0, 7.5)))


def _ventricles(side: Points, head: HeadSpec) -> Float32[np.ndarray, " n"]:
    k = head.ventricle_scale
    distance = capsule(side, (7, 33, 6), (7, 14, 15), 3.2 * k, 5.0 * k)
    for start, end, start_mm, end_mm in (
        ((7, 14, 15), (13, -22, 21), 5.0, 5.5),
        ((13, -22, 21), (23, -40, 9), 5.5, 7.0),
        ((23, -40, 9), (24, -62, 4), 6.5, 2.8),
        ((24, -40, 6), (33, -22, -12), 4.0, 2.4),
        ((33, -22, -12), (30, -2, -18), 2.4, 1.8),
    ):
        distance = np.maximum(distance, capsule(side, start, end, start_mm * k, end_mm * k))
    septum = side.x - np.float32(1.0)
    distance = np.minimum(distance, septum)
    third = ellipsoid(side, (0, -6, 0), (2.6 * k, 15, 11))
    fourth = ellipsoid(side, (0, -33, -36), (7.5 * k, 5.5 * k, 12))
    return np.asarray(np.maximum(distance, np.maximum(third, fourth)))


def paint_brain(hu: Float32[np.ndarray, " n"], brain: Brain, head: HeadSpec) -> None:
    """Paint the brain into `hu` (the points inside the skull), in place."""
    points = brain.points
    side = Points(np.abs(points.x), points.y, points.z)
    hu[:] = head.white_hu
    paint(hu, brain.csf_mm + np.float32(CORTEX_MM), 1.5, head.grey_hu)
    for centre_mm, half_mm in (
        ((12, 18, 8), (5, 12, 9)),
        ((25, 3, 3), (7, 17, 10)),
        ((11, -15, 6), (9, 14, 10)),
    ):
        paint(hu, ellipsoid(side, centre_mm, half_mm), 2.0, head.grey_hu)
    _paint_cerebellum(hu, brain, side, head)
    paint(hu, brain.csf_mm, 1.6, head.csf_hu)
    paint(hu, brain.ventricle_mm, 1.6, head.csf_hu)
    paint(hu, brain.falx_mm, 1.2, DURA_HU)
    paint(hu, np.minimum(np.float32(0.8) - np.abs(brain.tentorium_mm), np.float32(70) + points.y), 1.2, DURA_HU - 4)
    _paint_calcifications(hu, side, head)
    hu += np.float32(head.cupping_hu) * np.exp(np.maximum(brain.depth_mm, 0) * np.float32(-1 / 9))


def _paint_cerebellum(hu: Float32[np.ndarray, " n"], brain: Brain, side: Points, head: HeadSpec) -> None:
    random = np.random.default_rng([head.seed, 5])
    below = -brain.tentorium_mm
    folia = plane_waves(brain.points, random, 8.0, 4)
    grey = np.float32(head.grey_hu - 3) + np.float32(1.2) * folia
    share = smoothstep(below, -1, 1)
    hu += share * (grey - hu)
    paint(hu, np.minimum(ellipsoid(side, (16, -42, -36), (10, 13, 9)), below), 4.0, head.white_hu + 1)
    paint(hu, brainstem(side), 2.0, (head.grey_hu + head.white_hu) / 2)


def _paint_calcifications(hu: Float32[np.ndarray, " n"], side: Points, head: HeadSpec) -> None:
    if head.calcified_pineal:
        paint(hu, ellipsoid(side, (0, -27, 1), (2.6, 3.2, 3.0)), 1.5, 190.0)
    if head.calcified_choroid:
        paint(hu, ellipsoid(side, (23, -40, 9), (2.6, 3.4, 3.4)), 1.5, 150.0)
