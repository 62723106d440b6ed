"""One synthetic head CT from its specification: skull, face and scalp around the brain, and the acquisition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, UInt8

from meddinov3_stroke.phantom import solids
from meddinov3_stroke.phantom.brain import build_brain, paint_brain
from meddinov3_stroke.phantom.lesions import displace, paint_lesions
from meddinov3_stroke.phantom.solids import Field, Points, capsule, ellipsoid, intersection, paint, plane_waves, union
from meddinov3_stroke.phantom.spec import HeadSpec, PhantomSpec
from meddinov3_stroke.types import LABELS

Grid = Float32[np.ndarray, "slice row col"]
"""One value for each voxel."""
CANONICAL_TO_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""(slice, row, column) steps in RAS+: slices go superior, rows posterior, columns to the patient's left."""
MAX_BLEED_HU = 9.0
"""Most that a voxel takes from its neighbour through the point spread: scanners correct the edge of the skull, and
blood beside it keeps its CT number."""
OUTSIDE_MM = 32.0
"""Beyond this distance from the inner table of the vault there is air (the tip of the nose excepted)."""
AIR_HU, SINUS_HU, FAT_HU, EYE_HU, SKIN_HU, MUSCLE_HU, PLASTIC_HU = -1000.0, -930.0, -85.0, 14.0, 45.0, 55.0, 110.0
DIPLOE_HU, THIN_BONE_HU, CORTICAL_HU = 550.0, 700.0, 1250.0
"""Typical CT numbers of what lies around the brain; the head-holder is of plastic."""
SKIN_MM = 2.2
"""Thickness of the skin over the fat of the scalp."""
HOLDER_GAP_MM = 7.0
"""Distance between the back of the head and the head-holder."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic head CT in canonical orientation: slices inferior -> superior, rows anterior -> posterior, columns
    patient right -> left."""

    hu: Int16[np.ndarray, "slice row col"]
    mask: UInt8[np.ndarray, "slice row col"]
    """0, or the index in `LABELS` of the haemorrhage there: 1 epidural, 2 intraparenchymal, 3 intraventricular,
    4 subarachnoid, 5 subdural."""
    affine: Float64[np.ndarray, "4 4"]
    """Maps (slice, row, column, 1) to RAS+ mm."""
    spec: PhantomSpec

    @cached_property
    def lesion_volumes_ml(self) -> dict[str, float]:
        """Volume of each of the five types in mL, measured from the mask."""
        counts = np.bincount(self.mask.reshape(-1), minlength=len(LABELS))
        return {label: float(counts[index] * voxel_ml(self.spec)) for index, label in enumerate(LABELS) if index > 0}

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


def voxel_ml(spec: PhantomSpec) -> float:
    """Volume of one voxel in mL."""
    return float(np.prod(spec.spacing_mm)) / 1000


def affine_of(spec: PhantomSpec) -> Float64[np.ndarray, "4 4"]:
    """The map from (slice, row, column, 1) to RAS+ mm of the scanner, rounded to what a NIfTI header can hold.

    The scanner's origin is the middle of the volume; a tilt turns the slices about the left-right axis.
    """
    linear = _rotation(0, spec.tilt_degrees) @ CANONICAL_TO_RAS @ np.diag(spec.spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(spec.shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64)


def make_phantom(spec: PhantomSpec) -> Phantom:
    """The head CT, its mask and its affine; the same specification gives the same voxels."""
    x, y, z = _head_points(spec)
    gauge, radius = solids.vault_gauge(spec.head, x, y, z)
    vault_mm = radius / gauge - radius
    hu = np.full(spec.shape, AIR_HU, dtype=np.float32)
    mask = np.zeros(spec.shape, dtype=np.uint8)
    near = vault_mm > -OUTSIDE_MM
    points = Points(x[near], y[near], z[near])
    hu[near], mask[near] = _head(spec, points, gauge[near], vault_mm[near])
    if spec.head_holder:
        _paint_holder(hu, x, y, spec.head)
    hu = _blur(hu, 0.14) + _noise(spec)
    stored = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    return Phantom(stored, mask, affine_of(spec), spec)


def _head_points(spec: PhantomSpec) -> tuple[Grid, Grid, Grid]:
    """Head coordinates (x, y, z) in mm of every voxel centre."""
    pose = np.eye(4)
    pose[:3, :3] = _rotation(2, spec.rotation_degrees) @ _rotation(1, spec.roll_degrees)
    pose[:3, 3] = spec.centre_mm
    to_head = (pose @ affine_of(spec)).astype(np.float32)
    slices, rows, columns = (np.arange(n, dtype=np.float32) for n in spec.shape)
    x, y, z = (
        (row[0] * slices + row[3])[:, None, None] + (row[1] * rows)[:, None] + row[2] * columns for row in to_head[:3]
    )
    return x, y, z


def _rotation(axis: int, degrees: float) -> Float64[np.ndarray, "3 3"]:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def _head(spec: PhantomSpec, points: Points, gauge: Field, vault_mm: Field) -> tuple[Field, UInt8[np.ndarray, " n"]]:
    """(HU, mask) of the points around and inside the skull."""
    head = spec.head
    hu = np.full(points.x.shape, AIR_HU, dtype=np.float32)
    depth_mm = _paint_outside(hu, points, vault_mm, head)
    cavity = depth_mm > -1.0
    inside = points.at(cavity)
    to_table = 1 / gauge[cavity]
    surface = Points(inside.x * to_table, inside.y * to_table, inside.z * np.where(inside.z > 0, to_table, 1))
    moved = displace(inside, vault_mm[cavity], head, spec.lesions)
    brain = build_brain(inside, surface, depth_mm[cavity], vault_mm[cavity], moved, head)
    tissue = np.empty_like(inside.x)
    paint_brain(tissue, brain, head)
    mask = np.zeros(len(hu), dtype=np.uint8)
    mask[cavity] = paint_lesions(tissue, brain, head, spec.lesions, voxel_ml(spec))
    hu[cavity] += np.clip(brain.depth_mm + 0.5, 0, 1) * (tissue - hu[cavity])
    return hu, mask


def _paint_outside(hu: Field, points: Points, vault_mm: Field, head: HeadSpec) -> Field:
    """Depth in mm below the inner surface of the skull (`vault_mm`: of its vault); negative outside the cavity.

    Scalp, skull and face are painted into `hu`, in place.
    """
    random = np.random.default_rng([head.seed, 3])
    side = points.on_right()
    floor = (points.z - _floor_height(side)) * 0.8
    petrous = -capsule(side, (17, -6, -41), (60, -24, -32), 6.0, 9.0)
    depth_mm = intersection(vault_mm, floor, petrous)
    skull_mm = head.skull_mm * (1 + 0.13 * plane_waves(points, random, 70.0, 4))
    nape = solids.smoothstep(-points.z, 24, 56) * solids.smoothstep(-points.y, 10, 60)
    scalp = skull_mm + head.scalp_mm + 13 * nape + vault_mm
    paint(hu, scalp + SKIN_MM, 1.0, SKIN_HU)
    paint(hu, scalp, 1.0, FAT_HU)
    muscle = union(ellipsoid(side, (70, 18, -18), (16, 34, 34)), 10 * nape - 4)
    paint(hu, intersection(muscle, scalp - 2), 1.5, MUSCLE_HU)
    front = head.half_length_mm + head.skull_mm + head.scalp_mm
    paint(hu, capsule(points, (0, front - 8, -26), (0, front + 2, -58), 6.0, 11.0), 1.5, SKIN_HU)  # nose
    outer = skull_mm + vault_mm
    wall = intersection(outer, floor + 7, 0.6 - depth_mm)
    paint(hu, wall, 1.2, CORTICAL_HU)
    paint(hu, intersection(skull_mm * 0.22 - np.abs(-vault_mm - skull_mm * 0.5), wall), 1.5, DIPLOE_HU)
    paint(hu, intersection(-petrous, outer), 1.5, CORTICAL_HU)
    low = np.asarray((points.z < 2) & (depth_mm < 1))
    face = hu[low]
    _paint_face(face, points.at(low), -vault_mm[low], -floor[low], -depth_mm[low], random)
    hu[low] = face
    return depth_mm


def _floor_height(side: Points) -> Field:
    """Height of the floor: anterior fossa with the orbital roofs, middle fossa with the sella, posterior fossa."""
    pole = np.exp(np.square((side.x - 36) * (1 / 15)) * -1)
    anterior = solids.smoothstep(side.y - 17 * pole, 6, 22)
    posterior = solids.smoothstep(-side.y - 0.35 * side.x, -4, 20)
    roof = np.exp(np.square((side.x - 32) * (1 / 15)) * -1)
    front = -27 + 12 * roof + 9 * solids.smoothstep(side.y, 52, 82)
    middle = -27 - 15 * solids.smoothstep(side.x, 10, 26) + 14 * solids.smoothstep(side.x, 44, 68)
    return np.asarray(anterior * front + posterior * -66 + (1 - anterior - posterior) * middle)


def _paint_face(
    hu: Field, points: Points, outer: Field, below: Field, outside: Field, random: np.random.Generator
) -> None:
    """Paint into `hu`; the distances are those outside the vault, below the floor and outside the cavity."""
    side = points.on_right()
    deep = intersection(3 - outer, below - 4)
    paint(hu, deep, 2.0, MUSCLE_HU)
    paint(hu, intersection(deep, 1 - 5 * np.abs(plane_waves(points, random, 36.0, 5))), 2.5, FAT_HU)
    # three-sided in cross-section: front wall, medial wall, and one that runs back from the cheek
    walls = intersection(70 - side.y, side.x - 13, 0.6 * (side.y - 30) - 0.8 * (side.x - 30))
    maxillary = intersection(walls, ellipsoid(side, (27, 53, -72), (16, 20, 18)))
    cheekbone = capsule(side, (46, 54, -56), (60, 16, -52), 3.0, 1.5)
    orbit = capsule(side, (31, 57, -38), (15, 22, -34), 17.0, 5.0)
    paint(hu, union(maxillary, cheekbone, orbit) + 1.6, 1.5, THIN_BONE_HU)
    _paint_orbit(hu, side, orbit)
    cells = plane_waves(points, random, 11.0, 6)
    bone = intersection(ellipsoid(side, (54, -30, -46), (15, 17, 22)), outer + 3)
    paint(hu, intersection(bone, outside), 1.5, CORTICAL_HU - 300)
    mastoid = intersection(bone - 2, 0.5 - cells)
    ethmoid = intersection(ellipsoid(points, (0, 50, -44), (12, 29, 17)), 1.4 - cells * cells)
    sphenoid = intersection(ellipsoid(points, (2, 18, -42), (14, 12, 11)), np.abs(points.x - 2) - 1)
    frontal = intersection(ellipsoid(points, (4, 84, -12), (16, 6, 12)), outer - 2)
    inner = intersection(union(ethmoid, sphenoid, maxillary, mastoid), union(below - 2, outside - 5))
    paint(hu, union(inner, frontal), 1.5, SINUS_HU)


def _paint_orbit(hu: Field, side: Points, orbit: Field) -> None:
    paint(hu, union(intersection(orbit, 74 - side.y), intersection(orbit + 2, side.y - 62)), 1.5, FAT_HU)
    paint(hu, 2.2 - np.abs(orbit + 1.2) - np.maximum(66 - side.y, 0), 1.5, SKIN_HU)
    paint(hu, ellipsoid(side, (32, 61, -38), (12, 12, 12)), 1.2, EYE_HU)
    paint(hu, capsule(side, (31, 50, -38), (16, 24, -34), 2.0, 2.0), 1.5, MUSCLE_HU - 15)
    for x_mm in (20.0, 41.0):
        paint(hu, capsule(side, (x_mm, 56, -38), (17, 26, -34), 2.2, 1.5), 1.5, MUSCLE_HU)


def _paint_holder(hu: Grid, x: Grid, y: Grid, head: HeadSpec) -> None:
    radius_mm = head.half_length_mm + head.skull_mm + head.scalp_mm - 18 + HOLDER_GAP_MM
    sheet = np.minimum(1 - np.abs(np.sqrt(np.square(x) + np.square(y + 18)) - radius_mm), -y - 30)
    hu += solids.ramp(sheet.reshape(-1), 1.2).reshape(hu.shape) * (hu < -900) * (PLASTIC_HU - hu)


def _blur(volume: Grid, share: float) -> Grid:
    """The volume after a three-point kernel along rows and columns: the scanner's point spread."""
    for axis in (1, 2):
        step = np.clip(np.diff(volume, axis=axis) * share, -MAX_BLEED_HU, MAX_BLEED_HU)
        volume = volume.copy()
        lines, steps = np.moveaxis(volume, axis, 0), np.moveaxis(step, axis, 0)
        lines[:-1] += steps
        lines[1:] -= steps
    return volume


def _noise(spec: PhantomSpec) -> Grid:
    white = np.random.default_rng([spec.seed, 7]).standard_normal(spec.shape, dtype=np.float32)
    gain = spec.noise_hu / (1 - 4 * 0.2 + 6 * 0.2**2)  # what the kernel (0.2, 0.6, 0.2) leaves, along two axes
    return _blur(white, 0.2) * gain
