"""One synthetic head CT from its specification."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, UInt8

from meddinov3_stroke.phantom.brain import build_brain, paint_brain
from meddinov3_stroke.phantom.lesions import displace, paint_lesions
from meddinov3_stroke.phantom.skull import AIR_HU, paint_holder, paint_outside
from meddinov3_stroke.phantom.solids import Field, Points, vault_gauge
from meddinov3_stroke.phantom.spec import PhantomSpec
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
    gauge, radius = vault_gauge(spec.head, x, y, z)
    vault_mm = radius / gauge - radius
    hu = np.full(spec.shape, AIR_HU, dtype=np.float32)
    mask = np.zeros(spec.shape, dtype=np.uint8)
    near = vault_mm > -OUTSIDE_MM
    points = Points(x[near], y[near], z[near])
    hu[near], mask[near] = _head(spec, points, gauge[near], vault_mm[near])
    if spec.head_holder:
        paint_holder(hu, x, y, spec.head)
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
    depth_mm = paint_outside(hu, points, vault_mm, head)
    cavity = depth_mm > -1.0
    inside = points.at(cavity)
    to_table = 1 / gauge[cavity]
    surface = Points(inside.x * to_table, inside.y * to_table, inside.z * np.where(inside.z > 0, to_table, 1))
    moved = displace(inside, vault_mm[cavity], head, spec.lesions)
    brain = build_brain(inside, depth_mm[cavity], vault_mm[cavity], surface, moved, head)
    tissue = np.empty_like(inside.x)
    paint_brain(tissue, brain, moved, head)
    mask = np.zeros(len(hu), dtype=np.uint8)
    mask[cavity] = paint_lesions(tissue, brain, head, spec.lesions, voxel_ml(spec))
    hu[cavity] += np.clip(brain.depth_mm + 0.5, 0, 1) * (tissue - hu[cavity])
    return hu, mask


def _blur(volume: Grid, share: float) -> Grid:
    """The volume after a three-point kernel along rows and columns: the scanner's point spread."""
    for axis in (1, 2):
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        step = (volume[tuple(ahead)] - volume[tuple(behind)]) * share
        np.clip(step, -MAX_BLEED_HU, MAX_BLEED_HU, out=step)
        volume = volume.copy()
        volume[tuple(behind)] += step
        volume[tuple(ahead)] -= step
    return volume


def _noise(spec: PhantomSpec) -> Grid:
    white = np.random.default_rng([spec.seed, 7]).standard_normal(spec.shape, dtype=np.float32)
    gain = spec.noise_hu / (1 - 4 * 0.2 + 6 * 0.2**2)  # what the kernel (0.2, 0.6, 0.2) leaves, along two axes
    return _blur(white, 0.2) * gain
