"""Everything that decides a synthetic head CT or a cohort of them, drawn from a seed.

Head coordinates are RAS+ millimetres of an upright head: x to the patient's right, y anterior, z superior, the origin
near the middle of the brain.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import LABELS

Number = int | float  # the run-time checks in the tests do not accept an int for a float
Vector = tuple[Number, Number, Number]  # head coordinates (x, y, z)
Shape = tuple[int, int, int]  # (slices, rows, columns)


class Site(NamedTuple):
    """A place where a type of haemorrhage occurs in an adult brain of average size."""

    label: str
    name: str
    centre_mm: Vector  # on the patient's right; mirrored for the left
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
MAX_TILT_DEGREES = 18.0  # gantries tilt by about as much
MOST_DRAWN_ML = {label: max(site.max_ml for site in SITES if site.label == label) for label in LABELS[1:]}
LEAST_DRAWN_ML, LEAST_COHORT_ML = 0.4, 0.5  # volumes are log-uniform; about three in ten lie below 2 mL
POSITIVE_SHARE = 0.5
N_TYPES_P = (0.4, 0.37, 0.23)  # one, two, three types in a patient who bleeds; each type is in about 1 study of 6
SECOND_STUDY_SHARE = 0.18  # of patients (RSNA 2019: 21,744 studies of 18,938 patients)
GOLDEN = (5**0.5 - 1) / 2  # step of the additive recurrence that spreads the volumes evenly


@dataclass(frozen=True)
class LesionSpec:
    """One haemorrhage to put in."""

    label: str
    volume_ml: float  # target; the mask comes within 25 % of it unless the space at `site` is smaller
    hu: float
    site: str
    centre_mm: Vector  # its middle; against the skull, a point on the ray through its middle
    elongation: Vector  # relative half-axes (x, y, z), product 1
    edge_mm: float  # width over which it fades into tissue; blood in sulci ends at their walls
    oedema_mm: float  # rim of oedema around an intraparenchymal haemorrhage; 0 for the other types


@dataclass(frozen=True)
class HeadSpec:
    """The anatomy of one invented head; two studies of a patient share it."""

    seed: int  # decides what no other field does, such as the pattern of the sulci
    half_width_mm: float  # of the intracranial cavity at its widest, as is the length
    half_length_mm: float
    height_mm: float  # origin to vertex
    egg: float  # how much narrower the front is than the back
    squareness: float
    skew: float  # plagiocephaly: opposite corners drawn out
    skull_mm: float
    scalp_mm: float
    csf_rim_mm: float
    sulcus_mm: float  # width at the surface
    sulcus_depth_mm: float
    ventricle_scale: float
    grey_hu: float
    white_hu: float
    csf_hu: float
    cupping_hu: float  # residual beam hardening: rise towards the inner table
    calcified_pineal: bool
    calcified_choroid: bool


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that decides one volume: the head, the acquisition and the haemorrhages."""

    seed: int
    shape: Shape
    spacing_mm: tuple[float, float, float]  # (slices, rows, columns)
    tilt_degrees: float  # of the slices about the left-right axis; positive raises their front
    rotation_degrees: float  # the head turned in the plane of the slice
    roll_degrees: float  # the head leaning towards a shoulder
    centre_mm: tuple[float, float, float]  # head coordinates of the middle of the volume
    noise_hu: float
    head_holder: bool
    head: HeadSpec
    lesions: tuple[LesionSpec, ...]


class StudySpec(NamedTuple):
    """One study, which has one series."""

    study_uid: str
    series_uid: str
    spec: PhantomSpec


class PatientSpec(NamedTuple):
    """One invented patient."""

    patient_id: str
    studies: tuple[StudySpec, ...]


def draw_spec(
    seed: int,
    lesions: Sequence[str] | None = None,
    *,
    volumes_ml: Sequence[Number] | None = None,
    shape: Shape | None = None,
    tilt_degrees: Number | None = None,
    head_seed: int | None = None,
) -> PhantomSpec:
    """The specification of one head CT; the same arguments give the same one.

    `seed` decides the acquisition and the noise, and the head too unless `head_seed` is given. `lesions` are labels,
    repeats allowed; empty for none. Lesions, volumes, shape (the spacing follows) and tilt are drawn where None. Raises
    UsageError for a negative seed, an unknown label, or volumes that do not match the lesions.
    """
    if seed < 0 or (head_seed or 0) < 0:
        raise UsageError(f"phantom seed {seed}, head seed {head_seed}: expected whole numbers from 0")
    head = _draw_head(seed if head_seed is None else head_seed)
    random = np.random.default_rng([seed, 1])
    covered_mm, thickness_mm, field_of_view_mm = random.uniform((136, 4.2, 208), (148, 7.0, 232)).tolist()
    matrix = int(random.choice([144, 160, 176, 192]))
    shape = shape or (int(np.clip(round(covered_mm / thickness_mm), 18, 34)), matrix, matrix)
    pixel_mm = round(field_of_view_mm / max(shape[1:]), 4)
    drawn_tilt = float(random.choice([0.0, random.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES)], p=[0.4, 0.6]))
    return PhantomSpec(
        seed=seed,
        shape=shape,
        spacing_mm=(round(covered_mm / shape[0], 3), pixel_mm, pixel_mm),
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
    size, atrophy = random.normal(1.0, 0.03), random.beta(1.6, 2.0)  # wide sulci go with wide ventricles
    values: list[Any] = [
        seed,
        *(size * random.normal((67, 83, 70), (2.0, 2.5, 2.0))).tolist(),  # the cavity
        *random.uniform((0.05, 0.1), (0.13, 0.5)).tolist(),  # egg, squareness
        random.normal(0, 0.02),
        *random.uniform((5.0, 4.0), (8.0, 7.0)).tolist(),  # skull, scalp
        *(0.8 + 2.4 * atrophy, 0.8 + 2.2 * atrophy, random.uniform(11, 17)),  # rim and sulci
        0.75 + 0.6 * atrophy + random.normal(0, 0.05),
        *random.normal((37.5, 29, 8), (0.8, 0.8, 1.5)).tolist(),  # grey and white matter, fluid
        random.uniform(1.0, 6.0),
        *(random.random() < 0.5, random.random() < 0.4),
    ]
    return HeadSpec(*values)  # in the order of its fields


def _draw_lesions(
    seed: int, labels: Sequence[str] | None, volumes_ml: Sequence[Number] | None
) -> tuple[LesionSpec, ...]:
    random = np.random.default_rng([seed, 2])
    if labels is None:
        n_types = int(random.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))
        labels = [str(label) for label in random.permutation(LABELS[1:])[:n_types]]
    if unknown := sorted(set(labels) - set(LABELS[1:])):
        raise UsageError(f"phantom lesions {unknown}: not haemorrhage types; expected any of {list(LABELS[1:])}")
    if volumes_ml is None:
        ranges = [np.log((LEAST_DRAWN_ML, MOST_DRAWN_ML[label])) for label in labels]
        volumes_ml = [float(np.exp(random.uniform(*low_high))) for low_high in ranges]
    if len(volumes_ml) != len(labels) or not all(volume > 0 for volume in volumes_ml):
        raise UsageError(f"phantom volumes_ml {list(volumes_ml)}: expected one positive volume for each of {labels}")
    streams = random.spawn(len(labels))
    return tuple(draw_lesion(*lesion) for lesion in zip(streams, labels, volumes_ml, strict=True))


def draw_lesion(random: np.random.Generator, label: str, volume_ml: Number) -> LesionSpec:
    """A haemorrhage of one type and volume at one of the sites of that type."""
    sites = [site for site in SITES if site.label == label and site.max_ml >= min(volume_ml, MOST_DRAWN_ML[label])]
    weights = np.array([site.weight for site in sites])
    site = sites[int(random.choice(len(sites), p=weights / weights.sum()))]
    side = -1.0 if random.random() < 0.5 else 1.0
    x, y, z = (np.asarray(site.centre_mm) + random.normal(0, site.scatter_mm / 2, 3)).tolist()
    elongation = np.exp(random.normal([-0.05, 0.12, -0.05], 0.12))
    elongation /= np.prod(elongation) ** (1 / 3)
    edge_mm = random.uniform(1.0, 2.0)
    return LesionSpec(
        label=label,
        volume_ml=float(volume_ml),
        hu=random.uniform(58, 76),
        site=site.name,
        centre_mm=(side * x, y, z),
        elongation=tuple(elongation.tolist()),
        edge_mm=0.2 if label == "subarachnoid" else edge_mm,
        oedema_mm=random.uniform(1.5, 5.0) if label == "intraparenchymal" else 0.0,
    )


def draw_cohort(n_patients: int, seed: int, *, shape: Shape | None = None) -> tuple[PatientSpec, ...]:
    """The patients of a cohort; the same arguments give the same ones.

    About half have no haemorrhage; the types are drawn evenly, the volumes log-uniformly. A follow-up shows the same
    head and haemorrhages, larger or smaller, in another acquisition. `shape` is drawn for each study unless given.
    Raises UsageError for fewer than one patient or a negative seed.
    """
    if n_patients < 1 or seed < 0:
        raise UsageError(f"phantom cohort of {n_patients} patients, seed {seed}: expected at least 1 and a seed from 0")
    random = np.random.default_rng([seed, 8])
    types, volumes_ml = _draw_lesion_lists(random, n_patients)
    n_studies = 1 + (random.permutation(n_patients) < round(SECOND_STUDY_SHARE * n_patients))
    patients = []
    for index, (labels, volumes) in enumerate(zip(types, volumes_ml, strict=True)):
        digest = hashlib.blake2s(f"phantom {seed} {index}".encode()).hexdigest()
        head_seed, series_number = int(digest[:12], 16), 1_000_000_000 + int(digest[20:28], 16)
        studies = []
        for number in range(n_studies[index]):
            growth = 1.0 if number == 0 else random.uniform(0.6, 1.3)
            grown_ml = [volume * growth for volume in volumes]
            spec = draw_spec(head_seed + number, labels, volumes_ml=grown_ml, head_seed=head_seed, shape=shape)
            studies.append(StudySpec(f"ST_{digest[12:20]}{number}", str(series_number + number), spec))
        patients.append(PatientSpec(f"PH_{digest[:10]}", tuple(studies)))
    return tuple(patients)


def count_series(n_patients: int, seed: int) -> int:
    """Number of series that `draw_cohort` gives."""
    return sum(len(patient.studies) for patient in draw_cohort(n_patients, seed))


def _draw_lesion_lists(random: np.random.Generator, n_patients: int) -> tuple[list[list[str]], list[list[float]]]:
    # (labels, volumes in mL) of each patient; the rarest types so far come first, so that small cohorts hold every type
    used: Counter[str] = Counter()
    types: list[list[str]] = [[] for _ in range(n_patients)]
    n_positive = round(POSITIVE_SHARE * n_patients)
    counts = 1 + random.choice(3, size=n_positive, p=N_TYPES_P)
    for index, count in zip(random.permutation(n_patients)[:n_positive], counts, strict=True):
        shuffled = [str(label) for label in random.permutation(LABELS[1:])]
        types[index] = sorted(shuffled, key=lambda label: used[label])[: int(count)]
        used.update(types[index])
    position = {label: random.random() for label in LABELS[1:]}

    def next_volume_ml(label: str) -> float:
        position[label] = (position[label] + GOLDEN) % 1.0
        low, high = np.log((LEAST_COHORT_ML, MOST_DRAWN_ML[label]))
        return float(np.exp(low + (high - low) * position[label]))

    return types, [[next_volume_ml(label) for label in labels] for labels in types]
