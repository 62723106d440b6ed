"""A cohort of invented patients: who has which haemorrhages in which study."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom.sites import VOLUME_RANGE_ML
from meddinov3_stroke.phantom.spec import PhantomSpec, draw_spec
from meddinov3_stroke.types import LABELS

POSITIVE_SHARE = 0.5
"""Share of patients with a haemorrhage."""
LEAST_VOLUME_ML = 0.5
"""Smallest haemorrhage drawn for a cohort; about three in ten then lie below 2 mL."""
N_TYPES = (0.4, 0.37, 0.23)
"""Chances of one, two and three types in a patient who bleeds; so each type is in about a sixth of the studies."""
SECOND_STUDY_SHARE = 0.18
"""Share of patients with a follow-up study (RSNA 2019: 21,744 studies of 18,938 patients)."""
GOLDEN = (5**0.5 - 1) / 2
"""Step of the additive recurrence that spreads the volumes evenly."""


@dataclass(frozen=True)
class StudySpec:
    """One study, which has one series."""

    study_uid: str
    series_uid: str
    spec: PhantomSpec


@dataclass(frozen=True)
class PatientSpec:
    """One invented patient."""

    patient_id: str
    studies: tuple[StudySpec, ...]


def draw_cohort(n_patients: int, seed: int, *, shape: tuple[int, int, int] | None = None) -> tuple[PatientSpec, ...]:
    """The patients of a cohort; the same arguments give the same ones.

    About half have no haemorrhage; the types are drawn evenly and mixed, the volumes log-uniformly. A follow-up shows
    the same head and haemorrhages, somewhat larger or smaller, in another acquisition. `shape` (slices, rows,
    columns) is drawn for each study unless given.

    Raises:
        UsageError: fewer than one patient, or a negative seed.
    """
    if n_patients < 1 or seed < 0:
        raise UsageError(f"phantom cohort of {n_patients} patients, seed {seed}: expected at least 1 and a seed from 0")
    random = np.random.default_rng([seed, 8])
    types = _draw_types(random, n_patients)
    volumes = _draw_volumes(random, types)
    n_studies = 1 + (random.permutation(n_patients) < round(SECOND_STUDY_SHARE * n_patients))
    return tuple(
        _patient(seed, index, types[index], volumes[index], int(n_studies[index]), random, shape)
        for index in range(n_patients)
    )


def count_series(n_patients: int, seed: int) -> int:
    """Number of series that `draw_cohort` gives."""
    return sum(len(patient.studies) for patient in draw_cohort(n_patients, seed))


def _draw_types(random: np.random.Generator, n_patients: int) -> list[list[str]]:
    """Types of each patient; the rarest so far are taken first, so that small cohorts hold every type too."""
    used: Counter[str] = Counter()
    types: list[list[str]] = [[] for _ in range(n_patients)]
    n_positive = round(POSITIVE_SHARE * n_patients)
    counts = 1 + random.choice(3, size=n_positive, p=N_TYPES)
    for index, count in zip(random.permutation(n_patients)[:n_positive], counts, strict=True):
        shuffled = [str(label) for label in random.permutation(LABELS[1:])]
        types[index] = sorted(shuffled, key=lambda label: used[label])[: int(count)]
        used.update(types[index])
    return types


def _draw_volumes(random: np.random.Generator, types: list[list[str]]) -> list[list[float]]:
    position = {label: float(random.random()) for label in LABELS[1:]}
    volumes: list[list[float]] = []
    for labels in types:
        volumes.append([])
        for label in labels:
            position[label] = (position[label] + GOLDEN) % 1.0
            low, high = np.log((max(LEAST_VOLUME_ML, VOLUME_RANGE_ML[label][0]), VOLUME_RANGE_ML[label][1]))
            volumes[-1].append(float(np.exp(low + (high - low) * position[label])))
    return volumes


def _patient(
    seed: int,
    index: int,
    labels: list[str],
    volumes_ml: list[float],
    n_studies: int,
    random: np.random.Generator,
    shape: tuple[int, int, int] | None,
) -> PatientSpec:
    digest = hashlib.blake2s(f"phantom {seed} {index}".encode()).hexdigest()
    head_seed = int(digest[:12], 16)
    studies = []
    for number in range(n_studies):
        grown = 1.0 if number == 0 else float(random.uniform(0.6, 1.3))
        grown_ml = [volume * grown for volume in volumes_ml]
        spec = draw_spec(head_seed + number, labels, volumes_ml=grown_ml, head_seed=head_seed, shape=shape)
        series_uid = str(1_000_000_000 + int(digest[20:28], 16) + number)
        studies.append(StudySpec(f"ST_{digest[12:20]}{number}", series_uid, spec))
    return PatientSpec(f"PH_{digest[:10]}", tuple(studies))
