"""A cohort on disk: volumes, masks, one series CSV and what is known about each series."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom.cohort import PatientSpec, StudySpec, draw_cohort
from meddinov3_stroke.phantom.head import Phantom, make_phantom
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_text
from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import LABELS

CSV_NAME = "phantom_series_labels.csv"
"""The one CSV at the top of the folder."""
JSON_NAME = "phantom_cohort.json"
"""Ground truth beyond the labels: volumes, sites, geometry."""
SCHEMA_VERSION = 1
"""Of `phantom_cohort.json`."""
VolumeFormat = Literal["nifti", "dicom"]
"""A .nii.gz file or a DICOM folder for each series."""


@dataclass(frozen=True)
class SeriesRecord:
    """What is known about one series."""

    nifti_path: str | None
    """Relative to the folder; None in a DICOM cohort."""
    dicom_path: str | None
    """Folder of the series, relative to the cohort's; None in a NIfTI cohort."""
    mask_path: str
    patient_id: str
    study_uid: str
    """In a DICOM cohort, as in `series_uid`, the UID that the images carry."""
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
    volume_format: VolumeFormat = "nifti"


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
    the folder of a series, the CSV's paths are in a column `dicom_path`, and the masks stay NIfTI.

    Args:
        folder: Made if it is not there.
        n_patients: Patients; about a fifth have two studies.
        seed: Decides everything.
        workers: Volumes made at a time.
        on_progress: Called with 1 after each volume, in order.
        shape: (slices, rows, columns) of every volume; drawn for each unless given.
        volume_format: How the volumes are written.

    Raises:
        UsageError: fewer than one patient or worker, or a negative seed.
        StorageError: the folder cannot be written.
    """
    if workers < 1:
        raise UsageError(f"phantom workers {workers}: expected at least 1")
    folder = Path(folder)
    cohort = draw_cohort(n_patients, seed, shape=shape)
    records = []
    jobs = [(patient, study, volume_format) for patient in cohort for study in patient.studies]
    for record in _write_all(folder, jobs, workers):
        records.append(record)
        if on_progress is not None:
            on_progress(1)
    paths = (folder, folder / CSV_NAME, folder / JSON_NAME)
    manifest = CohortManifest(*paths, n_patients, seed, tuple(records), volume_format)
    write_text(manifest.csv_path, _csv_text(manifest))
    write_json(manifest.json_path, _document(manifest))
    return manifest


def _write_all(
    folder: Path, jobs: list[tuple[PatientSpec, StudySpec, VolumeFormat]], workers: int
) -> Iterator[SeriesRecord]:
    # threads, for NumPy and zlib work outside the interpreter lock, and nothing has to be started or pickled
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(lambda job: _write_series(folder, *job), jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or an interrupt does not wait for the rest


def _write_series(folder: Path, patient: PatientSpec, study: StudySpec, volume_format: VolumeFormat) -> SeriesRecord:
    name = f"{patient.patient_id}/{study.study_uid}/_{study.series_uid}"
    phantom = make_phantom(study.spec)
    write_bytes(folder / "masks" / f"{name}.nii.gz", nifti_bytes(phantom.mask, phantom.affine))
    if volume_format == "nifti":
        nifti_path, dicom_path = f"volumes/{name}.nii.gz", None
        study_uid, series_uid = study.study_uid, study.series_uid
        write_bytes(folder / nifti_path, nifti_bytes(phantom.hu, phantom.affine))
    else:
        from meddinov3_stroke.phantom.dicom import write_series

        nifti_path, dicom_path = None, f"volumes/{name}"
        study_uid, series_uid = write_series(folder / dicom_path, phantom, patient.patient_id)
    return SeriesRecord(
        nifti_path=nifti_path,
        dicom_path=dicom_path,
        mask_path=f"masks/{name}.nii.gz",
        patient_id=patient.patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        **_what_is_shown(phantom),
    )


def _what_is_shown(phantom: Phantom) -> dict[str, Any]:
    spec = phantom.spec
    return {
        "labels": phantom.labels,
        "lesion_volumes_ml": {label: round(volume, 4) for label, volume in phantom.lesion_volumes_ml.items()},
        "lesions": tuple(asdict(lesion) for lesion in spec.lesions),
        "seed": spec.seed,
        "head_seed": spec.head.seed,
        "shape": spec.shape,
        "spacing_mm": spec.spacing_mm,
        "tilt_degrees": spec.tilt_degrees,
        "noise_hu": spec.noise_hu,
    }


def _csv_text(manifest: CohortManifest) -> str:
    path_column = f"{manifest.volume_format}_path"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([path_column, "patient_id", "study_uid", "series_uid", *LABELS])
    for record in manifest.series:
        labels = [record.labels[label] for label in LABELS]
        path = record.nifti_path if manifest.volume_format == "nifti" else record.dicom_path
        writer.writerow([path, record.patient_id, record.study_uid, record.series_uid, *labels])
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
