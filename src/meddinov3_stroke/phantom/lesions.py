"""Haemorrhages and their mass effect.

Each type ranks the voxels it may fill and takes as many as its volume needs. A rank is a distance in mm that grows away
from where the bleeding starts, so the lesion is all voxels below a threshold, the measured volume is the target's, and
a soft edge is a ramp around the threshold.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8

from meddinov3_stroke.phantom.brain import Brain, Displaced
from meddinov3_stroke.phantom.solids import Field, Mask, Points, plane_waves, ramp, vault_gauge
from meddinov3_stroke.phantom.spec import HeadSpec, LesionSpec
from meddinov3_stroke.types import LABELS

MIN_RISE_HU = 8.0
"""A voxel is in the mask only where the blood raised it by at least this much."""
CLEAR_OF_BONE_MM = 0.5
"""Nearer to the skull a voxel is partly bone."""
OEDEMA_HU = 21.0
LENS_ASPECT = 1.6
"""Half-length over thickness of an epidural lens."""
CRESCENT_ASPECT = 1.9
"""Half-length over half-height of a subdural crescent."""
LEAST_PUSHING_ML = 2.0
"""Smaller haemorrhages displace no tissue."""
REACH_MM = 120.0
"""Depth below the inner table at which an extra-axial haemorrhage no longer moves the brain; so the midline shifts."""
FULL_SQUEEZE_MM = 9.0
"""Displacement that closes the sulci."""


def _outline(lesion: LesionSpec) -> tuple[float, float, float]:
    """(thickness at the middle, half-length, half-height) in mm, the latter along the inner table, of a haemorrhage
    against the vault: an epidural one, or a subdural one of the convexity."""
    volume_mm3 = lesion.volume_ml * 1000
    if lesion.label == "epidural":  # a paraboloid: volume = pi/2 * length^2 * thickness
        thickness = float((volume_mm3 / (np.pi / 2 * LENS_ASPECT**2)) ** (1 / 3))
        return thickness, LENS_ASPECT * 1.08 * thickness, LENS_ASPECT * 0.93 * thickness
    thickness = float(np.clip(2.8 + 0.16 * lesion.volume_ml, 3, 14))  # thin, nearly even until its ends
    half_height = math.sqrt(volume_mm3 / (0.6 * thickness) / np.pi / CRESCENT_ASPECT)
    return thickness, CRESCENT_ASPECT * half_height, half_height


def _middle_on_table(lesion: LesionSpec, head: HeadSpec) -> tuple[float, float, float]:
    """The point of the inner table on the ray through the lesion's middle."""
    x, y, z = (np.array([value], dtype=np.float32) for value in lesion.centre_mm)
    gauge, _ = vault_gauge(head, x, y, z)
    height = z / gauge if z[0] > 0 else z  # below the origin the rays are horizontal
    return float((x / gauge)[0]), float((y / gauge)[0]), float(height[0])


def displace(points: Points, vault_mm: Field, head: HeadSpec, lesions: tuple[LesionSpec, ...]) -> Displaced:
    """The part of the undisturbed brain at each point once haemorrhages have pushed it aside."""
    squeeze = np.zeros_like(points.x)
    origin, depth = Points(*[axis.copy() for axis in points]), vault_mm.copy()
    for lesion in lesions:
        if lesion.volume_ml < LEAST_PUSHING_ML:
            continue
        if lesion.label == "intraparenchymal":
            _push_apart(origin, squeeze, points, vault_mm, lesion)
        elif lesion.label == "epidural" or (lesion.label, lesion.site) == ("subdural", "convexity"):
            _push_inwards(origin, depth, squeeze, points, lesion, head)
    # under the thin end of a lens or crescent the brain stays inside the skull
    return Displaced(origin, np.maximum(depth, 0.6 * vault_mm), np.clip(squeeze, 0, 1))


def _push_inwards(
    origin: Points, depth: Field, squeeze: Field, points: Points, lesion: LesionSpec, head: HeadSpec
) -> None:
    thickness, half_length, _ = _outline(lesion)
    middle = np.array(_middle_on_table(lesion, head), dtype=np.float32)
    outwards = middle / np.linalg.norm(middle)
    along_ray = points.x * outwards[0] + points.y * outwards[1] + points.z * outwards[2]
    below = np.linalg.norm(middle) - along_ray
    away = np.square(points.x - middle[0]) + np.square(points.y - middle[1]) + np.square(points.z - middle[2])
    aside = np.maximum(away - np.square(below), 0)  # squared distance from the ray through the middle
    spread = float(0.75 * np.hypot(half_length, 30.0))
    push = 0.8 * thickness * np.exp(aside * (-0.5 / spread**2))
    push *= np.clip(1 - below * (1 / REACH_MM), 0, 1)
    for axis, component in zip(origin, outwards, strict=True):
        axis += push * component
    radius = np.sqrt(np.square(points.x) + np.square(points.y) + np.square(points.z))
    depth -= push * np.clip(along_ray / np.maximum(radius, 1), 0, 1)
    squeeze += push * (1 / FULL_SQUEEZE_MM)


def _push_apart(origin: Points, squeeze: Field, points: Points, vault_mm: Field, lesion: LesionSpec) -> None:
    # an incompressible shell around a growing ball: r0^3 = r^3 - R^3; the skull is rigid
    ball_mm3 = lesion.volume_ml * 1000 * 3 / (4 * np.pi)
    x, y, z = (axis - centre for axis, centre in zip(points, lesion.centre_mm, strict=True))
    radius = np.maximum(np.sqrt(x * x + y * y + z * z), 0.5)
    before = np.cbrt(np.maximum(radius * radius * radius - 0.8 * ball_mm3, 0))
    pull = (before / radius - 1) * np.clip(vault_mm * (1 / 20), 0, 1)
    for axis, offset in zip(origin, (x, y, z), strict=True):
        axis += pull * offset
    squeeze += np.abs(radius - before) * (0.7 / FULL_SQUEEZE_MM)


def paint_lesions(
    hu: Field, brain: Brain, head: HeadSpec, lesions: tuple[LesionSpec, ...], voxel_ml: float
) -> UInt8[np.ndarray, " n"]:
    """The mask (0, or the index of the type in `LABELS`) of the haemorrhages painted into `hu`, in place."""
    mask = np.zeros(len(hu), dtype=np.uint8)
    for index, lesion in enumerate(lesions):
        random = np.random.default_rng([head.seed, 6, index])
        rank, allowed = _rank(lesion, brain, head, random)
        allowed &= (mask == 0) & (brain.depth_mm > CLEAR_OF_BONE_MM) & (hu < lesion.hu - MIN_RISE_HU)
        candidates = rank[allowed]
        if candidates.size == 0:
            continue
        last = min(max(1, round(lesion.volume_ml / voxel_ml)), candidates.size) - 1
        limit = float(np.partition(candidates, last)[last])
        near = allowed & (rank < limit + 8 + lesion.oedema_mm)
        inside = limit - rank[near]
        values = _bled(hu[near], inside, brain.points.at(near), lesion, random)
        filled = (inside >= 0) & (values - hu[near] >= MIN_RISE_HU)
        hu[near] = values
        mask[near] = np.where(filled, np.uint8(LABELS.index(lesion.label)), mask[near])
    return mask


def _bled(hu: Field, inside_mm: Field, points: Points, lesion: LesionSpec, random: np.random.Generator) -> Field:
    """HU with the clot and its oedema, where `inside_mm` is the distance into the clot."""
    if lesion.oedema_mm > 0:
        hu = hu + ramp(inside_mm + lesion.oedema_mm, 2.0) * 0.85 * np.minimum(OEDEMA_HU - hu, 0)
    share = np.clip(inside_mm * (1 / lesion.edge_mm) + 0.7, 0, 1)
    return np.asarray(hu + share * (lesion.hu + 2.5 * plane_waves(points, random, 14.0, 4) - hu))


def _rank(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> tuple[Field, Mask]:
    """(rank, voxels allowed) of a haemorrhage."""
    if lesion.label == "epidural":
        along = _along_table(lesion, brain, head)
        return brain.vault_mm / np.power(np.maximum(1 - along, 1e-4), 0.7), along < 1
    if lesion.label == "subdural":
        return _rank_subdural(lesion, brain, head)
    if lesion.label == "intraventricular":
        return _rank_intraventricular(lesion, brain)
    if lesion.label == "subarachnoid":
        rank = _distance(brain.points, lesion) * (1 + 0.15 * plane_waves(brain.points, random, 30.0, 4))
        return rank, (brain.sulcal_mm > -0.2) & (brain.ventricle_mm < 0) & (brain.falx_mm < 0.3)
    rank = _distance(brain.points, lesion) * (1 + 0.12 * plane_waves(brain.points, random, 26.0, 6))
    outside_csf = (brain.csf_mm < -0.8) & (brain.ventricle_mm < -0.8) & (np.abs(brain.tentorium_mm) > 1)
    same_side = (brain.tentorium_mm > 0) == (lesion.site not in ("cerebellum", "pons"))
    return rank, outside_csf & same_side & (brain.depth_mm > 3) & (brain.falx_mm < -0.5)


def _rank_subdural(lesion: LesionSpec, brain: Brain, head: HeadSpec) -> tuple[Field, Mask]:
    x, y, z = brain.points
    side = 1 if lesion.centre_mm[0] >= 0 else -1
    if lesion.site == "falx":
        beside = brain.midline_mm * side
        profile = _sheet_profile(lesion, 2.2, y - lesion.centre_mm[1], z - lesion.centre_mm[2])
        on_falx = brain.falx_mm + beside > 0
        return beside / profile, on_falx & (beside > -0.5) & (profile > 0.05) & (beside < 12)
    above = brain.tentorium_mm
    if lesion.site == "tentorium":
        profile = _sheet_profile(lesion, 2.5, x - lesion.centre_mm[0], y - lesion.centre_mm[1])
        return above / profile, (above > 0) & (above < 12) & (profile > 0.05) & (y < -16)
    along = _along_table(lesion, brain, head)
    profile = np.sqrt(np.maximum(1 - along, 1e-6))
    return brain.vault_mm / profile, (along < 1) & (brain.midline_mm * side > 3) & (above > 0)


def _sheet_profile(lesion: LesionSpec, thickness_mm: float, first_mm: Field, second_mm: Field) -> Field:
    """Relative thickness of a lens on falx or tentorium, 1 at its middle."""
    reach_mm = 1.3 * math.sqrt(lesion.volume_ml * 1000 / thickness_mm / np.pi)
    squared = np.square(first_mm) + np.square(second_mm)
    return np.asarray(np.sqrt(np.maximum(1 - squared * (1 / reach_mm**2), 1e-6)))


def _along_table(lesion: LesionSpec, brain: Brain, head: HeadSpec) -> Field:
    """Square of the distance from the lesion's middle along the inner table, 1 at its outline."""
    _, half_length, half_height = _outline(lesion)
    x, y, z = (axis - middle for axis, middle in zip(brain.surface, _middle_on_table(lesion, head), strict=True))
    return np.asarray((np.square(x) + np.square(y)) * (1 / half_length**2) + np.square(z * (1 / half_height)))


def _rank_intraventricular(lesion: LesionSpec, brain: Brain) -> tuple[Field, Mask]:
    inside = brain.ventricle_mm > 0
    if not lesion.site.startswith("layering"):
        return _distance(brain.points, lesion), inside
    if "one" in lesion.site:
        inside &= brain.points.x * float(np.sign(lesion.centre_mm[0])) > 0
    # the patient lies on the back: blood settles posteriorly, with a level
    return brain.points.y + 90, inside & (brain.points.z > -20)


def _distance(points: Points, lesion: LesionSpec) -> Field:
    squared = np.zeros_like(points.x)
    for axis, centre, stretch in zip(points, lesion.centre_mm, lesion.elongation, strict=True):
        squared += np.square((axis - centre) * (1 / stretch))
    return np.asarray(np.sqrt(squared))
