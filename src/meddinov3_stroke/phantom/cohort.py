"""A cohort of invented patients on disk: volumes, masks, one series CSV and what is known about each series."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom.head import make_phantom
from meddinov3_stroke.phantom.spec import MOST_DRAWN_ML, PhantomSpec, draw_spec
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_text
from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import LABELS

POSITIVE_SHARE = 0.5
"""Share of patients with a haemorrhage."""
LEAST_VOLUME_ML = 0.5
"""Smallest haemorrhage drawn for a cohort; about three in ten then lie below 2 mL."""
N_TYPES_P = (0.4, 0.37, 0.23)
"""Chances of one, two and three types in a patient who bleeds; each type is then in about a sixth of the studies."""
SECOND_STUDY_SHARE = 0.18
"""Share of patients with a follow-up study (RSNA 2019: 21,744 studies of 18,938 patients)."""
GOLDEN = (5**0.5 - 1) / 2
"""Step of the additive recurrence that spreads the volumes evenly."""
SCHEMA_VERSION = 1
"""Of `phantom_cohort.json`."""
VolumeFormat = Literal["nifti", "dicom"]
"""A .nii.gz file or a DICOM folder for each series."""


class StudySpec(NamedTuple):
    """One study, which has one series."""

    study_uid: str
    series_uid: str
    spec: PhantomSpec


class PatientSpec(NamedTuple):
    """One invented patient."""

    patient_id: str
    studies: tuple[StudySpec, ...]


@dataclass(frozen=True)
class CohortManifest:
    """A cohort that was written."""

    folder: Path
    csv_path: Path
    json_path: Path
    series: tuple[dict[str, Any], ...]
    """What is known about each series, as `phantom_cohort.json` has it."""


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
    volumes_ml = _draw_volumes(random, types)
    n_studies = 1 + (random.permutation(n_patients) < round(SECOND_STUDY_SHARE * n_patients))
    patients = []
    for index in range(n_patients):
        digest = hashlib.blake2s(f"phantom {seed} {index}".encode()).hexdigest()
        head_seed, series_number = int(digest[:12], 16), 1_000_000_000 + int(digest[20:28], 16)
        studies = []
        for number in range(n_studies[index]):
            growth = 1.0 if number == 0 else random.uniform(0.6, 1.3)
            grown_ml = [volume * growth for volume in volumes_ml[index]]
            spec = draw_spec(head_seed + number, types[index], volumes_ml=grown_ml, head_seed=head_seed, shape=shape)
            studies.append(StudySpec(f"ST_{digest[12:20]}{number}", str(series_number + number), spec))
        patients.append(PatientSpec(f"PH_{digest[:10]}", tuple(studies)))
    return tuple(patients)


def count_series(n_patients: int, seed: int) -> int:
    """Number of series that `draw_cohort` gives."""
    return sum(len(patient.studies) for patient in draw_cohort(n_patients, seed))


def _draw_types(random: np.random.Generator, n_patients: int) -> list[list[str]]:
    """Types of each patient; the rarest so far are taken first, so that small cohorts hold every type too."""
    used: Counter[str] = Counter()
    types: list[list[str]] = [[] for _ in range(n_patients)]
    n_positive = round(POSITIVE_SHARE * n_patients)
    counts = 1 + random.choice(3, size=n_positive, p=N_TYPES_P)
    for index, count in zip(random.permutation(n_patients)[:n_positive], counts, strict=True):
        shuffled = [str(label) for label in random.permutation(LABELS[1:])]
        types[index] = sorted(shuffled, key=lambda label: used[label])[: int(count)]
        used.update(types[index])
    return types


def _draw_volumes(random: np.random.Generator, types: list[list[str]]) -> list[list[float]]:
    position = {label: random.random() for label in LABELS[1:]}

    def volume_ml(label: str) -> float:
        position[label] = (position[label] + GOLDEN) % 1.0
        low, high = np.log((LEAST_VOLUME_ML, MOST_DRAWN_ML[label]))
        return float(np.exp(low + (high - low) * position[label]))

    return [[volume_ml(label) for label in labels] for labels in types]


def write_cohort(
    folder: Path,
    n_patients: int,
    seed: int,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
    shape: tuple[int, int, int] | None = None,
    volume_format: VolumeFormat = "nifti",
) -> CohortManifest:
    """The manifest of a cohort written under `folder`; the same arguments give the same bytes, however many workers.

    Writes `volumes/<patient>/<study>/_<series>.nii.gz`, the masks under `masks/` with the same names, the series CSV
    with paths relative to the folder, and `phantom_cohort.json`. As DICOM, `volumes/<patient>/<study>/_<series>/` is
    the folder of a series, the CSV's paths are in a column `dicom_path`, and the masks stay NIfTI. `on_progress` is
    called with 1 after each volume; `shape` (slices, rows, columns) is drawn for each volume unless given.

    Raises:
        UsageError: fewer than one patient or worker, or a negative seed.
        StorageError: the folder cannot be written.
    """
    if workers < 1:
        raise UsageError(f"phantom workers {workers}: expected at least 1")
    cohort = draw_cohort(n_patients, seed, shape=shape)
    jobs = [(patient.patient_id, study) for patient in cohort for study in patient.studies]
    series = []
    pool = ThreadPoolExecutor(max_workers=workers)  # NumPy and zlib work outside the interpreter lock
    try:
        for record in pool.map(lambda job: _write_series(folder, job[0], job[1], volume_format), jobs):
            series.append(record)
            if on_progress is not None:
                on_progress(1)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or an interrupt does not wait for the rest
    csv_path, json_path = folder / "phantom_series_labels.csv", folder / "phantom_cohort.json"
    columns = [f"{volume_format}_path", "patient_id", "study_uid", "series_uid", *LABELS]
    table = csv.DictWriter(text := io.StringIO(), columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(row | row["labels"] for row in series)
    write_text(csv_path, text.getvalue())
    document = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": "invented heads; no patient's data",
        "seed": seed,
        "n_patients": n_patients,
        "n_series": len(series),
        "labels": list(LABELS),
        "mask_values": {label: index for index, label in enumerate(LABELS) if index > 0},
        "series": series,
    }
    write_json(json_path, document)
    return CohortManifest(folder, csv_path, json_path, tuple(series))


def _write_series(folder: Path, patient_id: str, study: StudySpec, volume_format: VolumeFormat) -> dict[str, Any]:
    name = f"{patient_id}/{study.study_uid}/_{study.series_uid}"
    phantom, uids = make_phantom(study.spec), (study.study_uid, study.series_uid)
    write_bytes(folder / "masks" / f"{name}.nii.gz", nifti_bytes(phantom.mask, phantom.affine))
    if volume_format == "nifti":
        write_bytes(folder / "volumes" / f"{name}.nii.gz", nifti_bytes(phantom.hu, phantom.affine))
    else:
        from meddinov3_stroke.phantom.dicom import write_series

        uids = write_series(folder / "volumes" / name, phantom, patient_id)
    return {
        "nifti_path": f"volumes/{name}.nii.gz" if volume_format == "nifti" else None,
        "dicom_path": f"volumes/{name}" if volume_format == "dicom" else None,
        "mask_path": f"masks/{name}.nii.gz",
        "patient_id": patient_id,
        "study_uid": uids[0],
        "series_uid": uids[1],
        "labels": phantom.labels,
        "lesion_volumes_ml": {label: round(volume, 4) for label, volume in phantom.lesion_volumes_ml.items()},
        "lesions": [asdict(lesion) for lesion in study.spec.lesions],
        "seed": study.spec.seed,
        "head_seed": study.spec.head.seed,
        **{name: getattr(study.spec, name) for name in ("shape", "spacing_mm", "tilt_degrees", "noise_hu")},
    }
