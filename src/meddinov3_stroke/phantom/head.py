"""One synthetic head CT from its specification: pose, haemorrhages with their mass effect, and the acquisition.

Each type of haemorrhage ranks the voxels it may fill and takes as many as its volume needs. A rank is a distance in mm
that grows away from where the bleeding starts, so the lesion is all voxels below a threshold, the measured volume is
the target's, and a soft edge is a ramp around the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, UInt8

from meddinov3_stroke.phantom import anatomy
from meddinov3_stroke.phantom.anatomy import Brain, Field, Mask, Points, norm, plane_waves, ramp
from meddinov3_stroke.phantom.spec import HeadSpec, LesionSpec, PhantomSpec
from meddinov3_stroke.types import LABELS

# (slice, row, column) steps in RAS+: slices go superior, rows posterior, columns to the patient's left
CANONICAL_TO_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
MAX_BLEED_HU = 9.0  # most that the point spread adds to a voxel, since scanners correct the edge of the skull
OUTSIDE_MM = 32.0  # beyond this distance from the inner table of the vault there is air (the tip of the nose excepted)
PLASTIC_HU, HOLDER_GAP_MM = 110.0, 7.0  # the head-holder, and its distance from the back of the head
MIN_RISE_HU = 8.0  # a voxel is in the mask only where the blood raised it by at least this much
CLEAR_OF_BONE_MM = 0.5  # nearer to the skull a voxel is partly bone
OEDEMA_HU = 21.0
LENS_ASPECT, CRESCENT_ASPECT = 1.6, 1.9  # epidural: half-length over thickness; subdural: over half-height
LEAST_PUSHING_ML = 2.0  # smaller haemorrhages displace no tissue
REACH_MM = 120.0  # depth at which an extra-axial haemorrhage no longer moves the brain, so that the midline shifts
FULL_SQUEEZE_MM = 9.0  # displacement that closes the sulci


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic head CT in canonical orientation: slices inferior -> superior, rows anterior -> posterior, columns
    patient right -> left."""

    hu: Int16[np.ndarray, "slice row col"]
    mask: UInt8[np.ndarray, "slice row col"]  # 0, or the index in `LABELS` of the haemorrhage there
    affine: Float64[np.ndarray, "4 4"]  # maps (slice, row, column, 1) to RAS+ mm
    spec: PhantomSpec

    @cached_property
    def lesion_volumes_ml(self) -> dict[str, float]:
        """Volume of each of the five types in mL, measured from the mask."""
        counts = np.bincount(self.mask.reshape(-1), minlength=len(LABELS))
        return {label: float(counts[index] * _voxel_ml(self.spec)) for index, label in enumerate(LABELS) if index > 0}

    @cached_property
    def labels(self) -> dict[str, int]:
        """The six labels of the volume, read off the mask; `any` is the OR of the others."""
        return dict(zip(LABELS, self.slice_labels.max(axis=0).tolist(), strict=True))

    @cached_property
    def slice_labels(self) -> Int8[np.ndarray, "slice label"]:
        """The six labels of every slice, read off the mask."""
        flat = self.mask.reshape(self.mask.shape[0], -1)
        labels = np.stack([(flat == index).any(axis=1) for index in range(len(LABELS))], axis=1)
        labels[:, 0] = labels[:, 1:].any(axis=1)
        return labels.astype(np.int8)


def make_phantom(spec: PhantomSpec) -> Phantom:
    """The head CT, its mask and its affine; the same specification gives the same voxels."""
    affine, (x, y, z) = _grid(spec)
    gauge, radius = anatomy.vault_gauge(spec.head, x, y, z)
    vault_mm = radius / gauge - radius
    hu = np.full(spec.shape, anatomy.AIR_HU, dtype=np.float32)
    mask = np.zeros(spec.shape, dtype=np.uint8)
    near = vault_mm > -OUTSIDE_MM
    hu[near], mask[near] = _head(spec, Points(x[near], y[near], z[near]), gauge[near], vault_mm[near])
    if spec.head_holder:
        radius_mm = spec.head.half_length_mm + spec.head.skull_mm + spec.head.scalp_mm - 18 + HOLDER_GAP_MM
        sheet = np.minimum(1 - np.abs(norm(x, y + 18) - radius_mm), -y - 30)
        hu += ramp(sheet, 1.2) * (hu < -900) * (PLASTIC_HU - hu)
    white = np.random.default_rng([spec.seed, 7]).standard_normal(spec.shape, dtype=np.float32)
    gain = spec.noise_hu / (1 - 4 * 0.2 + 6 * 0.2**2)  # what the kernel (0.2, 0.6, 0.2) leaves, along two axes
    scanned = np.clip(_blur(hu, 0.14) + _blur(white, 0.2) * gain, -1024, 3071)
    return Phantom(np.rint(scanned).astype(np.int16), mask, affine, spec)


def _voxel_ml(spec: PhantomSpec) -> float:
    return float(np.prod(spec.spacing_mm)) / 1000


def _grid(spec: PhantomSpec) -> tuple[Float64[np.ndarray, "4 4"], Points]:
    # the affine, rounded to what a NIfTI header can hold, and the head coordinates of every voxel centre
    affine: Float64[np.ndarray, "4 4"] = np.eye(4)
    affine[:3, :3] = rotation(0, spec.tilt_degrees) @ CANONICAL_TO_RAS @ np.diag(spec.spacing_mm)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(spec.shape) - 1) / 2)  # the scanner's origin is the middle
    affine = affine.astype(np.float32).astype(np.float64)
    pose = np.eye(4)
    pose[:3, :3] = rotation(2, spec.rotation_degrees) @ rotation(1, spec.roll_degrees)
    pose[:3, 3] = spec.centre_mm
    to_head = (pose @ affine).astype(np.float32)
    k, i, j = (np.arange(n, dtype=np.float32) for n in spec.shape)
    x, y, z = ((row[0] * k + row[3])[:, None, None] + (row[1] * i)[:, None] + row[2] * j for row in to_head[:3])
    return affine, Points(x, y, z)


def rotation(axis: int, degrees: float) -> Float64[np.ndarray, "3 3"]:
    """The matrix that turns head coordinates about an axis (0: x, 1: y, 2: z)."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def _head(spec: PhantomSpec, points: Points, gauge: Field, vault_mm: Field) -> tuple[Field, UInt8[np.ndarray, " n"]]:
    # (HU, mask) of the points around and inside the skull
    head = spec.head
    hu = np.full(points.x.shape, anatomy.AIR_HU, dtype=np.float32)
    depth_mm = anatomy.paint_outside(hu, points, vault_mm, head)
    cavity = depth_mm > -1.0
    inside, depth_mm, vault_mm = points.at(cavity), depth_mm[cavity], vault_mm[cavity]
    to_table = 1 / gauge[cavity]
    surface = Points(inside.x * to_table, inside.y * to_table, inside.z * np.where(inside.z > 0, to_table, 1))
    moved = push_tissue(inside, vault_mm, head, spec.lesions)
    brain = anatomy.build_brain(inside, surface, depth_mm, vault_mm, moved, head)
    tissue = anatomy.paint_brain(brain, head)
    mask = np.zeros(len(hu), dtype=np.uint8)
    mask[cavity] = paint_lesions(tissue, brain, head, spec.lesions, _voxel_ml(spec), head.seed)
    hu[cavity] += np.clip(depth_mm + 0.5, 0, 1) * (tissue - hu[cavity])
    return hu, mask


def _blur(volume: Field, share: float) -> Field:
    # a three-point kernel along rows and columns: the scanner's point spread
    for axis in (1, 2):
        step = np.clip(np.diff(volume, axis=axis) * share, -MAX_BLEED_HU, MAX_BLEED_HU)
        volume = volume.copy()
        lines, steps = np.moveaxis(volume, axis, 0), np.moveaxis(step, axis, 0)
        lines[:-1] += steps
        lines[1:] -= steps
    return volume


def _footprint(lesion: LesionSpec, head: HeadSpec) -> tuple[Float32[np.ndarray, 3], float, float, float]:
    # (middle, thickness there, half-length, half-height) in mm on the inner table; the middle is on the lesion's ray
    volume_mm3 = lesion.volume_ml * 1000
    if lesion.label == "epidural":  # a paraboloid: volume = pi/2 * length^2 * thickness
        thickness = float((volume_mm3 / (np.pi / 2 * LENS_ASPECT**2)) ** (1 / 3))
        half_length, half_height = LENS_ASPECT * 1.08 * thickness, LENS_ASPECT * 0.93 * thickness
    else:
        thickness = float(np.clip(2.8 + 0.16 * lesion.volume_ml, 3, 14))  # thin, nearly even until its ends
        half_height = math.sqrt(volume_mm3 / (0.6 * thickness) / np.pi / CRESCENT_ASPECT)
        half_length = CRESCENT_ASPECT * half_height
    x, y, z = np.array(lesion.centre_mm, dtype=np.float32)[:, None]
    gauge, _ = anatomy.vault_gauge(head, x, y, z)
    middle = np.concatenate([x / gauge, y / gauge, np.where(z > 0, z / gauge, z)])
    return middle, thickness, half_length, half_height


def push_tissue(
    points: Points, vault_mm: Field, head: HeadSpec, lesions: tuple[LesionSpec, ...]
) -> tuple[Points, Field, Field]:
    """(place, depth below the inner table, squeeze: 1 closes sulci) of the undisturbed brain now at each point."""
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
    return origin, np.maximum(depth, 0.6 * vault_mm), np.clip(squeeze, 0, 1)


def _push_inwards(
    origin: Points, depth: Field, squeeze: Field, points: Points, lesion: LesionSpec, head: HeadSpec
) -> None:
    middle, thickness, half_length, _ = _footprint(lesion, head)
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
    depth -= push * np.clip(along_ray / np.maximum(norm(*points), 1), 0, 1)
    squeeze += push * (1 / FULL_SQUEEZE_MM)


def _push_apart(origin: Points, squeeze: Field, points: Points, vault_mm: Field, lesion: LesionSpec) -> None:
    # an incompressible shell around a growing ball: r0^3 = r^3 - R^3; the skull is rigid
    ball_mm3 = lesion.volume_ml * 1000 * 3 / (4 * np.pi)
    offsets = [axis - centre for axis, centre in zip(points, lesion.centre_mm, strict=True)]
    radius = np.maximum(norm(*offsets), 0.5)
    before = np.cbrt(np.maximum(radius * radius * radius - 0.8 * ball_mm3, 0))
    pull = (before / radius - 1) * np.clip(vault_mm * (1 / 20), 0, 1)
    for axis, offset in zip(origin, offsets, strict=True):
        axis += pull * offset
    squeeze += np.abs(radius - before) * (0.7 / FULL_SQUEEZE_MM)


def paint_lesions(
    hu: Field, brain: Brain, head: HeadSpec, lesions: tuple[LesionSpec, ...], voxel_ml: float, seed: int
) -> UInt8[np.ndarray, " n"]:
    """The mask of the haemorrhages, which are painted into `hu`, in place."""
    mask = np.zeros(len(hu), dtype=np.uint8)
    for index, lesion in enumerate(lesions):
        random = np.random.default_rng([seed, 6, index])
        rank, allowed = _rank(lesion, brain, head, random)
        allowed &= (mask == 0) & (brain.depth_mm > CLEAR_OF_BONE_MM) & (hu < lesion.hu - MIN_RISE_HU)
        candidates = rank[allowed]
        if candidates.size == 0:
            continue
        last = min(max(1, round(lesion.volume_ml / voxel_ml)), candidates.size) - 1
        limit = float(np.partition(candidates, last)[last])
        near = allowed & (rank < limit + 8 + lesion.oedema_mm)
        inside_mm, before = limit - rank[near], hu[near]
        values = before
        if lesion.oedema_mm > 0:
            values = before + ramp(inside_mm + lesion.oedema_mm, 2.0) * 0.85 * np.minimum(OEDEMA_HU - before, 0)
        clot_hu = lesion.hu + 2.5 * plane_waves(brain.points.at(near), random, 14.0, 4)
        values = values + np.clip(inside_mm * (1 / lesion.edge_mm) + 0.7, 0, 1) * (clot_hu - values)
        filled = (inside_mm >= 0) & (values - before >= MIN_RISE_HU)
        hu[near] = values
        mask[near] = np.where(filled, np.uint8(LABELS.index(lesion.label)), mask[near])
    return mask


def _rank(lesion: LesionSpec, brain: Brain, head: HeadSpec, random: np.random.Generator) -> tuple[Field, Mask]:
    # (rank, voxels allowed)
    if lesion.label == "epidural":
        along = _along_table(lesion, brain, head)
        return brain.vault_mm / np.power(np.maximum(1 - along, 1e-4), 0.7), along < 1
    if lesion.label == "subdural":
        return _rank_subdural(lesion, brain, head)
    aligned = zip(brain.points, lesion.centre_mm, lesion.elongation, strict=True)
    distance = norm(*[(axis - centre) * (1 / stretch) for axis, centre, stretch in aligned])
    if lesion.label == "subarachnoid":
        rank = distance * (1 + 0.15 * plane_waves(brain.points, random, 30.0, 4))
        return rank, (brain.sulcal_mm > -0.2) & (brain.ventricle_mm < 0) & (brain.falx_mm < 0.3)
    if lesion.label == "intraparenchymal":
        rank = distance * (1 + 0.12 * plane_waves(brain.points, random, 26.0, 6))
        outside_csf = (brain.csf_mm < -0.8) & (brain.ventricle_mm < -0.8) & (np.abs(brain.tentorium_mm) > 1)
        same_side = (brain.tentorium_mm > 0) == (lesion.site not in ("cerebellum", "pons"))
        return rank, outside_csf & same_side & (brain.depth_mm > 3) & (brain.falx_mm < -0.5)
    inside = brain.ventricle_mm > 0
    if not lesion.site.startswith("layering"):
        return distance, inside
    if "one" in lesion.site:
        inside &= brain.points.x * float(np.sign(lesion.centre_mm[0])) > 0
    # the patient lies on the back: blood settles posteriorly, with a level
    return brain.points.y + 90, inside & (brain.points.z > -20)


def _rank_subdural(lesion: LesionSpec, brain: Brain, head: HeadSpec) -> tuple[Field, Mask]:
    (x, y, z), above = brain.points, brain.tentorium_mm
    cx, cy, cz = lesion.centre_mm
    beside = brain.midline_mm * (1 if cx >= 0 else -1)
    if lesion.site == "convexity":
        along = _along_table(lesion, brain, head)
        return brain.vault_mm / np.sqrt(np.maximum(1 - along, 1e-6)), (along < 1) & (beside > 3) & (above > 0)
    # a lens on falx or tentorium; its profile is the relative thickness
    on_falx = lesion.site == "falx"
    thickness_mm, first, second = (2.2, y - cy, z - cz) if on_falx else (2.5, x - cx, y - cy)
    reach_mm = 1.3 * math.sqrt(lesion.volume_ml * 1000 / thickness_mm / np.pi)
    profile = np.sqrt(np.maximum(1 - (np.square(first) + np.square(second)) * (1 / reach_mm**2), 1e-6))
    if on_falx:
        return beside / profile, (brain.falx_mm + beside > 0) & (beside > -0.5) & (profile > 0.05) & (beside < 12)
    return above / profile, (above > 0) & (above < 12) & (profile > 0.05) & (y < -16)


def _along_table(lesion: LesionSpec, brain: Brain, head: HeadSpec) -> Field:
    # square of the distance from the lesion's middle along the inner table, 1 at its outline
    middle, _, half_length, half_height = _footprint(lesion, head)
    x, y, z = (axis - centre for axis, centre in zip(brain.surface, middle, strict=True))
    return np.asarray((np.square(x) + np.square(y)) * (1 / half_length**2) + np.square(z * (1 / half_height)))
