"""DICOM series of phantoms, read back by independent readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from dicom_writer import (
    DicomOptions,
    DicomSeriesTruth,
    SliceGeometry,
    axial_geometry,
    geometry_of_affine,
    sample_hu,
    write_dicom_phantom,
    write_dicom_series,
)
from dicom_writer.geometry import as_written, decimal_string, nearest_hu
from meddinov3_stroke.errors import StorageError, UsageError
from meddinov3_stroke.phantom import draw_spec, make_phantom

SMALL = (20, 24)
degrees = st.floats(-30, 30)


def ramp(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Another value at every voxel, all within 12 bits."""
    return 3 * x - 2 * y + 5 * z + 100


def series(folder: Path, geometry: SliceGeometry | None = None, **options: Any) -> DicomSeriesTruth:
    geometry = geometry or axial_geometry([5, 5, 2.5, 2.5, 5], SMALL, tilt_degrees=18)
    return write_dicom_series(folder, sample_hu(ramp, geometry), geometry, DicomOptions(**{"seed": 1, **options}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("is_turned", [False, True], ids=["upright", "turned"])
@pytest.mark.parametrize("tilt_degrees", [0, 18, -18])
def test_simpleitk_finds_in_every_file_the_formula_at_the_place_it_reads(
    tmp_path: Path, tilt_degrees: int, is_turned: bool
) -> None:
    geometry = axial_geometry([5, 2.5, 5], SMALL, tilt_degrees=tilt_degrees, is_turned=is_turned, centre_mm=(9, -4, 31))
    for image in series(tmp_path, geometry).images:
        read = SimpleITK.ReadImage(str(tmp_path / image.file))
        for column, row in ((0, 0), (23, 0), (0, 19), (11, 7)):
            left, posterior, superior = read.TransformIndexToPhysicalPoint((column, row, 0))
            assert read[column, row, 0] == pytest.approx(ramp(-left, -posterior, superior), abs=0.5 + 1e-3)


def test_truth_has_the_hu_and_positions_that_simpleitk_reads(tmp_path: Path) -> None:
    for image in series(tmp_path, rescale="per_slice").images:
        read = SimpleITK.ReadImage(str(tmp_path / image.file))
        np.testing.assert_allclose(SimpleITK.GetArrayFromImage(read)[0], image.hu, atol=1e-4)
        np.testing.assert_array_equal(read.GetOrigin(), image.plane.position_mm)


@given(tilt_degrees=degrees, centre=st.tuples(degrees, degrees, degrees), pixel_mm=st.floats(0.3, 2))
def test_every_number_of_a_geometry_survives_its_decimal_string(tilt_degrees, centre, pixel_mm) -> None:
    geometry = axial_geometry([2.5, 5], SMALL, tilt_degrees=tilt_degrees, centre_mm=centre)
    numbers = [*geometry.positions_mm.ravel(), *geometry.row_direction, *geometry.column_direction]
    assert all(float(decimal_string(number)) == number for number in numbers)
    assert all(len(decimal_string(number)) <= 16 for number in [*numbers, pixel_mm])


@given(tilt_degrees=degrees, is_turned=st.booleans())
def test_slices_follow_the_couch_and_lean_by_the_tilt(tilt_degrees: float, is_turned: bool) -> None:
    geometry = axial_geometry([2.5, 5], SMALL, tilt_degrees=tilt_degrees, is_turned=is_turned)
    np.testing.assert_allclose(np.diff(geometry.positions_mm, axis=0), [[0, 0, 2.5], [0, 0, 5]], atol=2e-6)
    assert abs(geometry.normal[2]) == pytest.approx(np.cos(np.radians(tilt_degrees)), abs=1e-9)
    assert geometry.gantry_tilt_degrees == pytest.approx(tilt_degrees, abs=1e-4)


def test_positive_tilt_raises_the_front() -> None:
    upright, turned = (axial_geometry([5], SMALL, tilt_degrees=10, is_turned=is_turned) for is_turned in (False, True))
    for plane in (upright.plane(0).voxel_positions_mm, turned.plane(0).voxel_positions_mm):
        front = plane.reshape(-1, 3)[plane[..., 1].argmin()]
        assert front[2] == plane[..., 2].max()


def test_head_phantom_lies_where_its_affine_puts_it(tmp_path: Path) -> None:
    phantom = make_phantom(draw_spec(3, ["epidural"], volumes_ml=[9.0], shape=(6, 40, 48), tilt_degrees=13))
    truth = write_dicom_phantom(tmp_path, phantom)
    for index, image in enumerate(truth.used):
        read = SimpleITK.ReadImage(str(tmp_path / image.file))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(read)[0], phantom.hu[index])
        for row, column in ((0, 0), (39, 0), (5, 47)):
            left, posterior, superior = read.TransformIndexToPhysicalPoint((column, row, 0))
            expected = (phantom.affine @ [index, row, column, 1])[:3]
            np.testing.assert_allclose([-left, -posterior, superior], expected, atol=1e-4)


def test_head_tilted_in_a_straight_gantry_has_no_gantry_tilt(tmp_path: Path) -> None:
    phantom = make_phantom(draw_spec(3, [], shape=(5, 24, 24), tilt_degrees=13))
    geometry = geometry_of_affine(phantom.affine, (5, 24, 24))
    assert geometry.gantry_tilt_degrees == pytest.approx(0, abs=1e-3)


def test_nearest_voxel_of_a_voxel_centre_is_that_voxel() -> None:
    geometry = axial_geometry([5, 2.5], SMALL, tilt_degrees=18, is_turned=True)
    hu = np.arange(3 * 20 * 24).reshape(3, 20, 24)
    for index in range(3):
        np.testing.assert_array_equal(nearest_hu(hu, geometry, geometry.plane(index).voxel_positions_mm), hu[index])


@pytest.mark.parametrize("layout", ["single", "enhanced", "legacy"])
def test_same_options_give_the_same_bytes(tmp_path: Path, layout: str) -> None:
    everything = {"layout": layout, "names": "shuffled", "n_coronal": 2, "companions": ("localizer", "clutter")}
    series(tmp_path / "one", **everything)
    series(tmp_path / "two", **everything)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_seed_gives_other_uids_and_the_same_slices(tmp_path: Path) -> None:
    one, two = series(tmp_path / "one"), series(tmp_path / "two", seed=2)
    uids = [{image.sop_instance_uid for image in truth.images} for truth in (one, two)]
    assert not uids[0] & uids[1]
    assert one.identity.study_uid != two.identity.study_uid
    np.testing.assert_array_equal(one.hu, two.hu)


def test_series_that_share_a_study_seed_are_one_study_of_one_patient(tmp_path: Path) -> None:
    one = series(tmp_path / "one", study_seed=7).identity
    two = series(tmp_path / "two", study_seed=7, seed=2, series_number=3).identity
    assert (one.study_uid, one.patient_id) == (two.study_uid, two.patient_id)
    assert one.series_uid != two.series_uid


def test_uids_have_the_form_of_dicom(tmp_path: Path) -> None:
    truth = series(tmp_path, companions=("localizer", "dose_report"))
    uids = [truth.identity.study_uid, truth.identity.series_uid, *(image.sop_instance_uid for image in truth.images)]
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


def test_no_patient_attribute_but_an_invented_id_is_filled(tmp_path: Path) -> None:
    truth = series(tmp_path, companions=("localizer", "secondary_capture", "rgb_summary", "dose_report"))
    for image in truth.images:
        dataset = pydicom.dcmread(tmp_path / image.file)
        filled = {element.keyword for element in dataset.group_dataset(0x0010) if not element.is_empty}
        assert filled <= {"PatientID"}
        assert dataset.PatientID.startswith("PH_")
        assert not dataset.get("StudyDate")


def test_truth_lists_every_file_of_the_folder(tmp_path: Path) -> None:
    truth = series(tmp_path, copied_slices=(1,), n_coronal=2, companions=("localizer", "rgb_summary", "clutter"))
    assert {image.file for image in truth.images} == {path.name for path in tmp_path.iterdir()}


def test_help_needs_no_pydicom_and_dicom_phantoms_no_highdicom() -> None:
    probe = (
        "import sys; from meddinov3_stroke.commands import phantom; assert 'pydicom' not in sys.modules;"
        "import meddinov3_stroke.phantom; assert 'pydicom' not in sys.modules;"
        "import pathlib, tempfile; from meddinov3_stroke.phantom import write_cohort; folder = tempfile.mkdtemp();"
        "write_cohort(pathlib.Path(folder), 1, 0, shape=(2, 16, 16), volume_format='dicom');"
        "assert 'pydicom' in sys.modules and 'highdicom' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


def test_as_written_keeps_shape_and_ten_digits() -> None:
    values = np.array([[1 / 3, 1e-20], [-123.4567891234, 5.0]])
    np.testing.assert_allclose(as_written(values), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer_syntax": "jpeg"}, "expected one of implicit"),
        ({"container": "bare", "transfer_syntax": "rle"}, "names no transfer syntax"),
        ({"layout": "enhanced", "header": "stripped"}, "full header"),
        ({"rescale": "lut"}, "12-bit unsigned"),
        ({"layout": "legacy", "rescale": "lut", "pixels": "unsigned12"}, "no modality LUT"),
        ({"pixels": "wrapped12", "padding_value": 0}, "no padding"),
        ({"pixels": "unsigned12", "padding_value": -2000}, "0 to 4095"),
        ({"padding_limit": -2000}, "needs a padding value"),
        ({"slope": 0.0}, "not 0"),
        ({"seed": -1}, "from 0"),
        ({"transfer_syntax": "jpeg_2000"}, "at least 32"),
        ({"missing_slices": (6,)}, "expected 0 to 5"),
        ({"missing_slices": tuple(range(6))}, "all 6 slices"),
    ],
)
def test_options_that_no_series_can_have_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        series(tmp_path, **options)


def test_voxels_that_do_not_match_their_geometry_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected \(2, 20, 24\)"):
        write_dicom_series(tmp_path, np.zeros((3, 20, 24)), axial_geometry([5], SMALL))


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        series(tmp_path / "file")
