"""The files, read back by readers that are not ours."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from meddinov3_stroke.phantom import Phantom, draw_spec, make_phantom
from meddinov3_stroke.system.nifti_bytes import nifti_bytes


@pytest.fixture(scope="module", params=[0.0, 13.0, -17.0], ids=["straight", "tilted", "tilted back"])
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return make_phantom(draw_spec(3, ["epidural"], volumes_ml=[9.0], shape=(10, 40, 56), tilt_degrees=request.param))


@pytest.fixture
def image(phantom: Phantom, tmp_path: Path) -> nib.Nifti1Image:
    path = tmp_path / "head.nii.gz"
    path.write_bytes(nifti_bytes(phantom.hu, phantom.affine))
    return nib.load(path)


def test_nibabel_reads_the_same_voxels_once_reoriented_to_canonical(phantom: Phantom, image: nib.Nifti1Image) -> None:
    to_canonical = ornt_transform(io_orientation(image.affine), axcodes2ornt("SPL"))
    voxels = apply_orientation(np.asarray(image.dataobj), to_canonical)
    np.testing.assert_array_equal(voxels, phantom.hu)


def test_axes_are_stored_in_the_usual_order(image: nib.Nifti1Image) -> None:
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")


def test_header_says_int16_hounsfield_units_in_scanner_space(image: nib.Nifti1Image) -> None:
    assert image.get_data_dtype() == np.int16
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_sform_and_qform_agree(image: nib.Nifti1Image) -> None:
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-3)


def test_simpleitk_puts_every_corner_where_the_affine_does(phantom: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "head.nii.gz"
    path.write_bytes(nifti_bytes(phantom.hu, phantom.affine))
    read = SimpleITK.ReadImage(str(path))
    n_slices, n_rows, n_columns = phantom.hu.shape
    for s, r, c in ((0, 0, 0), (n_slices - 1, 0, 3), (2, n_rows - 1, 0), (1, 5, n_columns - 1)):
        left, posterior, superior = read.TransformIndexToPhysicalPoint((c, n_rows - 1 - r, s))
        expected = phantom.affine @ [s, r, c, 1]
        np.testing.assert_allclose([-left, -posterior, superior], expected[:3], atol=1e-3)
        assert read[c, n_rows - 1 - r, s] == phantom.hu[s, r, c]


def test_mask_shares_the_geometry_of_the_volume(phantom: Phantom, image: nib.Nifti1Image, tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(nifti_bytes(phantom.mask, phantom.affine))
    mask = nib.load(path)
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    assert int((np.asarray(mask.dataobj) > 0).sum()) == int((phantom.mask > 0).sum())


def test_equal_voxels_give_equal_bytes_with_no_time_in_them(phantom: Phantom) -> None:
    first = nifti_bytes(phantom.hu, phantom.affine)
    assert first == nifti_bytes(phantom.hu.copy(), phantom.affine.copy())
    assert first[4:8] == b"\0\0\0\0"
    assert gzip.decompress(first)
