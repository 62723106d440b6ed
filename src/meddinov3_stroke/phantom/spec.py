"""Everything that decides one synthetic head CT, drawn from a seed.

Head coordinates are RAS+ millimetres of an upright head: x to the patient's right, y anterior, z superior, the origin
near the middle of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import LABELS

Number = int | float
"""Spelt out because the run-time checks in the tests do not accept an int for a float."""
Vector = tuple[Number, Number, Number]
"""Head coordinates (x, y, z), in mm unless stated otherwise."""
MAX_TILT_DEGREES = 18.0
"""Largest angle drawn between the slices and the head's own axial plane; gantries tilt by about as much."""


class Site(NamedTuple):
    """A place where a type of haemorrhage occurs in an adult brain of average size."""

    label: str
    name: str
    centre_mm: Vector
    """On the patient's right; mirrored for the left."""
    max_ml: Number
    weight: Number
    scatter_mm: Number = 5


SITES = (
    Site("epidural", "temporal", (66, 8, -4), 60, 4, 7),
    Site("epidural", "parietal", (55, -35, 35), 60, 3, 7),
    Site("epidural", "frontal", (45, 58, 14), 60, 2, 7),
    Site("epidural", "occipital", (36, -70, 12), 30, 1, 5),
    Site("intraparenchymal", "putamen", (27, 2, 4), 60, 4),
    Site("intraparenchymal", "thalamus", (14, -14, 7), 15, 2, 3),
    Site("intraparenchymal", "frontal lobe", (30, 42, 24), 60, 2),
    Site("intraparenchymal", "parietal lobe", (32, -34, 36), 60, 2),
    Site("intraparenchymal", "temporal lobe", (45, -4, -14), 40, 1),
    Site("intraparenchymal", "occipital lobe", (24, -60, 10), 30, 1),
    Site("intraparenchymal", "cerebellum", (22, -48, -36), 20, 1, 3),
    Site("intraparenchymal", "pons", (1, -12, -32), 3, 0.6, 2),
    Site("intraventricular", "layering in both occipital horns", (0, -60, 4), 15, 3, 0),
    Site("intraventricular", "layering in one occipital horn", (24, -60, 4), 6, 2, 0),
    Site("intraventricular", "cast of one lateral ventricle", (10, 18, 12), 12, 2, 3),
    Site("intraventricular", "third ventricle", (0, -4, 2), 2, 1, 2),
    Site("intraventricular", "fourth ventricle", (0, -32, -36), 2, 1, 1),
    Site("subarachnoid", "basal cisterns", (3, 10, -20), 30, 3, 2),
    Site("subarachnoid", "Sylvian fissure", (44, 8, -6), 20, 2, 4),
    Site("subarachnoid", "convexity", (46, -12, 42), 15, 3, 10),
    Site("subarachnoid", "frontal convexity", (30, 58, 26), 15, 1, 8),
    Site("subarachnoid", "interhemispheric fissure", (0, 46, 18), 8, 1, 4),
    Site("subdural", "convexity", (62, 4, 24), 60, 7, 9),
    Site("subdural", "falx", (0, 30, 40), 6, 1, 12),
    Site("subdural", "tentorium", (26, -42, -6), 6, 1, 4),
)
LEAST_DRAWN_ML = 0.4
MOST_DRAWN_ML = {label: max(site.max_ml for site in SITES if site.label == label) for label in LABELS[1:]}
"""Range of the volumes drawn (log-uniform); ventricles and sulci hold less. About a third lie below 2 mL."""


@dataclass(frozen=True)
class LesionSpec:
    """One haemorrhage to put in."""

    label: str
    volume_ml: float
    """Target; the mask comes within 25 % of it unless the space at `site` is smaller."""
    hu: float
    site: str
    centre_mm: Vector
    """Its middle; of a haemorrhage against the skull, a point on the ray through its middle."""
    elongation: Vector
    """Relative half-axes (x, y, z), product 1."""
    edge_mm: float
    """Width over which it fades into the surrounding tissue; blood in sulci ends at their walls."""
    oedema_mm: float
    """Rim of oedema around an intraparenchymal haemorrhage; 0 for the other types."""


@dataclass(frozen=True)
class HeadSpec:
    """The anatomy of one invented head; two studies of a patient share it."""

    seed: int
    """Decides what no field below does: the pattern of the sulci, the unevenness of the skull."""
    half_width_mm: float
    """Of the intracranial cavity at its widest, as are the next two (length, and origin to vertex)."""
    half_length_mm: float
    height_mm: float
    egg: float
    """How much narrower the front is than the back."""
    squareness: float
    skew: float
    """Plagiocephaly: opposite corners drawn out."""
    skull_mm: float
    scalp_mm: float
    csf_rim_mm: float
    sulcus_mm: float
    """Width of a sulcus at the surface."""
    sulcus_depth_mm: float
    ventricle_scale: float
    grey_hu: float
    white_hu: float
    csf_hu: float
    cupping_hu: float
    """Residual beam hardening: rise towards the inner table."""
    calcified_pineal: bool
    calcified_choroid: bool


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that decides one volume: the head, the acquisition and the haemorrhages."""

    seed: int
    shape: tuple[int, int, int]
    """(slices, rows, columns), as `spacing_mm`."""
    spacing_mm: tuple[float, float, float]
    tilt_degrees: float
    """Rotation of the slices about the left-right axis; positive raises their front."""
    rotation_degrees: float
    """The head turned in the plane of the slice."""
    roll_degrees: float
    """The head leaning towards a shoulder."""
    centre_mm: tuple[float, float, float]
    """Head coordinates of the middle of the volume."""
    noise_hu: float
    head_holder: bool
    head: HeadSpec
    lesions: tuple[LesionSpec, ...]


def draw_spec(
    seed: int,
    lesions: Sequence[str] | None = None,
    *,
    volumes_ml: Sequence[Number] | None = None,
    shape: tuple[int, int, int] | None = None,
    tilt_degrees: Number | None = None,
    head_seed: int | None = None,
) -> PhantomSpec:
    """The specification of one head CT; the same arguments give the same one.

    `seed` decides the acquisition and the noise, and the head too unless `head_seed` is given (the studies of a patient
    share it). `lesions` are labels of the five types, repeats allowed; empty for none. What is None is drawn:
    `lesions`, `volumes_ml` (the target of each, log-uniform), `shape` (slices, rows, columns; the spacing follows) and
    `tilt_degrees` of the gantry.

    Raises:
        UsageError: a negative seed, an unknown label, or volumes that do not match the lesions.
    """
    if seed < 0 or (head_seed or 0) < 0:
        raise UsageError(f"phantom seed {seed}, head seed {head_seed}: expected whole numbers from 0")
    head = _draw_head(seed if head_seed is None else head_seed)
    random = np.random.default_rng([seed, 1])
    grid_shape, spacing_mm = _draw_grid(random, shape)
    drawn_tilt = float(random.choice([0.0, random.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES)], p=[0.4, 0.6]))
    return PhantomSpec(
        seed=seed,
        shape=grid_shape,
        spacing_mm=spacing_mm,
        tilt_degrees=drawn_tilt if tilt_degrees is None else float(tilt_degrees),
        rotation_degrees=random.normal(0, 3.5),
        roll_degrees=random.normal(0, 2.0),
        centre_mm=(random.normal(0, 3), random.normal(1, 4), random.uniform(6, 12)),
        noise_hu=random.uniform(2.0, 5.0),
        head_holder=random.random() < 0.6,
        head=head,
        lesions=_draw_lesions(head.seed, lesions, volumes_ml),
    )


def _draw_head(seed: int) -> HeadSpec:
    random = np.random.default_rng([seed, 0])
    size, atrophy = random.normal(1.0, 0.03), random.beta(1.6, 2.0)  # so that wide sulci go with wide ventricles
    return HeadSpec(
        seed=seed,
        half_width_mm=size * random.normal(67, 2.0),
        half_length_mm=size * random.normal(83, 2.5),
        height_mm=size * random.normal(70, 2.0),
        egg=random.uniform(0.05, 0.13),
        squareness=random.uniform(0.1, 0.5),
        skew=random.normal(0, 0.02),
        skull_mm=random.uniform(5.0, 8.0),
        scalp_mm=random.uniform(4.0, 7.0),
        csf_rim_mm=0.8 + 2.4 * atrophy,
        sulcus_mm=0.8 + 2.2 * atrophy,
        sulcus_depth_mm=random.uniform(11, 17),
        ventricle_scale=0.75 + 0.6 * atrophy + random.normal(0, 0.05),
        grey_hu=random.normal(37.5, 0.8),
        white_hu=random.normal(29, 0.8),
        csf_hu=random.normal(8, 1.5),
        cupping_hu=random.uniform(1.0, 6.0),
        calcified_pineal=random.random() < 0.5,
        calcified_choroid=random.random() < 0.4,
    )


def _draw_grid(
    random: np.random.Generator, shape: tuple[int, int, int] | None
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    covered_mm, thickness_mm, field_of_view_mm = random.uniform((136, 4.2, 208), (148, 7.0, 232)).tolist()
    matrix = int(random.choice([144, 160, 176, 192]))
    if shape is None:
        shape = (int(np.clip(round(covered_mm / thickness_mm), 18, 34)), matrix, matrix)
    pixel_mm = round(field_of_view_mm / max(shape[1:]), 4)
    return shape, (round(covered_mm / shape[0], 3), pixel_mm, pixel_mm)


def _draw_lesions(
    seed: int, labels: Sequence[str] | None, volumes_ml: Sequence[Number] | None
) -> tuple[LesionSpec, ...]:
    random = np.random.default_rng([seed, 2])
    if labels is None:
        n_types = int(random.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))
        labels = [str(label) for label in random.permutation(LABELS[1:])[:n_types]]
    unknown = sorted(set(labels) - set(LABELS[1:]))
    if unknown:
        raise UsageError(f"phantom lesions {unknown}: not haemorrhage types; expected any of {list(LABELS[1:])}")
    if volumes_ml is None:
        ranges = [np.log((LEAST_DRAWN_ML, MOST_DRAWN_ML[label])) for label in labels]
        volumes_ml = [float(np.exp(random.uniform(*low_high))) for low_high in ranges]
    if len(volumes_ml) != len(labels) or not all(volume > 0 for volume in volumes_ml):
        raise UsageError(f"phantom volumes_ml {list(volumes_ml)}: expected one positive volume for each of {labels}")
    streams = random.spawn(len(labels))
    return tuple(_draw_lesion(*lesion) for lesion in zip(streams, labels, volumes_ml, strict=True))


def _draw_lesion(random: np.random.Generator, label: str, volume_ml: Number) -> LesionSpec:
    """A haemorrhage at a place that can hold it."""
    sites = [site for site in SITES if site.label == label and site.max_ml >= min(volume_ml, MOST_DRAWN_ML[label])]
    weights = np.array([site.weight for site in sites])
    site = sites[int(random.choice(len(sites), p=weights / weights.sum()))]
    side = -1.0 if random.random() < 0.5 else 1.0
    x, y, z = np.asarray(site.centre_mm) + random.normal(0, site.scatter_mm / 2, 3)
    elongation = np.exp(random.normal([-0.05, 0.12, -0.05], 0.12))
    elongation /= np.prod(elongation) ** (1 / 3)
    edge_mm = random.uniform(1.0, 2.0)
    return LesionSpec(
        label=label,
        volume_ml=float(volume_ml),
        hu=random.uniform(58, 76),
        site=site.name,
        centre_mm=(float(side * x), float(y), float(z)),
        elongation=(float(elongation[0]), float(elongation[1]), float(elongation[2])),
        edge_mm=0.2 if label == "subarachnoid" else edge_mm,
        oedema_mm=random.uniform(1.5, 5.0) if label == "intraparenchymal" else 0.0,
    )
