"""A volume as NIfTI: nothing is lost, and what NIfTI cannot store is written beside it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.writing import misplaced_mm, nifti_bytes_of, resample, slices_document
from meddinov3_stroke.system.nifti_bytes import nifti_bytes

HU = np.random.default_rng(0).integers(-1000, 2500, (6, 9, 11))
CODES = ["LAS", "RAS", "LPS", "RPI", "SAL", "PIR", "ASL", "ILP"]
EVERY_CODE = ["".join(sides) for axes in permutations(("LR", "AP", "SI")) for sides in product(*axes)]


@pytest.fixture
def tilted(tmp_path: Path) -> Path:
    """A tilted even series."""
    write_dicom_series(
        tmp_path / "tilted", HU, axial_geometry([5.0] * 5, (9, 11), tilt_degrees=15, centre_mm=(4, -9, 20))
    )
    return tmp_path / "tilted"


@pytest.mark.parametrize("codes", CODES)
def test_every_voxel_keeps_its_value_and_place_in_any_orientation(tilted: Path, tmp_path: Path, codes: str) -> None:
    volume = read_volume(tilted)
    path = tmp_path / "case.nii.gz"
    path.write_bytes(nifti_bytes_of(volume, codes))
    image = nib.load(path)
    assert "".join(nib.aff2axcodes(image.affine)) == codes
    from_nifti = np.linalg.inv(image.affine) @ volume.affine
    index = np.stack([*np.indices(volume.stored.shape), np.ones(volume.stored.shape)], axis=-1)
    places = np.rint(index @ from_nifti.T)[..., :3].astype(int)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[tuple(np.moveaxis(places, -1, 0))], volume.hu)


@pytest.mark.parametrize("codes", CODES)
def test_what_is_written_reads_back_as_the_same_volume(tilted: Path, tmp_path: Path, codes: str) -> None:
    volume = read_volume(tilted)
    path = tmp_path / "case.nii.gz"
    path.write_bytes(nifti_bytes_of(volume, codes))
    again = read_volume(path)
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)  # NIfTI holds float32
    np.testing.assert_allclose(again.slice_positions_mm, volume.slice_positions_mm, atol=1e-4)


def test_there_are_48_orientations_and_each_is_written_as_named(tilted: Path) -> None:
    volume = read_volume(tilted)
    assert len(EVERY_CODE) == 48
    for codes in EVERY_CODE:
        header = nib.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes_of(volume, codes)))
        assert "".join(nib.aff2axcodes(header.affine)) == codes


def test_float_hu_are_written_as_float(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "series", HU, axial_geometry([5.0] * 5, (9, 11)), DicomOptions(slope=1.5))
    volume = read_volume(tmp_path / "series")
    path = tmp_path / "case.nii.gz"
    path.write_bytes(nifti_bytes_of(volume))
    assert nib.load(path).get_data_dtype() == np.float32
    np.testing.assert_array_equal(read_volume(path).hu, volume.hu)


def test_the_scaling_of_a_nifti_is_kept(tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    volume = read_volume(head_nifti())
    path = tmp_path / "again.nii.gz"
    path.write_bytes(nifti_bytes_of(volume))
    again = read_volume(path)
    assert (again.slope, again.intercept, again.stored.dtype) == (volume.slope, volume.intercept, volume.stored.dtype)
    assert again.source.pixels_sha256 == volume.source.pixels_sha256


def test_equal_volumes_are_equal_bytes(tilted: Path) -> None:
    assert nifti_bytes_of(read_volume(tilted)) == nifti_bytes_of(read_volume(tilted))


def test_a_resampled_volume_lies_where_its_grid_says(tilted: Path, tmp_path: Path) -> None:
    grid = resample(read_volume(tilted), (2.0, 3.5, 3.5))
    path = tmp_path / "case.nii.gz"
    path.write_bytes(nifti_bytes(grid.hu, grid.affine, axis_codes="RAS"))
    again = read_volume(path)
    np.testing.assert_array_equal(again.stored, grid.hu)
    np.testing.assert_allclose(again.affine, grid.affine, atol=1e-4)


@pytest.mark.parametrize("tilt_degrees", [0.0, 20.0])
def test_even_slices_are_misplaced_by_nothing(tmp_path: Path, tilt_degrees: float) -> None:
    write_dicom_series(tmp_path, HU, axial_geometry([5.0] * 5, (9, 11), tilt_degrees=tilt_degrees))
    assert misplaced_mm(read_volume(tmp_path)) < 1e-5


def test_uneven_slices_are_misplaced_by_how_far_the_furthest_lies_off(tmp_path: Path) -> None:
    """Slices at 0, 2, 4, 6, 8, 18 mm; evenly they would lie 3.6 mm apart, so the fifth is 6.4 mm off."""
    write_dicom_series(tmp_path, HU, axial_geometry([2.0] * 4 + [10.0], (9, 11)))
    volume = read_volume(tmp_path)
    assert misplaced_mm(volume) == pytest.approx(6.4)
    assert slices_document(volume)["nifti_misplaces_slices_by_mm"] == pytest.approx(6.4)


def test_the_document_of_slices_holds_the_true_place_and_image_of_each(tmp_path: Path) -> None:
    geometry = axial_geometry([2.0, 5.0, 5.0, 7.5, 1.0], (9, 11), tilt_degrees=15)
    truth = write_dicom_series(tmp_path, HU, geometry, DicomOptions(names="shuffled"))
    document = slices_document(read_volume(tmp_path))
    np.testing.assert_allclose(document["slice_positions_mm"], geometry.positions_mm * [-1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(document["column_steps_mm"], [[-3.5, 0, 0]] * 6, atol=1e-9)
    row_step = geometry.column_direction * [-3.5, -3.5, 3.5]
    np.testing.assert_allclose(document["row_steps_mm"], [row_step] * 6, atol=1e-9)
    assert document["sop_instance_uids"] == [image.sop_instance_uid for image in truth.used]


def test_a_nifti_has_no_images_to_name(head_nifti: Callable[..., Path]) -> None:
    assert slices_document(read_volume(head_nifti()))["sop_instance_uids"] is None
