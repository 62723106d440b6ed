"""Haemorrhages: each type ranks the voxels it may fill, and takes as many as its volume needs.

A rank is a distance in mm that grows away from where bleeding starts, so the lesion is all voxels below a threshold,
the measured volume is the target's, and a soft edge is a ramp around the threshold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from meddinov3_stroke.phantom.brain import Brain
from meddinov3_stroke.phantom.outline import along_table, middle_on_table, outline_of
from meddinov3_stroke.phantom.sites import LesionSpec
from meddinov3_stroke.phantom.solids import Points, plane_waves, ramp
from meddinov3_stroke.phantom.spec import HeadSpec
from meddinov3_stroke.types import LABELS

MIN_RISE_HU = 8.0
"""A voxel is in the mask only where the blood raised it by at least this much."""
CLEAR_OF_BONE_MM = 0.5
"""Nearer to the skull a voxel is partly bone."""
OEDEMA_HU = 21.0
"""CT number of the oedema around an intraparenchymal haemorrhage."""

Ranking = tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]


def paint_lesions(
    hu: Float32[np.ndarray, " n"],
    brain: Brain,
    head: HeadSpec,
    lesions: tuple[LesionSpec, ...],
    voxel_ml: float,
) -> UInt8[np.ndarray, " n"]:
    """The mask (0, or the index of the type in `LABELS`) of the haemorrhages painted into `hu`, in place."""
    mask = np.zeros(len(hu), dtype=np.uint8)
    for index, lesion in enumerate(lesions):
        random = np.random.default_rng([head.seed, 6, index])
        rank, allowed = RANKINGS[lesion.label](lesion, brain, head, random)
        allowed &= (mask == 0) & (brain.depth_mm > CLEAR_OF_BONE_MM)
        wanted = max(1, round(lesion.volume_ml / voxel_ml))
        _fill(hu, mask, lesion, rank, allowed, wanted, random, brain)
    return mask


def _fill(
    hu: Float32[np.ndarray, " n"],
    mask: UInt8[np.ndarray, " n"],
    lesion: LesionSpec,
    rank: Float32[np.ndarray, " n"],
    allowed: Bool[np.ndarray, " n"],
    wanted: int,
    random: np.random.Generator,
    brain: Brain,
) -> None:
    allowed &= hu < lesion.hu - MIN_RISE_HU
    candidates = rank[allowed]
    if candidates.size == 0:
        return
    limit = float(np.partition(candidates, min(wanted, candidates.size) - 1)[min(wanted, candidates.size) - 1])
    near = allowed & (rank < limit + 8 + lesion.oedema_mm)
    inside = np.float32(limit) - rank[near]
    values = hu[near]
    if lesion.oedema_mm > 0:
        rim = ramp(inside + np.float32(lesion.oedema_mm), 2.0) * np.float32(0.85)
        values += rim * np.minimum(np.float32(OEDEMA_HU) - values, 0)
    share = np.clip(inside * np.float32(1 / lesion.edge_mm) + np.float32(0.7), 0, 1)
    clot = np.float32(lesion.hu) + np.float32(2.5) * plane_waves(brain.points[near], random, 14.0, 4)
    values += share * (clot - values)
    filled = (inside >= 0) & (values - hu[near] >= MIN_RISE_HU)
    hu[near] = values
    mask[near] = np.where(filled, np.uint8(LABELS.index(lesion.label)), mask[near])


def _rank_epidural(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> Ranking:
    outline = outline_of(lesion)
    assert outline is not None
    along = along_table(brain.surface, middle_on_table(lesion, head), outline)
    profile = np.power(np.maximum(np.float32(1) - along, 1e-4), np.float32(0.7))
    return brain.vault_mm / profile, along < 1


def _rank_subdural(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> Ranking:
    if lesion.site == "falx":
        return _rank_falx(lesion, brain)
    if lesion.site == "tentorium":
        return _rank_tentorium(lesion, brain)
    outline = outline_of(lesion)
    assert outline is not None
    along = along_table(brain.surface, middle_on_table(lesion, head), outline)
    profile = np.sqrt(np.maximum(np.float32(1) - along, 1e-6))
    own_side = brain.midline_mm * np.float32(np.sign(lesion.centre_mm[0])) > 3
    return brain.vault_mm / profile, (along < 1) & own_side & (brain.tentorium_mm > 0)


def _rank_falx(lesion: LesionSpec, brain: Brain) -> Ranking:
    area = lesion.volume_ml * 1000 / 2.2
    reach = 1.3 * np.sqrt(area / np.pi)
    points = brain.points
    side = np.float32(1 if lesion.centre_mm[0] >= 0 else -1)
    beside = brain.midline_mm * side
    squared = np.square(points.y - np.float32(lesion.centre_mm[1])) + np.square(
        points.z - np.float32(lesion.centre_mm[2])
    )
    profile = np.sqrt(np.maximum(np.float32(1) - squared * np.float32(1 / reach**2), 1e-6))
    on_falx = brain.falx_mm + beside > 0
    return beside / profile, on_falx & (beside > -0.5) & (profile > 0.05) & (beside < 12)


def _rank_tentorium(lesion: LesionSpec, brain: Brain) -> Ranking:
    reach = 1.3 * np.sqrt(lesion.volume_ml * 1000 / 2.5 / np.pi)
    points = brain.points
    squared = np.square(points.x - np.float32(lesion.centre_mm[0])) + np.square(
        points.y - np.float32(lesion.centre_mm[1])
    )
    profile = np.sqrt(np.maximum(np.float32(1) - squared * np.float32(1 / reach**2), 1e-6))
    above = brain.tentorium_mm
    return above / profile, (above > 0) & (above < 12) & (profile > 0.05) & (points.y < -16)


def _rank_subarachnoid(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> Ranking:
    uneven = np.float32(1) + np.float32(0.15) * plane_waves(brain.points, random, 30.0, 4)
    rank = _distance(brain.points, lesion) * uneven
    return rank, (brain.sulcal_mm > -0.2) & (brain.ventricle_mm < 0) & (brain.falx_mm < 0.3)


def _rank_intraventricular(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> Ranking:
    points = brain.points
    inside = brain.ventricle_mm > 0
    if not lesion.site.startswith("layering"):
        return _distance(points, lesion), inside
    if "one" in lesion.site:
        inside &= points.x * np.float32(np.sign(lesion.centre_mm[0])) > 0
    lateral = inside & (points.z > -20)
    return points.y + np.float32(90), lateral  # the patient lies on the back: blood settles posteriorly, with a level


def _rank_intraparenchymal(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> Ranking:
    uneven = np.float32(1) + np.float32(0.12) * plane_waves(brain.points, random, 26.0, 6)
    rank = _distance(brain.points, lesion) * uneven
    outside_csf = (brain.csf_mm < -0.8) & (brain.ventricle_mm < -0.8) & (np.abs(brain.tentorium_mm) > 1)
    same_side = (brain.tentorium_mm > 0) == (lesion.site not in ("cerebellum", "pons"))
    return rank, outside_csf & same_side & (brain.depth_mm > 3) & (brain.falx_mm < -0.5)


def _distance(points: Points, lesion: LesionSpec) -> Float32[np.ndarray, " n"]:
    squared = np.zeros_like(points.x)
    for values, centre, stretch in zip(
        (points.x, points.y, points.z), lesion.centre_mm, lesion.elongation, strict=True
    ):
        squared += np.square((values - np.float32(centre)) * np.float32(1 / stretch))
    return np.asarray(np.sqrt(squared))


RANKINGS: dict[str, Callable[[LesionSpec, Brain, HeadSpec, np.random.Generator], Ranking]] = {
    "epidural": _rank_epidural,
    "intraparenchymal": _rank_intraparenchymal,
    "intraventricular": _rank_intraventricular,
    "subarachnoid": _rank_subarachnoid,
    "subdural": _rank_subdural,
}
"""How each type ranks the voxels it may fill."""
