"""A cohort on disk: volumes, masks, one series CSV and what is known about each series."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom.cohort import PatientSpec, StudySpec, draw_cohort
from meddinov3_stroke.phantom.head import make_phantom
from meddinov3_stroke.phantom.nifti import nifti_bytes
from meddinov3_stroke.runtime.atomic import write_bytes, write_json, write_text
from meddinov3_stroke.types import LABELS

CSV_NAME = "phantom_series_labels.csv"
"""The one CSV at the top of the folder."""
JSON_NAME = "phantom_cohort.json"
"""Ground truth beyond the labels: volumes, sites, geometry."""
SCHEMA_VERSION = 1
"""Of `phantom_cohort.json`."""


@dataclass(frozen=True)
class SeriesRecord:
    """What is known about one series."""

    nifti_path: str
    """Relative to the folder."""
    mask_path: str
    patient_id: str
    study_uid: str
    series_uid: str
    labels: dict[str, int]
    lesion_volumes_ml: dict[str, float]
    """Measured from the mask, each of the five types."""
    lesions: tuple[dict[str, Any], ...]
    """As specified: label, target volume, HU, site, centre."""
    seed: int
    head_seed: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    tilt_degrees: float
    noise_hu: float


@dataclass(frozen=True)
class CohortManifest:
    """A cohort that was written."""

    folder: Path
    csv_path: Path
    json_path: Path
    n_patients: int
    seed: int
    series: tuple[SeriesRecord, ...]


def write_cohort(
    folder: Path,
    n_patients: int,
    seed: int,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
    shape: tuple[int, int, int] | None = None,
) -> CohortManifest:
    """The manifest of a cohort written under `folder`; the same arguments give the same bytes, however many workers.

    Writes `volumes/<patient>/<study>/_<series>.nii.gz`, the masks under `masks/` with the same names, the series CSV
    with paths relative to the folder, and `phantom_cohort.json`.

    Args:
        folder: Made if it is not there.
        n_patients: Patients; about a fifth have two studies.
        seed: Decides everything.
        workers: Volumes made at a time.
        on_progress: Called with 1 after each volume, in order.
        shape: (slices, rows, columns) of every volume; drawn for each unless given.

    Raises:
        UsageError: fewer than one patient or worker, or a negative seed.
        StorageError: the folder cannot be written.
    """
    if workers < 1:
        raise UsageError(f"phantom workers {workers}: expected at least 1")
    folder = Path(folder)
    cohort = draw_cohort(n_patients, seed, shape=shape)
    records = []
    for record in _write_all(folder, [(patient, study) for patient in cohort for study in patient.studies], workers):
        records.append(record)
        if on_progress is not None:
            on_progress(1)
    manifest = CohortManifest(folder, folder / CSV_NAME, folder / JSON_NAME, n_patients, seed, tuple(records))
    write_text(manifest.csv_path, _csv_text(manifest.series))
    write_json(manifest.json_path, _document(manifest))
    return manifest


def _write_all(folder: Path, jobs: list[tuple[PatientSpec, StudySpec]], workers: int) -> Iterator[SeriesRecord]:
    # threads, for NumPy and zlib work outside the interpreter lock, and nothing has to be started or pickled
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(lambda job: _write_series(folder, *job), jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or an interrupt does not wait for the rest


def _write_series(folder: Path, patient: PatientSpec, study: StudySpec) -> SeriesRecord:
    name = f"{patient.patient_id}/{study.study_uid}/_{study.series_uid}.nii.gz"
    phantom = make_phantom(study.spec)
    write_bytes(folder / "volumes" / name, nifti_bytes(phantom.hu, phantom.affine))
    write_bytes(folder / "masks" / name, nifti_bytes(phantom.mask, phantom.affine))
    spec = study.spec
    return SeriesRecord(
        nifti_path=f"volumes/{name}",
        mask_path=f"masks/{name}",
        patient_id=patient.patient_id,
        study_uid=study.study_uid,
        series_uid=study.series_uid,
        labels=phantom.labels,
        lesion_volumes_ml={label: round(volume, 4) for label, volume in phantom.lesion_volumes_ml.items()},
        lesions=tuple(asdict(lesion) for lesion in spec.lesions),
        seed=spec.seed,
        head_seed=spec.head.seed,
        shape=spec.shape,
        spacing_mm=spec.spacing_mm,
        tilt_degrees=spec.tilt_degrees,
        noise_hu=spec.noise_hu,
    )


def _csv_text(series: tuple[SeriesRecord, ...]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["nifti_path", "patient_id", "study_uid", "series_uid", *LABELS])
    for record in series:
        labels = [record.labels[label] for label in LABELS]
        writer.writerow([record.nifti_path, record.patient_id, record.study_uid, record.series_uid, *labels])
    return buffer.getvalue()


def _document(manifest: CohortManifest) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "synthetic": "invented heads; no patient's data",
        "seed": manifest.seed,
        "n_patients": manifest.n_patients,
        "n_series": len(manifest.series),
        "labels": list(LABELS),
        "mask_values": {label: index for index, label in enumerate(LABELS) if index > 0},
        "series": [asdict(record) for record in manifest.series],
    }
