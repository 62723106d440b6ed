"""The brain: cortex with sulci, white matter, deep grey matter, ventricles, falx and tentorium."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom import csf
from meddinov3_stroke.phantom.displacement import Displaced
from meddinov3_stroke.phantom.solids import Points, ellipsoid, paint, plane_waves, smoothstep
from meddinov3_stroke.phantom.spec import HeadSpec

DURA_HU = 52.0
"""Falx and tentorium: denser than brain, so that density alone is no haemorrhage."""
PINEAL_HU, CHOROID_HU = 190.0, 150.0
"""Normal calcifications of the pineal gland and of the choroid plexus; no label."""
CORTEX_MM = 3.2
"""Thickness of the cortical ribbon."""
CUPPING_MM = 9.0
"""Depth over which the residual beam hardening below the skull falls off."""


@dataclass(frozen=True, eq=False)
class Brain:
    """Anatomy at the points inside the skull; distances in mm, positive inside."""

    points: Points
    depth_mm: Float32[np.ndarray, " n"]
    """Below the inner surface of the skull, its base included."""
    vault_mm: Float32[np.ndarray, " n"]
    """Below the inner table of the vault."""
    surface: Points
    """The point of the vault's inner table on the ray through each point."""
    csf_mm: Float32[np.ndarray, " n"]
    """Into the rim, sulci, fissures and cisterns; ventricles excluded."""
    sulcal_mm: Float32[np.ndarray, " n"]
    """As `csf_mm`, without the rim over the convexity."""
    ventricle_mm: Float32[np.ndarray, " n"]
    falx_mm: Float32[np.ndarray, " n"]
    """Into the sheet of the falx (about 1 mm thick)."""
    midline_mm: Float32[np.ndarray, " n"]
    """Distance to the right of the falx."""
    tentorium_mm: Float32[np.ndarray, " n"]
    """Above the tentorium (negative: below it)."""


def build_brain(
    points: Points,
    depth_mm: Float32[np.ndarray, " n"],
    vault_mm: Float32[np.ndarray, " n"],
    surface: Points,
    moved: Displaced,
    head: HeadSpec,
) -> Brain:
    """The anatomy at points inside the skull, where `moved` says which part of the undisturbed brain lies at each."""
    random = np.random.default_rng([head.seed, 4])
    origin = moved.points
    side = Points(np.abs(origin.x), origin.y, origin.z)
    midline = origin.x + np.float32(0.7) * plane_waves(origin, random, 55.0, 3)
    median = Points(np.abs(midline), origin.y, origin.z)
    tentorium = tentorium_height(side)
    sulci = csf.sulci(moved, tentorium, head, random)
    sulci = np.maximum(sulci, csf.fissure(median, head))
    sulci = np.maximum(sulci, csf.cisterns(side, head, random))
    return Brain(
        points=points,
        depth_mm=depth_mm,
        vault_mm=vault_mm,
        surface=surface,
        csf_mm=np.maximum(sulci, csf.rim(moved, depth_mm, head, random)),
        sulcal_mm=sulci,
        ventricle_mm=csf.ventricles(side, head),
        falx_mm=_falx(median),
        midline_mm=midline,
        tentorium_mm=tentorium,
    )


def tentorium_height(side: Points) -> Float32[np.ndarray, " n"]:
    """Height in mm above the tentorium, a tent that falls off to the sides and back; large in front of it."""
    sheet = np.float32(-4) - np.float32(0.38) * side.x + np.float32(0.22) * (side.y + np.float32(35))
    in_front = np.maximum(side.y + np.float32(16) + np.float32(0.1) * side.x, 0)
    return np.asarray((side.z - sheet) * np.float32(0.9) + np.float32(3) * in_front)


def _falx(median: Points) -> Float32[np.ndarray, " n"]:
    # the free edge arches over the corpus callosum, nearer to the vault in front than behind
    edge = np.hypot(median.y * np.float32(0.72), median.z - np.float32(4)) - np.float32(36)
    return np.asarray(np.minimum(np.float32(0.7) - median.x, np.minimum(edge, median.z + np.float32(14))))


def paint_brain(hu: Float32[np.ndarray, " n"], brain: Brain, moved: Displaced, head: HeadSpec) -> None:
    """Paint the brain into `hu` (the points inside the skull), in place."""
    random = np.random.default_rng([head.seed, 5])
    origin = moved.points
    side = Points(np.abs(origin.x), origin.y, origin.z)
    hu[:] = np.float32(head.white_hu) + np.float32(0.7) * plane_waves(brain.points, random, 22.0, 3)
    paint(hu, brain.csf_mm + np.float32(CORTEX_MM), 1.5, head.grey_hu)
    _paint_deep_grey(hu, side, head)
    _paint_below_tentorium(hu, brain, side, head, random)
    paint(hu, brain.csf_mm, 1.5, head.csf_hu)
    paint(hu, brain.ventricle_mm, 1.6, head.csf_hu)
    paint(hu, brain.falx_mm, 1.2, DURA_HU)
    sheet = np.minimum(np.float32(0.8) - np.abs(brain.tentorium_mm), np.float32(70) + origin.y)
    paint(hu, sheet, 1.2, DURA_HU - 4)
    _paint_calcifications(hu, side, head)
    _add_beam_hardening(hu, brain, head)


def _paint_deep_grey(hu: Float32[np.ndarray, " n"], side: Points, head: HeadSpec) -> None:
    caudate = ellipsoid(side, (16, 20, 9), (5, 11, 9))
    lentiform = ellipsoid(side, (26, 3, 3), (7, 17, 10))
    thalamus = ellipsoid(side, (11, -14, 6), (8.5, 13, 10))
    paint(hu, np.maximum(np.maximum(caudate, lentiform), thalamus), 2.0, head.grey_hu)


def _paint_below_tentorium(
    hu: Float32[np.ndarray, " n"], brain: Brain, side: Points, head: HeadSpec, random: np.random.Generator
) -> None:
    below = -brain.tentorium_mm
    folia = plane_waves(brain.points, random, 8.0, 4)
    share = smoothstep(below, -1, 1)
    hu += share * (np.float32(head.grey_hu - 3) + np.float32(1.2) * folia - hu)
    paint(hu, np.minimum(ellipsoid(side, (16, -42, -36), (10, 13, 9)), below), 4.0, head.white_hu + 1)
    paint(hu, csf.brainstem(side), 2.0, (head.grey_hu + head.white_hu) / 2)


def _paint_calcifications(hu: Float32[np.ndarray, " n"], side: Points, head: HeadSpec) -> None:
    if head.calcified_pineal:
        paint(hu, ellipsoid(side, (0, -27, 1), (2.6, 3.2, 3.0)), 1.5, PINEAL_HU)
    if head.calcified_choroid:
        paint(hu, ellipsoid(side, (22, -38, 9), (2.6, 3.4, 3.4)), 1.5, CHOROID_HU)


def _add_beam_hardening(hu: Float32[np.ndarray, " n"], brain: Brain, head: HeadSpec) -> None:
    points = brain.points
    hu += np.float32(head.cupping_hu) * np.exp(np.maximum(brain.depth_mm, 0) * np.float32(-1 / CUPPING_MM))
    # the dark band between the petrous bones
    across = np.square((points.z + np.float32(40)) * np.float32(1 / 8))
    across += np.square((points.y + np.float32(15)) * np.float32(1 / 7))
    hu -= np.float32(1.6 * head.cupping_hu) * np.exp(-across)
