"""Head CTs whose anatomy, haemorrhages and acquisition are drawn far wider than reality, so that a real one is one more
draw (Billot et al. 2023, SynthSeg). An atlas is deformed, bleeds, and is scanned; hard negatives are drawn as often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, UInt8
from scipy import ndimage

from meddinov3_stroke.phantom import anatomy
from meddinov3_stroke.phantom.anatomy import Points, norm, plane_waves, ramp
from meddinov3_stroke.phantom.atlas import Atlas
from meddinov3_stroke.phantom.head import paint_lesions, push_tissue, rotation
from meddinov3_stroke.phantom.scanner import Geometry, Scanner, draw_scanner, scan
from meddinov3_stroke.phantom.spec import LesionSpec, Number, Vector, draw_lesion
from meddinov3_stroke.types import LABELS

N_TYPES_P = (0.0, 0.55, 0.3, 0.15)
POSITIVE_P, DISTRACTED_P = 0.6, 0.6
LEAST_ML = 0.15
BONY_HU = 140.0  # voxels above it are more bone than blood
COARSE = 17  # points along a side at which the pose is evaluated; between them it is linear


@dataclass(frozen=True, eq=False)
class Scan:
    """A generated head CT in canonical orientation, with the share of each voxel that is blood."""

    hu: Int16[np.ndarray, "slice row col"]
    blood: Mapping[str, UInt8[np.ndarray, "slice row col"]]  # of each type that is there; 255 is all of a voxel
    spacing_mm: tuple[float, float, float]
    atlas: str
    lesions: tuple[LesionSpec, ...]
    geometry: Geometry
    scanner: Scanner
    tags: Mapping[str, Any] = field(default_factory=dict)


def draw_scan(
    seed: int,
    atlas: Atlas,
    *,
    lesions: Sequence[str] | None = None,
    matrix: int = 256,
    most_slices: int = 40,
    thickness_mm: float | None = None,
) -> Scan:
    """The scan that a seed gives of an atlas; types of haemorrhage are drawn unless given.

    Of a stack of more than `most_slices` thin slices a part is scanned.
    """
    random = np.random.default_rng([seed, 16])
    drawn = draw_lesions(random, lesions)
    geometry = draw_geometry(random, atlas, matrix, most_slices, thickness_mm, drawn)
    scanner = draw_scanner(random, geometry)
    hu, labels = bleed(random, atlas, drawn)
    hu[atlas.cavity] += scanner.cupping_hu * np.exp(-atlas.brain.depth_mm / random.uniform(3, 12))
    distractors = distract(random, hu, labels, atlas) if random.random() < DISTRACTED_P else []
    scanned, blood = resample(random, atlas, hu, labels, geometry)
    scanned = scan(random, scanned, geometry, scanner, atlas.noise_hu)
    shares = {label: np.where(scanned < BONY_HU, np.rint(share * 255), 0) for label, share in blood.items()}
    shares = {label: share.astype(np.uint8) for label, share in shares.items() if share.any()}
    pixel_mm = geometry.field_of_view_mm / matrix
    spacing = (geometry.between_mm, pixel_mm, pixel_mm)
    tags = {"distractors": distractors}
    return Scan(np.rint(scanned).astype(np.int16), shares, spacing, atlas.name, drawn, geometry, scanner, tags)


def draw_lesions(random: np.random.Generator, labels: Sequence[str] | None) -> tuple[LesionSpec, ...]:
    """Haemorrhages from 0.15 mL, hyperacute to subacute."""
    if labels is None:
        n_types = int(random.choice(4, p=N_TYPES_P)) if random.random() < POSITIVE_P else 0
        labels = [str(label) for label in random.permutation(LABELS[1:])[:n_types]]
    most = {"epidural": 90, "intraparenchymal": 90, "intraventricular": 40, "subarachnoid": 50, "subdural": 120}
    found = []
    for label in labels:
        volume_ml = float(np.exp(random.uniform(np.log(LEAST_ML), np.log(most[label]))))
        lesion = draw_lesion(random, label, volume_ml)
        age = random.random()
        hu = random.uniform(62, 85) if age < 0.5 else random.uniform(46, 64)  # acute, or dilute, anaemic, subacute
        centre = as_vector(np.asarray(lesion.centre_mm) + random.normal(0, 6, 3))
        stretch = np.exp(random.normal(0, 0.3, 3))
        stretch /= np.prod(stretch) ** (1 / 3)
        edge = 0.2 + float(random.exponential(1.2 if label != "subarachnoid" else 0.3))
        oedema = lesion.oedema_mm * random.uniform(0, 2.5)
        found.append(
            replace(lesion, hu=hu, centre_mm=centre, elongation=as_vector(stretch), edge_mm=edge, oedema_mm=oedema)
        )
    return tuple(found)


def as_vector(values: Float64[np.ndarray, 3]) -> tuple[float, float, float]:
    """Three numbers."""
    x, y, z = values.tolist()
    return x, y, z


def draw_geometry(
    random: np.random.Generator,
    atlas: Atlas,
    matrix: int,
    most_slices: int,
    thickness_mm: float | None,
    lesions: tuple[LesionSpec, ...],
) -> Geometry:
    """Pose, field of view and slices; of more than `most_slices` a part, which mostly shows the first haemorrhage."""
    drawn = float(
        random.choice([random.uniform(0.6, 3), random.uniform(3, 6), random.uniform(6, 10)], p=[0.2, 0.65, 0.15])
    )
    between = thickness_mm or drawn
    heights = atlas.points.z[atlas.cavity.any(axis=(1, 2)), 0, 0]
    lowest = max(float(heights[0]) - random.uniform(-5, 25), float(atlas.points.z[0, 0, 0]))
    highest = float(heights[-1]) + random.uniform(-3, 15)
    n_all = max(2, int((highest - lowest) / between))
    n_slices, middle = min(n_all, most_slices), (lowest + highest) / 2
    if n_slices < n_all:
        ends = lowest + n_slices * between / 2, highest - n_slices * between / 2
        middle = random.uniform(*ends)
        if lesions and random.random() < 0.8:
            aside = random.uniform(-0.4, 0.4) * n_slices * between
            middle = float(np.clip(lesions[0].centre_mm[2] * atlas.scale[2] + aside, *ends))
    size = float(np.exp(random.normal(0, 0.06)))
    return Geometry(
        n_slices=n_slices,
        matrix=matrix,
        field_of_view_mm=float(np.clip(random.normal(230, 18), 185, 290)) * min(size, 1.05),
        between_mm=between,
        thickness_mm=between * random.uniform(0.7, 1.2),
        rotation_degrees=random.normal(0, 8),
        tilt_degrees=float(random.choice([random.normal(0, 3), random.uniform(-20, 20)])),
        roll_degrees=random.normal(0, 3.5),
        scale=as_vector(size * np.exp(random.normal(0, 0.04, 3))),
        middle_mm=(random.normal(0, 5), random.normal(0, 7), middle),
        mirrored=random.random() < 0.5,
        bend_mm=float(random.uniform(0, 3.5)),
    )


def bleed(
    random: np.random.Generator, atlas: Atlas, lesions: tuple[LesionSpec, ...]
) -> tuple[Float32[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"]]:
    """(HU with the haemorrhages and their mass effect, index in `LABELS` of the haemorrhage at each voxel)."""
    hu, labels = atlas.hu.copy(), np.zeros(atlas.hu.shape, dtype=np.uint8)
    if not lesions:
        return hu, labels
    brain, scale = atlas.brain, np.asarray(atlas.scale)
    placed = tuple(replace(one, centre_mm=as_vector(np.asarray(one.centre_mm) * scale)) for one in lesions)
    origin, _, squeeze = push_tissue(brain.points, brain.vault_mm, atlas.head, placed)
    tissue, moved = hu[atlas.cavity], squeeze > 0.02
    if moved.any():
        steps = zip(reversed(origin), reversed(atlas.origin_mm), atlas.spacing_mm, strict=True)
        places = [(axis[moved] - start) / step for axis, start, step in steps]
        pushed = ndimage.map_coordinates(hu, places, order=1, mode="nearest")
        tissue[moved] = np.minimum(pushed, np.maximum(tissue[moved], 95))  # no skull is drawn into the brain
    voxel_ml = float(np.prod(atlas.spacing_mm)) / 1000
    labels[atlas.cavity] = paint_lesions(tissue, brain, atlas.head, placed, voxel_ml, int(random.integers(1 << 30)))
    hu[atlas.cavity] = tissue
    return hu, labels


def distract(
    random: np.random.Generator, hu: Float32[np.ndarray, "z y x"], labels: UInt8[np.ndarray, "z y x"], atlas: Atlas
) -> list[str]:
    """Paint what is taken for blood, or hides it, in place; names what was painted."""
    tissue = hu[atlas.cavity]
    painter = _Painter(random, tissue, labels[atlas.cavity] == 0, atlas)
    painter.calcify()
    painter.thicken()
    painter.scatter()
    hu[atlas.cavity] = tissue
    if random.random() < 0.05:
        x, y, z = atlas.points
        side, angle = random.choice([-40.0, 40.0]), random.uniform(-1.2, 1.2)
        hole = (np.hypot(x - side, y - 60 * math.sin(angle)) < random.uniform(5, 9)) & (z > 20) & (hu > 100)
        hu[hole & ~atlas.cavity] = random.uniform(0, 60)
        painter.done.append("burr hole")
    return painter.done


class _Painter:
    """Paints into the tissue of a cavity, where it is not blood."""

    def __init__(
        self,
        random: np.random.Generator,
        tissue: Float32[np.ndarray, " n"],
        free: Bool[np.ndarray, " n"],
        atlas: Atlas,
    ) -> None:
        self.random, self.tissue, self.free, self.brain = random, tissue, free, atlas.brain
        pairs = zip(self.brain.points, atlas.scale, strict=True)
        self.points = Points(*(axis / np.float32(scale) for axis, scale in pairs))
        self.done: list[str] = []

    def calcify(self) -> None:
        """Pineal gland, choroid plexus and basal ganglia."""
        random = self.random
        if random.random() < 0.5:
            centre = (random.normal(0, 1), random.normal(-27, 2), random.normal(1, 2))
            self._blob("calcified pineal gland", centre, (1.5, 4), (80, 300))
        for side in (-1.0, 1.0):
            if random.random() < 0.4:
                centre = (side * random.normal(22, 2), random.normal(-38, 3), random.normal(8, 3))
                self._blob("calcified choroid plexus", centre, (1.5, 4.5), (60, 250))
            if random.random() < 0.2:
                centre = (side * random.normal(21, 2), random.normal(2, 4), random.normal(2, 3))
                self._blob("calcified basal ganglia", centre, (1.5, 5), (55, 160), soft=2.5)

    def thicken(self) -> None:
        """Dense falx, tentorium, sinuses and arteries."""
        random, brain, (x, y, z) = self.random, self.brain, self.points
        if random.random() < 0.3:
            self._dense("dense falx", brain.falx_mm > -random.uniform(0, 1), (48, 75))
        if random.random() < 0.25:
            sheet = (np.abs(brain.tentorium_mm) < random.uniform(0.6, 1.6)) & (y > -75) & (y < -10)
            self._dense("dense tentorium", sheet, (45, 65))
        if random.random() < 0.35:
            width = random.uniform(2, 5)
            sagittal = (np.abs(x) < width) & (brain.depth_mm < 1.6 * width) & (z > -10)
            straight = (np.abs(x) < width / 2) & (np.abs(brain.tentorium_mm) < width / 2) & (y < -35)
            transverse = (brain.depth_mm < width) & (np.abs(brain.tentorium_mm) < width) & (y < -30)
            self._dense("dense sinuses", sagittal | straight | transverse, (50, 75))
        if random.random() < 0.3:
            value = random.uniform(45, 70)
            for centre, radii in (
                ((0, 3, -22), (2, 2, 9)),
                ((-17, 10, -17), (14, 1.6, 2)),
                ((17, 10, -17), (14, 1.6, 2)),
            ):
                self._fill(centre, np.array(radii), value, 1.0, 0.2)
            self.done.append("dense arteries")

    def scatter(self) -> None:
        """Hypodense areas and small calcifications anywhere."""
        random = self.random
        for _ in range(int(random.poisson(0.7))):
            centre = (random.choice([-1, 1]) * random.uniform(15, 55), random.uniform(-70, 60), random.uniform(-15, 50))
            self._blob("hypodense area", centre, (3, 22), (5, 26), soft=random.uniform(1, 6), wobble=0.35)
        for _ in range(int(random.poisson(0.5))):
            centre = (random.choice([-1, 1]) * random.uniform(2, 55), random.uniform(-70, 65), random.uniform(-40, 55))
            self._blob("calcification", centre, (0.8, 2.5), (60, 400), soft=1.0)

    def _blob(
        self,
        name: str,
        centre: Vector,
        radii_mm: tuple[Number, Number],
        values: tuple[Number, Number],
        soft: Number = 1.5,
        wobble: Number = 0.2,
    ) -> None:
        self._fill(centre, self.random.uniform(*radii_mm, 3), self.random.uniform(*values), soft, wobble)
        self.done.append(name)

    def _fill(
        self, centre: Vector, radii_mm: Float64[np.ndarray, 3], value: Number, soft: Number, wobble: Number
    ) -> None:
        near = self.free.copy()
        for axis, middle, radius in zip(self.points, centre, radii_mm, strict=True):
            near &= np.abs(axis - middle) < 2 * radius + 4
        some = self.points.at(near)
        away = norm(
            *[(axis - np.float32(c)) / np.float32(r) for axis, c, r in zip(some, centre, radii_mm, strict=True)]
        )
        away = away * (1 + float(wobble) * plane_waves(some, self.random, 12.0, 3))
        share = ramp((1 - away) * float(radii_mm.min()), float(soft))
        self.tissue[near] += share * (np.float32(value) - self.tissue[near])

    def _dense(self, name: str, where: Bool[np.ndarray, " n"], values: tuple[Number, Number]) -> None:
        chosen = where & self.free
        self.tissue[chosen] = np.maximum(self.tissue[chosen], self.random.uniform(*values))
        self.done.append(name)


def resample(
    random: np.random.Generator,
    atlas: Atlas,
    hu: Float32[np.ndarray, "z y x"],
    labels: UInt8[np.ndarray, "z y x"],
    geometry: Geometry,
) -> tuple[Float32[np.ndarray, "slice row col"], dict[str, Float32[np.ndarray, "slice row col"]]]:
    """The slices, averaged over their thickness, and the share of each type of blood in their voxels."""
    n_sub = int(np.clip(math.ceil(geometry.thickness_mm / atlas.spacing_mm[0]), 1, 4))
    out = np.zeros((geometry.n_slices, geometry.matrix, geometry.matrix), dtype=np.float32)
    masks = {label: (labels == k).astype(np.float32) for k, label in enumerate(LABELS) if k and (labels == k).any()}
    extents = {label: np.flatnonzero(mask.any(axis=(1, 2)))[[0, -1]] for label, mask in masks.items()}
    blood = {label: np.zeros(out.shape, dtype=np.float32) for label in masks}
    places = _Places(random, atlas, geometry)
    for k in range(geometry.n_slices):
        for share in (np.arange(n_sub) + 0.5) / n_sub - 0.5:
            where = places.of((k - (geometry.n_slices - 1) / 2) * geometry.between_mm + share * geometry.thickness_mm)
            out[k] += ndimage.map_coordinates(hu, where, order=1, mode="constant", cval=anatomy.AIR_HU) / n_sub
            low, high = float(where[0].min()) - 1, float(where[0].max()) + 1
            for label, mask in masks.items():
                if low <= extents[label][1] and extents[label][0] <= high:
                    blood[label][k] += ndimage.map_coordinates(mask, where, order=1, mode="constant") / n_sub
    return out, blood


class _Places:
    """Where the pixels of a plane lie in the grid of the atlas: pose, then a smooth deformation."""

    def __init__(self, random: np.random.Generator, atlas: Atlas, geometry: Geometry) -> None:
        turned = rotation(2, geometry.rotation_degrees) @ rotation(1, geometry.roll_degrees)
        self.pose = np.diag(1 / np.asarray(geometry.scale)) @ turned @ rotation(0, geometry.tilt_degrees)
        self.middle = np.asarray(geometry.middle_mm)[:, None, None]
        half = geometry.field_of_view_mm / 2
        ticks, sign = np.linspace(-half, half, COARSE), -1.0 if geometry.mirrored else 1.0
        self.across, self.along = -ticks[None, :] * sign, -ticks[:, None]  # to the patient's left, and posterior
        self.waves = [
            (random.normal(0, geometry.bend_mm, 3), random.normal(0, 1 / 22, 3), random.uniform(0, 2 * np.pi))
            for _ in range(4)
        ]
        self.start, self.step = np.asarray(atlas.origin_mm), np.asarray(atlas.spacing_mm)[::-1]
        self.fine = _interpolation(COARSE, geometry.matrix)

    def of(self, height_mm: float) -> list[Float32[np.ndarray, "row col"]]:
        """Coordinates (z, y, x) in voxels of the plane at a height; linear between coarse points."""
        plane = np.stack(np.broadcast_arrays(self.across, self.along, height_mm))
        head = np.tensordot(self.pose, plane, 1) + self.middle
        bent = head + sum(
            push[:, None, None] * np.sin(np.tensordot(wave, head, 1) + phase) / 2 for push, wave, phase in self.waves
        )
        voxels = (bent - self.start[:, None, None]) / self.step[:, None, None]
        return [self.fine @ axis.astype(np.float32) @ self.fine.T for axis in voxels[::-1]]


def _interpolation(n: int, m: int) -> Float32[np.ndarray, "m n"]:
    at = (np.arange(m) + 0.5) / m * (n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weights = np.zeros((m, n), dtype=np.float32)
    weights[np.arange(m), low], weights[np.arange(m), low + 1] = 1 - (at - low), at - low
    return weights
