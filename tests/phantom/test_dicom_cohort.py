"""A cohort whose volumes are DICOM."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from meddinov3_stroke.phantom import CohortManifest, draw_spec, make_phantom, write_cohort
from meddinov3_stroke.phantom.writing import write_series
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


def test_slices_lie_where_the_affine_of_the_phantom_puts_them(tmp_path: Path) -> None:
    phantom = make_phantom(draw_spec(3, ["epidural"], volumes_ml=[9.0], shape=(6, 40, 48), tilt_degrees=13))
    write_series(tmp_path, phantom, "PH_1")
    for index, file in enumerate(sorted(tmp_path.iterdir())):
        read = SimpleITK.ReadImage(str(file))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(read)[0], phantom.hu[index])
        for row, column in ((0, 0), (39, 0), (5, 47)):
            left, posterior, superior = read.TransformIndexToPhysicalPoint((column, row, 0))
            expected = (phantom.affine @ [index, row, column, 1])[:3]
            np.testing.assert_allclose([-left, -posterior, superior], expected, atol=1e-4)


def test_files_are_plain_ct_images_that_name_no_patient_time_or_library(tmp_path: Path) -> None:
    write_series(tmp_path, make_phantom(draw_spec(3, [], shape=TINY)), "PH_1")
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        meta = dataset.file_meta
        assert meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
        assert dataset.SOPClassUID.name == "CT Image Storage"
        assert (meta.MediaStorageSOPInstanceUID, meta.ImplementationVersionName) == (dataset.SOPInstanceUID, "PHANTOM")
        uids = [str(element.value) for element in dataset if element.VR == "UI"]
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids)
        filled = {element.keyword for element in dataset.group_dataset(0x0010) if not element.is_empty}
        assert filled == {"PatientID"}
        assert not dataset.StudyDate


def test_the_same_phantom_gives_the_same_dicom_bytes(tmp_path: Path) -> None:
    phantom = make_phantom(draw_spec(3, [], shape=TINY))
    for folder in ("one", "two"):
        write_series(tmp_path / folder, phantom, "PH_1")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
