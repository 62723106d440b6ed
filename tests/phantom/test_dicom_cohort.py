"""A cohort whose volumes are DICOM."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from meddinov3_stroke.phantom import CohortManifest, write_cohort
from meddinov3_stroke.types import LABELS

TINY = (7, 32, 32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> CohortManifest:
    return write_cohort(tmp_path_factory.mktemp("cohort"), 10, 42, shape=TINY, volume_format="dicom", workers=2)


@pytest.fixture(scope="module")
def rows(manifest: CohortManifest) -> list[dict[str, str]]:
    with manifest.csv_path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_csv_has_a_dicom_path_in_place_of_a_nifti_path(rows) -> None:
    assert list(rows[0]) == ["dicom_path", "patient_id", "study_uid", "series_uid", *LABELS]


def test_each_path_is_the_folder_of_one_series_with_the_uids_of_its_row(manifest: CohortManifest, rows) -> None:
    for row in rows:
        datasets = [pydicom.dcmread(path) for path in sorted((manifest.folder / row["dicom_path"]).iterdir())]
        assert len(datasets) == TINY[0]
        assert {dataset.SeriesInstanceUID for dataset in datasets} == {row["series_uid"]}
        assert {dataset.StudyInstanceUID for dataset in datasets} == {row["study_uid"]}
        assert {dataset.PatientID for dataset in datasets} == {row["patient_id"]}


def test_studies_and_series_are_all_different(rows) -> None:
    assert len({row["study_uid"] for row in rows}) == len({row["series_uid"] for row in rows}) == len(rows)
    assert len({row["patient_id"] for row in rows}) < len(rows)


def test_the_same_seed_gives_the_same_heads_and_labels_in_either_format(
    manifest: CohortManifest, tmp_path: Path
) -> None:
    nifti = write_cohort(tmp_path, 10, 42, shape=TINY)
    for one, other in zip(nifti.series, manifest.series, strict=True):
        for known in ("labels", "patient_id", "mask_path"):
            assert one[known] == other[known]
        voxels = np.asarray(nib.load(tmp_path / one["nifti_path"]).dataobj)  # L A S
        files = sorted((manifest.folder / other["dicom_path"]).iterdir())
        read = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))[0] for file in files]
        np.testing.assert_array_equal(np.stack(read), voxels.transpose(2, 1, 0)[:, ::-1])


def test_masks_stay_nifti(manifest: CohortManifest) -> None:
    for record in manifest.series:
        assert record["nifti_path"] is None
        assert nib.load(manifest.folder / record["mask_path"]).shape == TINY[::-1]
