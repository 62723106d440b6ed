"""The NIfTI of a real head CT has the slices of its DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.types import Volume

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def volume(shared_data_dir: Path) -> Volume:
    return read_volume(shared_data_dir / "head_ncct_nifti" / "head_ncct.nii.gz")


@pytest.fixture(scope="module")
def dicom_slices(shared_data_dir: Path) -> list[SimpleITK.Image]:
    """Each DICOM file by itself (rows and columns as stored, which DICOM shows on screen), from bottom to top."""
    images = [SimpleITK.ReadImage(str(path)) for path in sorted((shared_data_dir / "head_ncct_dicom").glob("*.dcm"))]
    return sorted(images, key=lambda image: image.GetOrigin()[2])


def test_slices_equal_the_dicom_slices(volume, dicom_slices) -> None:
    expected = np.stack([SimpleITK.GetArrayFromImage(image)[0] for image in dicom_slices])

    assert expected.shape == (28, 512, 512)
    np.testing.assert_array_equal(volume.stored, expected)
    np.testing.assert_array_equal(volume.hu, np.where(expected < -1024, -1000, expected))


def test_the_dicom_files_show_anterior_up_and_the_patients_right_at_the_left(dicom_slices) -> None:
    """What makes the comparison above a test of orientation: in LPS, columns run to +x (left), rows to +y."""
    for image in dicom_slices:
        direction = np.array(image.GetDirection()).reshape(3, 3)
        assert direction[0, 0] > 0.9
        assert direction[1, 1] > 0.9


def test_the_first_slice_lies_where_dicom_puts_it(volume, dicom_slices) -> None:
    x, y, z = dicom_slices[0].GetOrigin()
    np.testing.assert_allclose(volume.slice_positions_mm[0], [-x, -y, z], atol=1e-3)
    assert np.all(np.diff(volume.slice_positions_mm[:, 2]) > 0)


def test_the_shear_that_only_the_sform_has_is_reported(volume) -> None:
    assert any(warning.startswith("sform and qform disagree by up to") for warning in volume.warnings)


def test_padding_is_counted(volume) -> None:
    n_padding = int(np.count_nonzero(volume.stored < -1024))
    assert volume.n_padding_voxels == n_padding > 0
    assert volume.hu.min() >= -1024


def test_the_back_of_the_head_is_down(volume: Volume) -> None:
    """The head rest holds the back of the head: what is beside the vertex lies in the lower part of the image."""
    beside = volume.hu[24].copy()
    beside[:, 90:430] = -1000  # the head
    rows = np.nonzero(beside > -500)[0]
    assert rows.size > 100
    assert np.median(rows) > 300
