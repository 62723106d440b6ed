"""One synthetic head CT from its specification."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int16, UInt8

from meddinov3_stroke.phantom.brain import build_brain, paint_brain
from meddinov3_stroke.phantom.displacement import displace
from meddinov3_stroke.phantom.geometry import affine_of, head_points
from meddinov3_stroke.phantom.lesions import paint_lesions
from meddinov3_stroke.phantom.skull import AIR_HU, paint_holder, paint_outside, shell_of, vault_gauge
from meddinov3_stroke.phantom.solids import Points
from meddinov3_stroke.phantom.spec import PhantomSpec
from meddinov3_stroke.types import LABELS

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

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(np.prod(self.spec.spacing_mm)) / 1000

    @cached_property
    def lesion_volumes_ml(self) -> dict[str, float]:
        """Volume of each of the five types in mL, measured from the mask."""
        counts = np.bincount(self.mask.reshape(-1), minlength=len(LABELS))
        return {label: float(counts[index] * self.voxel_ml) for index, label in enumerate(LABELS) if index > 0}

    @cached_property
    def labels(self) -> dict[str, int]:
        """The six labels of the volume, read off the mask; `any` is the OR of the others."""
        present = self.slice_labels.max(axis=0)
        return {label: int(present[index]) for index, label in enumerate(LABELS)}

    @cached_property
    def slice_labels(self) -> Int8[np.ndarray, "slice label"]:
        """The six labels of every slice, read off the mask."""
        flat = self.mask.reshape(self.mask.shape[0], -1)
        labels = np.stack([(flat == index).any(axis=1) for index in range(len(LABELS))], axis=1)
        labels[:, 0] = labels[:, 1:].any(axis=1)
        return labels.astype(np.int8)


def make_phantom(spec: PhantomSpec) -> Phantom:
    """The head CT, its mask and its affine; the same specification gives the same voxels."""
    x, y, z = head_points(spec)
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


def _head(
    spec: PhantomSpec, points: Points, gauge: Float32[np.ndarray, " n"], vault_mm: Float32[np.ndarray, " n"]
) -> tuple[Float32[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
    head = spec.head
    hu = np.full(points.x.shape, AIR_HU, dtype=np.float32)
    shell = shell_of(points, vault_mm)
    paint_outside(hu, points, shell, head)
    depth_mm = shell.depth_mm
    cavity = depth_mm > -1.0
    inside = points[cavity]
    to_table = np.float32(1) / gauge[cavity]
    above = np.where(inside.z > 0, to_table, np.float32(1))
    surface = Points(inside.x * to_table, inside.y * to_table, inside.z * above)
    moved = displace(inside, vault_mm[cavity], head, spec.lesions)
    brain = build_brain(inside, depth_mm[cavity], vault_mm[cavity], surface, moved, head)
    tissue = np.empty_like(inside.x)
    paint_brain(tissue, brain, moved, head)
    voxel_ml = float(np.prod(spec.spacing_mm)) / 1000
    lesion_mask = paint_lesions(tissue, brain, head, spec.lesions, voxel_ml)
    share = np.clip(brain.depth_mm + np.float32(0.5), 0, 1)
    hu[cavity] += share * (tissue - hu[cavity])
    mask = np.zeros(len(hu), dtype=np.uint8)
    mask[cavity] = lesion_mask
    return hu, mask


def _blur(volume: Float32[np.ndarray, "slice row col"], share: float) -> Float32[np.ndarray, "slice row col"]:
    """The volume after a three-point kernel along rows and columns: the scanner's point spread."""
    for axis in (1, 2):
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        step = (volume[tuple(ahead)] - volume[tuple(behind)]) * np.float32(share)
        np.clip(step, -MAX_BLEED_HU, MAX_BLEED_HU, out=step)
        volume = volume.copy()
        volume[tuple(behind)] += step
        volume[tuple(ahead)] -= step
    return volume


def _noise(spec: PhantomSpec) -> Float32[np.ndarray, "slice row col"]:
    white = np.random.default_rng([spec.seed, 7]).standard_normal(spec.shape, dtype=np.float32)
    gain = spec.noise_hu / (1 - 4 * 0.2 + 6 * 0.2**2)  # what the kernel (0.2, 0.6, 0.2) leaves, along two axes
    return _blur(white, 0.2) * np.float32(gain)
