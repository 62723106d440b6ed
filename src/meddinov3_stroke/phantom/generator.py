"""Head CTs whose anatomy, haemorrhages and acquisition are drawn far wider than reality, so that a real one is one more
draw (Billot et al. 2023, SynthSeg). An atlas is deformed, bleeds, and is scanned; hard negatives are drawn as often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8
from scipy import ndimage

from meddinov3_stroke.phantom import anatomy
from meddinov3_stroke.phantom.anatomy import Brain, Points, norm, plane_waves, ramp
from meddinov3_stroke.phantom.atlas import Atlas
from meddinov3_stroke.phantom.head import paint_lesions, push_tissue, rotation
from meddinov3_stroke.phantom.spec import LesionSpec, draw_lesion
from meddinov3_stroke.types import LABELS

N_TYPES_P = (0.0, 0.55, 0.3, 0.15)
POSITIVE_P, DISTRACTED_P = 0.6, 0.6
LEAST_ML = 0.15
BONY_HU = 140.0  # voxels above it are more bone than blood
COARSE = 17  # points along a side at which the pose is evaluated; between them it is linear


@dataclass(frozen=True)
class Geometry:
    """The slices that are scanned."""

    n_slices: int
    matrix: int
    field_of_view_mm: float
    between_mm: float
    thickness_mm: float
    rotation_degrees: float
    tilt_degrees: float
    roll_degrees: float
    scale: tuple[float, float, float]  # of the head, along x, y and z
    middle_mm: tuple[float, float, float]  # head coordinates of the middle of the stack
    mirrored: bool
    bend_mm: float  # standard deviation of the smooth deformation


@dataclass(frozen=True)
class Scanner:
    """What the scanner and its reconstruction do to the slices."""

    noise_hu: float
    noise_grain: float  # standard deviation in pixels of the kernel of the noise
    blur: float  # of the point spread, in pixels
    shift_hu: float
    gain: float
    cupping_hu: float
    band_hu: float  # dark band between dense bones
    ripple_hu: float
    moves: float  # share of the slices that are blurred by motion
    has_metal: bool
    has_holder: bool
    cut_below_hu: float | None  # lower values are air
    saturated: tuple[float, float] | None  # values above the first read as the second


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
    blood = {label: np.where(scanned < BONY_HU, share, 0).astype(np.uint8) for label, share in blood.items()}
    spacing = (geometry.between_mm, *[geometry.field_of_view_mm / matrix] * 2)
    tags = {"distractors": distractors}
    return Scan(np.rint(scanned).astype(np.int16), blood, spacing, atlas.name, drawn, geometry, scanner, tags)


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
        centre = tuple((np.asarray(lesion.centre_mm) + random.normal(0, 6, 3)).tolist())
        stretch = np.exp(random.normal(0, 0.3, 3))
        stretch /= np.prod(stretch) ** (1 / 3)
        edge = 0.2 + float(random.exponential(1.2 if label != "subarachnoid" else 0.3))
        oedema = lesion.oedema_mm * random.uniform(0, 2.5)
        wide = {"centre_mm": centre, "elongation": tuple(stretch.tolist()), "edge_mm": edge, "oedema_mm": oedema}
        found.append(replace(lesion, hu=hu, **wide))
    return tuple(found)


def draw_geometry(
    random: np.random.Generator,
    atlas: Atlas,
    matrix: int,
    most_slices: int,
    thickness_mm: float | None,
    lesions: tuple[LesionSpec, ...],
) -> Geometry:
    """Pose, field of view and slices."""
    between = thickness_mm or float(random.choice([random.uniform(0.6, 3), random.uniform(3, 6), random.uniform(6, 10)], p=[0.2, 0.65, 0.15]))
    z = atlas.points.z[:, 0, 0]
    tall = np.flatnonzero(atlas.cavity.any(axis=(1, 2)))
    low, high = float(z[tall[0]]) - random.uniform(-5, 25), float(z[tall[-1]]) + random.uniform(-3, 15)
    low = max(low, float(z[0]))
    n_all = max(2, int((high - low) / between))
    n_slices = min(n_all, most_slices)
    span = n_slices * between
    middle = (low + high) / 2
    if n_slices < n_all:
        middle = random.uniform(low + span / 2, high - span / 2)
        if lesions and random.random() < 0.8:
            middle = float(np.clip(lesions[0].centre_mm[2] * atlas.scale[2] + random.uniform(-0.4, 0.4) * span, low + span / 2, high - span / 2))
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
        scale=tuple((size * np.exp(random.normal(0, 0.04, 3))).tolist()),
        middle_mm=(random.normal(0, 5), random.normal(0, 7), middle),
        mirrored=random.random() < 0.5,
        bend_mm=float(random.uniform(0, 3.5)),
    )


def draw_scanner(random: np.random.Generator, geometry: Geometry) -> Scanner:
    """Noise, sharpness and faults; thin slices are noisier."""
    thin = math.sqrt(max(1.0, 4.0 / geometry.thickness_mm))
    fault = random.random(5)
    return Scanner(
        noise_hu=float(np.clip(np.exp(random.normal(np.log(3.2), 0.55)) * thin, 0.3, 22)),
        noise_grain=random.uniform(0.3, 1.3),
        blur=random.uniform(0.2, 1.2),
        shift_hu=random.normal(0, 2.5),
        gain=float(np.exp(random.normal(0, 0.03))),
        cupping_hu=random.uniform(-2, 9),
        band_hu=float(random.exponential(5)),
        ripple_hu=float(random.exponential(1.0)) if fault[0] < 0.3 else 0.0,
        moves=random.uniform(0.05, 0.5) if fault[1] < 0.12 else 0.0,
        has_metal=bool(fault[2] < 0.04),
        has_holder=bool(random.random() < 0.65),
        cut_below_hu=random.uniform(-300, -15) if fault[3] < 0.3 else None,
        saturated=(random.uniform(95, 250), random.uniform(300, 1500)) if fault[4] < 0.25 else None,
    )


def bleed(
    random: np.random.Generator, atlas: Atlas, lesions: tuple[LesionSpec, ...]
) -> tuple[Float32[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"]]:
    """(HU with the haemorrhages and their mass effect, index in `LABELS` of the haemorrhage at each voxel)."""
    hu, labels = atlas.hu.copy(), np.zeros(atlas.hu.shape, dtype=np.uint8)
    if not lesions:
        return hu, labels
    brain, scale = atlas.brain, np.asarray(atlas.scale)
    placed = tuple(replace(one, centre_mm=tuple((np.asarray(one.centre_mm) * scale).tolist())) for one in lesions)
    origin, _, squeeze = push_tissue(brain.points, brain.vault_mm, atlas.head, placed)
    moved = squeeze > 0.02
    if moved.any():
        steps = zip(reversed(origin), reversed(atlas.origin_mm), atlas.spacing_mm, strict=True)
        places = [(axis[moved] - start) / step for axis, start, step in steps]
        tissue = hu[atlas.cavity]
        tissue[moved] = ndimage.map_coordinates(hu, places, order=1, mode="nearest")
        hu[atlas.cavity] = np.minimum(tissue, np.maximum(hu[atlas.cavity], 95))  # no skull is drawn into the brain
    tissue = hu[atlas.cavity]
    voxel_ml = float(np.prod(atlas.spacing_mm)) / 1000
    labels[atlas.cavity] = paint_lesions(tissue, brain, atlas.head, placed, voxel_ml, int(random.integers(1 << 30)))
    hu[atlas.cavity] = tissue
    return hu, labels


def distract(
    random: np.random.Generator, hu: Float32[np.ndarray, "z y x"], labels: UInt8[np.ndarray, "z y x"], atlas: Atlas
) -> list[str]:
    """Paint what is taken for blood, or hides it, in place; names what was painted."""
    brain, tissue = atlas.brain, hu[atlas.cavity]
    free, done = labels[atlas.cavity] == 0, []
    x, y, z = (axis / np.float32(s) for axis, s in zip(brain.points, atlas.scale, strict=True))
    points = Points(x, y, z)

    def blob(centre: Sequence[float], radii: Sequence[float], value: float, soft: float = 1.5, wobble: float = 0.2) -> None:
        near = np.abs(x - centre[0]) < 2 * radii[0] + 4
        near &= (np.abs(y - centre[1]) < 2 * radii[1] + 4) & (np.abs(z - centre[2]) < 2 * radii[2] + 4) & free
        some = points.at(near)
        away = norm(*[(axis - c) / r for axis, c, r in zip(some, centre, radii, strict=True)])
        away = away * (1 + wobble * plane_waves(some, random, 12.0, 3))
        share = ramp((1 - away) * float(min(radii)), soft)
        tissue[near] += share * (np.float32(value) - tissue[near])

    def side() -> float:
        return -1.0 if random.random() < 0.5 else 1.0

    if random.random() < 0.5:
        blob((random.normal(0, 1), random.normal(-27, 2), random.normal(1, 2)), random.uniform(1.5, 4, 3), random.uniform(80, 300))
        done.append("calcified pineal gland")
    for sign in (-1.0, 1.0):
        if random.random() < 0.4:
            centre = (sign * random.normal(22, 2), random.normal(-38, 3), random.normal(8, 3))
            blob(centre, random.uniform(1.5, 4.5, 3), random.uniform(60, 250))
            done.append("calcified choroid plexus")
        if random.random() < 0.2:
            blob((sign * random.normal(21, 2), random.normal(2, 4), random.normal(2, 3)), random.uniform(1.5, 5, 3), random.uniform(55, 160), 2.5)
            done.append("calcified basal ganglia")
    if random.random() < 0.3:
        dense = (brain.falx_mm > -random.uniform(0, 1)) & free
        tissue[dense] = np.maximum(tissue[dense], random.uniform(48, 75))
        done.append("dense falx")
    if random.random() < 0.25:
        dense = (np.abs(brain.tentorium_mm) < random.uniform(0.6, 1.6)) & (y > -75) & (y < -10) & free
        tissue[dense] = np.maximum(tissue[dense], random.uniform(45, 65))
        done.append("dense tentorium")
    if random.random() < 0.35:  # superior sagittal, straight and transverse sinus
        value, width = random.uniform(50, 75), random.uniform(2, 5)
        sagittal = (np.abs(x) < width) & (brain.depth_mm < 1.6 * width) & (z > -10)
        straight = (np.abs(x) < width / 2) & (np.abs(brain.tentorium_mm) < width / 2) & (y < -35)
        transverse = (brain.depth_mm < width) & (np.abs(brain.tentorium_mm) < width) & (y < -30)
        dense = (sagittal | straight | transverse) & free
        tissue[dense] = np.maximum(tissue[dense], value)
        done.append("dense sinuses")
    if random.random() < 0.3:  # basilar, carotid and middle cerebral arteries
        value = random.uniform(45, 70)
        blob((0, 3, -22), (2, 2, 9), value, 1.0)
        for sign in (-1.0, 1.0):
            blob((sign * 17, 10, -17), (14, 1.6, 1.8), value, 1.0)
        done.append("dense arteries")
    for _ in range(int(random.poisson(0.7))):
        centre = (side() * random.uniform(15, 55), random.uniform(-70, 60), random.uniform(-15, 50))
        blob(centre, random.uniform(3, 22, 3), random.uniform(5, 26), random.uniform(1, 6), 0.35)
        done.append("hypodense area")
    for _ in range(int(random.poisson(0.5))):
        centre = (side() * random.uniform(2, 55), random.uniform(-70, 65), random.uniform(-40, 55))
        blob(centre, random.uniform(0.8, 2.5, 3), random.uniform(60, 400), 1.0)
        done.append("calcification")
    hu[atlas.cavity] = tissue
    if random.random() < 0.05:
        px, py, pz = atlas.points
        angle = random.uniform(-1.2, 1.2)
        burr = (np.hypot(px - side() * 40, py - 60 * math.sin(angle)) < random.uniform(5, 9)) & (pz > 20) & ~atlas.cavity & (hu > 100)
        hu[burr] = random.uniform(0, 60)
        done.append("burr hole")
    return done


def resample(
    random: np.random.Generator,
    atlas: Atlas,
    hu: Float32[np.ndarray, "z y x"],
    labels: UInt8[np.ndarray, "z y x"],
    geometry: Geometry,
) -> tuple[Float32[np.ndarray, "slice row col"], dict[str, UInt8[np.ndarray, "slice row col"]]]:
    """The slices, averaged over their thickness, and the share of blood in each voxel."""
    n_sub = int(np.clip(math.ceil(geometry.thickness_mm / atlas.spacing_mm[0]), 1, 4))
    inner = (np.arange(n_sub) + 0.5) / n_sub - 0.5
    pose = rotation(2, geometry.rotation_degrees) @ rotation(1, geometry.roll_degrees) @ rotation(0, geometry.tilt_degrees)
    pose = np.diag(1 / np.asarray(geometry.scale)) @ pose
    half = geometry.field_of_view_mm / 2
    ticks = np.linspace(-half, half, COARSE)
    waves = [(random.normal(0, geometry.bend_mm, 3), random.normal(0, 1 / 22, 3), random.uniform(0, 6.3)) for _ in range(4)]
    step, start = np.asarray(atlas.spacing_mm)[::-1], np.asarray(atlas.origin_mm)
    fine = _interpolation(COARSE, geometry.matrix)
    out = np.zeros((geometry.n_slices, geometry.matrix, geometry.matrix), dtype=np.float32)
    names = [label for index, label in enumerate(LABELS) if index and (labels == index).any()]
    masks = {label: (labels == LABELS.index(label)).astype(np.float32) for label in names}
    extent = {label: _extent_mm(mask, atlas) for label, mask in masks.items()}
    blood = {label: np.zeros(out.shape, dtype=np.float32) for label in names}
    sign = -1.0 if geometry.mirrored else 1.0
    for k in range(geometry.n_slices):
        height = (k - (geometry.n_slices - 1) / 2) * geometry.between_mm
        for share in inner:
            # rows go posterior, columns to the patient's left
            grid = np.stack(np.broadcast_arrays(-ticks[None, :] * sign, -ticks[:, None], height + share * geometry.thickness_mm))
            head = np.tensordot(pose, grid, 1) + np.asarray(geometry.middle_mm)[:, None, None]
            bent = head.copy()
            for push, wave, phase in waves:
                bent += push[:, None, None] * np.sin(np.tensordot(wave, head, 1) + phase) / 2
            places = (bent - start[:, None, None]) / step[:, None, None]
            where = [fine @ axis.astype(np.float32) @ fine.T for axis in places[::-1]]
            out[k] += ndimage.map_coordinates(hu, where, order=1, mode="constant", cval=anatomy.AIR_HU)
            for label in names:
                if extent[label][0] <= bent[2].max() and bent[2].min() <= extent[label][1]:
                    blood[label][k] += ndimage.map_coordinates(masks[label], where, order=1, mode="constant")
    shares = {label: np.rint(share * (255 / n_sub)).astype(np.uint8) for label, share in blood.items()}
    return out / n_sub, {label: share for label, share in shares.items() if share.any()}


def _extent_mm(mask: Float32[np.ndarray, "z y x"], atlas: Atlas) -> tuple[float, float]:
    z = np.flatnonzero(mask.any(axis=(1, 2)))
    low, high = (atlas.origin_mm[2] + atlas.spacing_mm[0] * float(one) for one in (z[0] - 1, z[-1] + 1))
    return low, high


def _interpolation(n: int, m: int) -> Float32[np.ndarray, "m n"]:
    at = (np.arange(m) + 0.5) / m * (n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weights = np.zeros((m, n), dtype=np.float32)
    weights[np.arange(m), low], weights[np.arange(m), low + 1] = 1 - (at - low), at - low
    return weights


def scan(
    random: np.random.Generator, hu: Float32[np.ndarray, "slice row col"], geometry: Geometry, scanner: Scanner, has_noise_hu: float
) -> Float32[np.ndarray, "slice row col"]:
    """The slices as a scanner would give them."""
    n, matrix, _ = hu.shape
    pixel_mm = geometry.field_of_view_mm / matrix
    rows, columns = np.mgrid[:matrix, :matrix].astype(np.float32)
    if scanner.has_holder:
        radius, thick = random.uniform(85, 130) / pixel_mm, random.uniform(1, 4) / pixel_mm
        centre = random.uniform(0.45, 0.6) * matrix, matrix * random.uniform(0.47, 0.53)
        ring = np.abs(np.hypot(rows - centre[0], columns - centre[1]) - radius) < thick
        ring &= rows > centre[0] + random.uniform(0, 0.7) * radius
        hu = np.where(ring & (hu < -700), np.float32(random.uniform(-300, 300)), hu)
    hu = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(hu, scanner.blur, axis=1, truncate=3), scanner.blur, axis=2, truncate=3)
    if scanner.band_hu > 1:
        angle, bow = random.normal(0, 0.15), random.uniform(4, 10) / pixel_mm
        across = (rows - matrix * random.uniform(0.5, 0.68)) * math.cos(angle) + (columns - matrix / 2) * math.sin(angle)
        level = np.exp(-0.5 * np.square((np.arange(n) * geometry.between_mm - random.uniform(0, 45)) / 12))
        hu = hu - (scanner.band_hu * level[:, None, None] * np.exp(-np.square(across / bow))).astype(np.float32)
    if scanner.ripple_hu:
        away = np.hypot(rows - matrix / 2, columns - matrix / 2)
        hu = hu + (scanner.ripple_hu * np.sin(away * random.uniform(0.2, 1.5) + random.uniform(0, 6))).astype(np.float32)
    if scanner.has_metal:
        k, r, c = int(random.integers(n)), random.uniform(0.2, 0.8) * matrix, random.uniform(0.2, 0.8) * matrix
        angle = np.arctan2(rows - r, columns - c)
        away = np.hypot(rows - r, columns - c)
        star = np.sin(angle * int(random.integers(4, 14)) + 1) * 2500 / (away + 12)
        for one in range(max(0, k - 1), min(n, k + 2)):
            hu[one] += star.astype(np.float32)
            hu[one][away < random.uniform(2, 5)] = 3000
    for k in np.flatnonzero(random.random(n) < scanner.moves):
        moved = ndimage.shift(hu[k], random.normal(0, 3, 2), order=1, mode="nearest")
        hu[k] = hu[k] * 0.6 + moved * 0.4
    wanted = max(scanner.noise_hu**2 - has_noise_hu**2 / (1 + 2 * scanner.blur) ** 2, 0.1) ** 0.5
    white = random.standard_normal(hu.shape, dtype=np.float32)
    grain = scanner.noise_grain
    white = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(white, grain, axis=1, truncate=3), grain, axis=2, truncate=3)
    hu = hu + white * np.float32(wanted / max(float(white[0].std()), 1e-3)) * np.where(hu > -500, 1.0, 0.6).astype(np.float32)
    hu = hu * np.float32(scanner.gain) + np.float32(scanner.shift_hu) if scanner.gain else hu
    if scanner.cut_below_hu is not None:
        hu = np.where(hu < scanner.cut_below_hu, np.float32(-1000), hu)
    if scanner.saturated is not None:
        hu = np.where(hu > scanner.saturated[0], np.float32(scanner.saturated[1]), hu)
    return np.clip(hu, -1024, 3071).astype(np.float32)
