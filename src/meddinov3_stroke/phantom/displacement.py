"""Mass effect: where in the undisturbed brain each point came from, once haemorrhages have pushed it aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.outline import Outline, middle_on_table, outline_of
from meddinov3_stroke.phantom.sites import LesionSpec
from meddinov3_stroke.phantom.solids import Points
from meddinov3_stroke.phantom.spec import HeadSpec

SMALLEST_ML = 2.0
"""Smaller haemorrhages push nothing aside."""
REACH_MM = 120.0
"""Depth below the inner table at which an extra-axial haemorrhage no longer moves the brain; so the midline shifts."""
FULL_SQUEEZE_MM = 9.0
"""Displacement that closes the sulci."""


@dataclass(frozen=True, eq=False)
class Displaced:
    """The undisturbed brain as found at each point."""

    points: Points
    vault_mm: Float32[np.ndarray, " n"]
    """Depth there below the inner table."""
    squeeze: Float32[np.ndarray, " n"]
    """0 where nothing pressed, 1 where sulci are closed."""


def displace(
    points: Points, vault_mm: Float32[np.ndarray, " n"], head: HeadSpec, lesions: tuple[LesionSpec, ...]
) -> Displaced:
    """Where each point came from."""
    squeeze = np.zeros_like(points.x)
    origin = Points(points.x.copy(), points.y.copy(), points.z.copy())
    depth = vault_mm.copy()
    for lesion in lesions:
        outline = outline_of(lesion)
        if lesion.volume_ml < SMALLEST_ML:
            continue
        if outline is not None:
            _push_inwards(origin, depth, squeeze, points, lesion, outline, head)
        elif lesion.label == "intraparenchymal":
            _push_apart(origin, squeeze, points, vault_mm, lesion)
    # under the thin end of a lens or crescent the brain stays inside the skull
    return Displaced(origin, np.maximum(depth, np.float32(0.6) * vault_mm), np.clip(squeeze, 0, 1))


def _push_inwards(
    origin: Points,
    depth: Float32[np.ndarray, " n"],
    squeeze: Float32[np.ndarray, " n"],
    points: Points,
    lesion: LesionSpec,
    outline: Outline,
    head: HeadSpec,
) -> None:
    middle = np.array(middle_on_table(lesion, head), dtype=np.float32)
    outwards = middle / np.linalg.norm(middle)
    along_ray = points.x * outwards[0] + points.y * outwards[1] + points.z * outwards[2]
    below = np.float32(np.linalg.norm(middle)) - along_ray
    away = np.square(points.x - middle[0]) + np.square(points.y - middle[1]) + np.square(points.z - middle[2])
    aside = np.maximum(away - np.square(below), 0)  # squared distance from the ray through the middle
    spread = 0.75 * np.hypot(outline.half_length_mm, 30.0)
    push = np.float32(0.8 * outline.thickness_mm) * np.exp(aside * np.float32(-0.5 / spread**2))
    push *= np.clip(np.float32(1) - below * np.float32(1 / REACH_MM), 0, 1)
    for axis, component in zip((origin.x, origin.y, origin.z), outwards, strict=True):
        axis += push * component
    radius = np.sqrt(np.square(points.x) + np.square(points.y) + np.square(points.z))
    depth -= push * np.clip(along_ray / np.maximum(radius, 1), 0, 1)
    squeeze += push * np.float32(1 / FULL_SQUEEZE_MM)


def _push_apart(
    origin: Points,
    squeeze: Float32[np.ndarray, " n"],
    points: Points,
    vault_mm: Float32[np.ndarray, " n"],
    lesion: LesionSpec,
) -> None:
    # an incompressible shell around a growing ball: r0^3 = r^3 - R^3; the skull does not give way
    ball_mm3 = lesion.volume_ml * 1000 * 3 / (4 * np.pi)
    x, y, z = (
        values - np.float32(centre)
        for values, centre in zip((points.x, points.y, points.z), lesion.centre_mm, strict=True)
    )
    radius = np.maximum(np.sqrt(x * x + y * y + z * z), np.float32(0.5))
    before = np.cbrt(np.maximum(radius * radius * radius - np.float32(0.8 * ball_mm3), 0))
    pull = (before / radius - np.float32(1)) * np.clip(vault_mm * np.float32(1 / 20), 0, 1)
    for axis, offset in zip((origin.x, origin.y, origin.z), (x, y, z), strict=True):
        axis += pull * offset
    squeeze += np.abs(radius - before) * np.float32(0.7 / FULL_SQUEEZE_MM)
