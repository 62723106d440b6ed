"""A cohort of invented patients on disk: volumes, masks, one series CSV and what is known about each series."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.phantom.head import Phantom, make_phantom
from meddinov3_stroke.phantom.spec import Shape, StudySpec, draw_cohort
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_text
from meddinov3_stroke.system.nifti_bytes import nifti_bytes
from meddinov3_stroke.types import LABELS

SCHEMA_VERSION = 1  # of `phantom_cohort.json`
INTERCEPT_HU = -1024
EMPTY_KEYWORDS = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Attributes that a CT image must have and that may be empty (DICOM PS3.3 A.3)."""


class CohortManifest(NamedTuple):
    """A cohort that was written."""

    folder: Path
    csv_path: Path
    json_path: Path
    series: tuple[dict[str, Any], ...]  # what is known about each, as `phantom_cohort.json` has it


def write_cohort(
    folder: Path,
    n_patients: int,
    seed: int,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
    shape: Shape | None = None,
    volume_format: Literal["nifti", "dicom"] = "nifti",
) -> CohortManifest:
    """The manifest of a cohort written under `folder`; the same arguments give the same bytes, however many workers.

    Writes `volumes/<patient>/<study>/_<series>.nii.gz` (as DICOM, a folder `_<series>/`), NIfTI masks under `masks/`
    with the same names, `phantom_cohort.json` and the series CSV, whose column `nifti_path` or `dicom_path` is relative
    to the folder. `on_progress` is called with 1 after each volume; `shape` is drawn for each volume unless given.
    Raises UsageError (fewer than one patient or worker, or a negative seed) or StorageError.
    """
    if workers < 1:
        raise UsageError(f"phantom workers {workers}: expected at least 1")
    cohort = draw_cohort(n_patients, seed, shape=shape)
    jobs = [(patient.patient_id, study) for patient in cohort for study in patient.studies]
    series = []
    pool = ThreadPoolExecutor(max_workers=workers)  # NumPy and zlib work outside the interpreter lock
    try:
        for record in pool.map(lambda job: _write_study(folder, job[0], job[1], volume_format), jobs):
            series.append(record)
            if on_progress is not None:
                on_progress(1)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or an interrupt does not wait for the rest
    columns = [f"{volume_format}_path", "patient_id", "study_uid", "series_uid", *LABELS]
    table = csv.DictWriter(text := io.StringIO(), columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(row | row["labels"] for row in series)
    write_text(csv_path := folder / "phantom_series_labels.csv", text.getvalue())
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
    write_json(json_path := folder / "phantom_cohort.json", document)
    return CohortManifest(folder, csv_path, json_path, tuple(series))


def _write_study(folder: Path, patient_id: str, study: StudySpec, volume_format: str) -> dict[str, Any]:
    name, spec = f"{patient_id}/{study.study_uid}/_{study.series_uid}", study.spec
    phantom, uids = make_phantom(spec), (study.study_uid, study.series_uid)
    paths = {"nifti_path": f"volumes/{name}.nii.gz", "dicom_path": f"volumes/{name}"}
    write_bytes(folder / "masks" / f"{name}.nii.gz", nifti_bytes(phantom.mask, phantom.affine))
    if volume_format == "nifti":
        write_bytes(folder / paths["nifti_path"], nifti_bytes(phantom.hu, phantom.affine))
    else:
        uids = write_series(folder / paths["dicom_path"], phantom, patient_id)
    return {
        **{key: path if key.startswith(volume_format) else None for key, path in paths.items()},
        "mask_path": f"masks/{name}.nii.gz",
        "patient_id": patient_id,
        "study_uid": uids[0],
        "series_uid": uids[1],
        "labels": phantom.labels,
        "lesion_volumes_ml": {label: round(volume, 4) for label, volume in phantom.lesion_volumes_ml.items()},
        "lesions": [asdict(lesion) for lesion in spec.lesions],
        "seed": spec.seed,
        "head_seed": spec.head.seed,
        **{key: getattr(spec, key) for key in ("shape", "spacing_mm", "tilt_degrees", "noise_hu")},
    }


def write_series(folder: Path, phantom: Phantom, patient_id: str) -> tuple[str, str]:
    """(Study UID, Series UID) of the series written into `folder`: IM0001.dcm, IM0002.dcm, ... from inferior up.

    The images are uncompressed axial CT, one for each slice; the same phantom gives the same bytes. The slices lie
    where its affine puts them: a tilted phantom is a head tilted in a straight gantry. Raises StorageError.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    seed, to_lps = phantom.spec.seed, np.array([-1.0, -1.0, 1.0])  # DICOM's axes point left and posterior
    steps = phantom.affine[:3, :3] * to_lps[:, None]
    slice_mm, row_mm, column_mm = np.linalg.norm(steps, axis=0)
    image, meta = Dataset(), FileMetaDataset()
    for keyword in EMPTY_KEYWORDS:
        setattr(image, keyword, "")
    image.SOPClassUID, image.Modality, image.PatientID = CTImageStorage, "CT", patient_id
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(seed, "study"), _uid(seed, "series", "2")
    image.FrameOfReferenceUID, image.PatientPosition = _uid(seed, "frame of reference"), "HFS"
    image.Manufacturer, image.ManufacturerModelName = "Phantom", "Synthetic head"
    image.SeriesNumber, image.SeriesDescription, image.AcquisitionNumber = 2, "Head 5.0 H30s", 1
    image.BodyPartExamined, image.ConvolutionKernel, image.KVP = "HEAD", "H30s", "120"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SliceThickness, image.GantryDetectorTilt = f"{round(float(slice_mm), 3):.10g}", "0"
    image.ImageOrientationPatient = _decimals(*steps[:, 2] / column_mm, *steps[:, 1] / row_mm)
    image.PixelSpacing = _decimals(row_mm, column_mm)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = phantom.hu.shape[1:]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = "1", str(INTERCEPT_HU), "HU"
    image.WindowCenter, image.WindowWidth = "40", "80"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # fixed, so that the bytes do not change with a library's version
    meta.ImplementationClassUID = UID("2.25.81340557349421087152203618290563771")
    meta.ImplementationVersionName = "PHANTOM"
    image.file_meta = meta
    for index, hu in enumerate(phantom.hu):
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(_uid(seed, "2", f"slice {index}"))
        image.InstanceNumber = index + 1
        position = _decimals(*np.round(phantom.affine[:3, 3] * to_lps + index * steps[:, 0], 6))
        image.ImagePositionPatient, image.SliceLocation = position, position[2]
        image.add_new("PixelData", "OW", (hu - np.int16(INTERCEPT_HU)).astype("<i2").tobytes())
        dcmwrite(buffer := io.BytesIO(), image, enforce_file_format=True)
        write_bytes(folder / f"IM{index + 1:04d}.dcm", buffer.getvalue())
    return str(image.StudyInstanceUID), str(image.SeriesInstanceUID)


def _decimals(*values: float) -> list[str]:
    # DICOM decimal strings hold at most 16 characters
    return [f"{round(float(value), 12):.10g}" for value in values]


def _uid(seed: int, *words: str) -> str:
    digest = hashlib.blake2s("\0".join(("phantom DICOM", str(seed), *words)).encode(), digest_size=16)
    return f"2.25.{int(digest.hexdigest(), 16)}"
