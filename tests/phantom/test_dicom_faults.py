"""Each fault of a DICOM series is in the files and in the truth that the writer returns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series

GEOMETRY = axial_geometry([5.0] * 5, (20, 24), tilt_degrees=18)
HU = np.random.default_rng(0).integers(-1000, 2500, (6, 20, 24))
RSNA_ATTRIBUTES = {
    *("SOPInstanceUID", "Modality", "PatientID", "StudyID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "Rows", "Columns"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth"),
}


def series(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, HU, GEOMETRY, DicomOptions(**{"seed": 4, **options}))


def read(path: Path) -> Dataset:
    """The data set, whose values are read while pydicom's warnings of RSNA's UIDs are off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        list(dataset)
        return dataset


def datasets(truth: DicomSeriesTruth) -> list[Dataset]:
    return [read(truth.folder / image.file) for image in truth.images]


def test_missing_slices_are_missing(tmp_path: Path) -> None:
    truth = series(tmp_path, missing_slices=(2, 3))
    assert [image.slice_index for image in truth.used] == [0, 1, 4, 5]
    assert sorted(float(dataset.ImagePositionPatient[2]) for dataset in datasets(truth)) == sorted(
        GEOMETRY.positions_mm[[0, 1, 4, 5], 2]
    )


def test_copied_file_is_the_same_bytes_under_another_name(tmp_path: Path) -> None:
    truth = series(tmp_path, copied_slices=(2,), names="shuffled")
    first, second = [image for image in truth.images if image.slice_index == 2]
    assert first.file != second.file
    assert first.sop_instance_uid == second.sop_instance_uid
    assert (first.role, second.role, second.faults) == ("used", "duplicate", ("copied file",))
    with_own_number = [read(tmp_path / image.file) for image in (first, second)]
    for dataset in with_own_number:
        del dataset.InstanceNumber
    assert with_own_number[0] == with_own_number[1]


def test_repeated_slice_has_position_and_pixels_and_a_uid_of_its_own(tmp_path: Path) -> None:
    truth = series(tmp_path, repeated_slices=(2,))
    first, second = [read(tmp_path / image.file) for image in truth.images if image.slice_index == 2]
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.PixelData == second.PixelData
    assert first.ImagePositionPatient == second.ImagePositionPatient
    assert [image.role for image in truth.images if image.slice_index == 2] == ["used", "duplicate"]


def test_coronal_images_share_the_series_and_lie_at_right_angles(tmp_path: Path) -> None:
    truth = series(tmp_path, n_coronal=2)
    images = [image for image in truth.images if image.faults == ("another orientation",)]
    assert len(images) == 2
    for image in images:
        dataset = read(tmp_path / image.file)
        directions = np.array(dataset.ImageOrientationPatient, dtype=float)
        assert abs(np.cross(directions[:3], directions[3:]) @ GEOMETRY.normal) < 1e-9
        assert dataset.SeriesInstanceUID == truth.identity.series_uid
        assert image.role == "set aside"


def test_localizer_has_the_series_uid_and_another_plane(tmp_path: Path) -> None:
    truth = series(tmp_path, companions=("localizer",))
    localizer = read(tmp_path / truth.images[-1].file)
    assert localizer.SeriesInstanceUID == truth.identity.series_uid
    assert list(localizer.ImageType) == ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert (localizer.Rows, localizer.Columns) != (20, 24)
    assert truth.images[-1].role == "set aside"


def test_captures_and_reports_are_what_they_say_in_series_of_their_own(tmp_path: Path) -> None:
    truth = series(tmp_path, companions=("secondary_capture", "rgb_summary", "dose_report"))
    capture, summary, report = [read(tmp_path / image.file) for image in truth.images[-3:]]
    assert capture.SOPClassUID.name == "Secondary Capture Image Storage"
    assert (summary.PhotometricInterpretation, summary.pixel_array.shape) == ("RGB", (48, 64, 3))
    assert report.SOPClassUID.name == "X-Ray Radiation Dose SR Storage"
    assert "PixelData" not in report
    assert {dataset.StudyInstanceUID for dataset in (capture, summary, report)} == {truth.identity.study_uid}
    assert len({truth.identity.series_uid, *(d.SeriesInstanceUID for d in (capture, summary, report))}) == 4


def test_clutter_has_a_media_directory_and_files_that_are_not_dicom(tmp_path: Path) -> None:
    truth = series(tmp_path, companions=("clutter",))
    assert read(tmp_path / "DICOMDIR").file_meta.MediaStorageSOPClassUID.name == "Media Storage Directory Storage"
    assert {"README.TXT", ".DS_Store", "LOCKFILE"} <= {path.name for path in tmp_path.iterdir()}
    assert all(image.role == "set aside" for image in truth.images if image.faults == ("clutter",))


def test_stripped_headers_hold_what_rsna_kept_and_no_more(tmp_path: Path) -> None:
    for image in series(tmp_path, header="stripped", names="sop_uid").images:
        dataset = read(tmp_path / image.file)
        assert {element.keyword for element in dataset} == RSNA_ATTRIBUTES
        assert len(image.sop_instance_uid) == 13
        assert image.sop_instance_uid.startswith("ID_")
        assert image.file == f"{image.sop_instance_uid}.dcm"


@pytest.mark.parametrize("numbers", ["shuffled", "constant", "absent"])
def test_instance_numbers_do_not_give_the_order(tmp_path: Path, numbers: str) -> None:
    truth = series(tmp_path, instance_numbers=numbers)
    found = [dataset.get("InstanceNumber") for dataset in datasets(truth)]
    assert found != sorted(found) if numbers == "shuffled" else len(set(found)) == 1


def test_shuffled_names_are_in_another_order_than_the_slices(tmp_path: Path) -> None:
    files = [image.file for image in series(tmp_path, names="shuffled").images]
    assert files != sorted(files)
    assert len(set(files)) == 6


def test_wrapped_values_come_right_by_the_published_repair(tmp_path: Path) -> None:
    """FACTS 3: add 1000, subtract 4096 from values of 4096 and more, intercept -1000."""
    truth = series(tmp_path, pixels="wrapped12")
    for image in truth.images:
        dataset = read(tmp_path / image.file)
        assert (dataset.BitsStored, dataset.PixelRepresentation, dataset.RescaleIntercept) == (12, 0, 0)
        values = dataset.pixel_array.astype(int) + 1000
        values[values >= 4096] -= 4096
        np.testing.assert_array_equal(values - 1000, image.hu)
        assert image.faults == ("wrapped values",)


def test_wrapped_values_are_wrong_without_the_repair(tmp_path: Path) -> None:
    truth = series(tmp_path, pixels="wrapped12")
    stored = read(tmp_path / truth.images[0].file).pixel_array
    assert (stored != truth.images[0].hu).mean() > 0.2
    assert stored.max() < 4096


@pytest.mark.parametrize("value", [-476, -976, -2000])
def test_padding_fills_the_corners_and_reads_as_air(tmp_path: Path, value: int) -> None:
    truth = series(tmp_path, padding_value=value)
    dataset = read(tmp_path / truth.images[0].file)
    assert dataset.PixelPaddingValue == value
    corners = np.ix_([0, -1], [0, -1])
    assert (dataset.pixel_array[corners] == value).all()
    assert (truth.hu[0][corners] == -1000).all()
    assert (truth.hu[0][8:12, 10:14] == HU[0, 8:12, 10:14]).all()


def test_declared_padding_reads_as_air_whatever_its_hu(tmp_path: Path) -> None:
    declared = series(tmp_path / "declared", pixels="unsigned12", padding_value=0)
    undeclared = series(tmp_path / "undeclared", pixels="unsigned12", padding_value=0, is_padding_declared=False)
    assert declared.hu[0, 0, 0] == -1000
    assert undeclared.hu[0, 0, 0] == -1024
    assert "PixelPaddingValue" not in read(undeclared.folder / undeclared.images[0].file)


def test_padding_range_holds_both_of_its_ends(tmp_path: Path) -> None:
    truth = series(tmp_path, padding_value=-2000, padding_limit=-1500)
    dataset = read(tmp_path / truth.images[0].file)
    assert (dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit) == (-2000, -1500)
    assert {-2000, -1500} <= set(dataset.pixel_array.ravel().tolist())


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    truth = series(tmp_path, rescale="per_slice", pixels="unsigned12")
    pairs = {(float(dataset.RescaleSlope), float(dataset.RescaleIntercept)) for dataset in datasets(truth)}
    assert len(pairs) > 2
    assert np.abs(truth.hu - HU).max() <= 1


def test_modality_lut_gives_the_truth_and_the_bare_values_do_not(tmp_path: Path) -> None:
    truth = series(tmp_path, rescale="lut", pixels="unsigned12")
    for image, dataset in zip(truth.images, datasets(truth), strict=True):
        assert "RescaleSlope" not in dataset
        np.testing.assert_array_equal(apply_modality_lut(dataset.pixel_array, dataset), image.hu)
        assert np.abs(dataset.pixel_array - image.hu).mean() > 500
    np.testing.assert_array_equal(truth.hu, np.maximum(HU, 0))
