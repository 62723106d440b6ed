"""Values and places against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import hashlib
import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import Volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.15, 0.3) @ np.diag([0.5, 0.45, 4.0]), [10.0, -20.0, 30.0]
)
SAGITTAL_ORDER = np.array([[0, 0, 0.9, -40.0], [0.5, 0, 0, -60.0], [0, -1.2, 0, 70.0], [0, 0, 0, 1]])


def _every_voxel(volume: Volume) -> np.ndarray:
    return np.array(list(itertools.product(*(range(n) for n in volume.stored.shape))))


def _ras_mm(volume: Volume, indices: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(volume.affine, indices)


@pytest.mark.parametrize("affine", [None, OBLIQUE, SAGITTAL_ORDER], ids=["axial", "oblique", "sagittal order"])
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz", "CASE.NII.GZ"])
def test_each_voxel_has_the_value_and_place_that_nibabel_gives_it(write_nifti, head, affine, name) -> None:
    path = write_nifti(head, **({} if affine is None else {"affine": affine}), name=name)
    volume, oracle = read_volume(path), nib.load(path)

    indices = _every_voxel(volume)
    ijk = nib.affines.apply_affine(np.linalg.inv(oracle.affine), _ras_mm(volume, indices))
    np.testing.assert_allclose(ijk, np.round(ijk), atol=1e-4)
    expected = oracle.get_fdata()[tuple(np.round(ijk).astype(int).T)]
    np.testing.assert_array_equal(volume.hu[tuple(indices.T)], expected)


@pytest.mark.parametrize("affine", [OBLIQUE, SAGITTAL_ORDER], ids=["oblique", "sagittal order"])
def test_each_voxel_has_the_value_and_place_that_simpleitk_gives_it(write_nifti, head, affine) -> None:
    path = write_nifti(head, affine)
    volume, oracle = read_volume(path), SimpleITK.ReadImage(str(path))

    for index in _every_voxel(volume):
        x, y, z = _ras_mm(volume, index)
        ijk = oracle.TransformPhysicalPointToIndex((-x, -y, z))
        assert oracle.GetPixel(ijk) == volume.hu[tuple(index)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_scalar_type_is_read_in_both_formats_and_byte_orders(write_nifti, dtype, version, order) -> None:
    voxels = np.arange(60).reshape(5, 4, 3).astype(dtype)
    path = write_nifti(voxels, version=version, order=order)

    volume = read_volume(path)

    assert volume.stored.dtype == np.dtype(dtype)
    assert volume.stored.dtype.isnative
    np.testing.assert_array_equal(volume.hu, np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0))


def test_slope_and_intercept_are_applied_once(write_nifti, head) -> None:
    path = write_nifti(head, scl_slope=2.0, scl_inter=-100.0)

    volume = read_volume(path)

    np.testing.assert_array_equal(volume.hu, head.transpose(2, 1, 0) * 2.0 - 100.0)
    np.testing.assert_array_equal(volume.stored, head.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.hu, nib.load(path).get_fdata().transpose(2, 1, 0))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("slope", "intercept", "warning"),
    [
        (0.0, 0.0, "scl_slope is 0, which means unscaled"),
        (np.nan, np.nan, "scl_slope is nan, which means unscaled: scl_inter nan is ignored"),
        (0.0, -1024.0, "scl_slope is 0, which means unscaled: scl_inter -1024 is ignored"),
        (np.nan, -1024.0, "scl_slope is nan, which means unscaled: scl_inter -1024 is ignored"),
    ],
)
def test_a_slope_of_zero_or_nan_means_unscaled_as_in_nibabel_and_is_reported(
    write_nifti, head, version, slope, intercept, warning
) -> None:
    path = write_nifti(head, version=version, scl_slope=slope, scl_inter=intercept)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, head.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.hu, np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0))
    assert volume.warnings == (warning,)


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_an_intercept_of_nan_is_zero_as_in_simpleitk_and_is_reported(write_nifti, head, slope) -> None:
    path = write_nifti(head, scl_slope=slope, scl_inter=np.nan)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, head.transpose(2, 1, 0) * slope)
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))
    assert volume.warnings == ("scl_inter is nan and was read as 0",)


@pytest.mark.parametrize(("slope", "intercept"), [(-1.0, 0.0), (-2.0, 7.0), (-0.5, -100.0)])
def test_a_negative_slope_is_applied_as_in_nibabel_and_simpleitk(write_nifti, head, slope, intercept) -> None:
    path = write_nifti(head, scl_slope=slope, scl_inter=intercept)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, head.transpose(2, 1, 0) * slope + intercept)
    np.testing.assert_array_equal(volume.hu, np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))
    assert volume.warnings == ()


def test_padding_reads_as_air_and_is_counted(write_nifti, head) -> None:
    head[0, 0, 0], head[1, 0, 0], head[2, 0, 0] = -3024, -1025, -1024
    volume = read_volume(write_nifti(head))

    assert volume.hu[0, 0, :3].tolist() == [-1000.0, -1000.0, -1024.0]
    assert volume.n_padding_voxels == 2
    assert any(warning.startswith("2 voxels below -1024 HU") for warning in volume.warnings)


def test_padding_is_detected_in_hounsfield_units_not_in_stored_values(write_nifti, head) -> None:
    volume = read_volume(write_nifti(head, scl_slope=1.0, scl_inter=-1024.0))

    assert volume.n_padding_voxels == 30  # the stored values -30..-1
    assert volume.hu.min() == -1024.0


def test_a_few_non_finite_voxels_read_as_air_and_are_reported(write_nifti) -> None:
    voxels = np.zeros((20, 20, 10), dtype=np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0], voxels[2, 0, 0] = np.nan, np.inf, -np.inf
    volume = read_volume(write_nifti(voxels))

    assert volume.hu[0, 0, :4].tolist() == [-1000.0, -1000.0, -1000.0, 0.0]
    assert volume.n_padding_voxels == 0
    assert any(warning.startswith("3 voxels are NaN") for warning in volume.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_more_than_a_thousandth_of_non_finite_voxels_is_corrupt(write_nifti, value) -> None:
    voxels = np.zeros((20, 20, 10), dtype=np.float64)
    voxels[:5, 0, 0] = value  # 5 of 4000
    with pytest.raises(CorruptInput, match=r"5 of 4000 voxels .* NaN or infinite"):
        read_volume(write_nifti(voxels))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [4, 8])
def test_a_signalling_nan_is_counted_without_a_numpy_warning(write_nifti, size, order) -> None:
    voxels = np.zeros((20, 20, 10), dtype=f"f{size}")
    voxels.view(f"u{size}")[0, 0, 0] = {4: 0x7F810000, 8: 0x7FF0000000000001}[size]
    volume = read_volume(write_nifti(voxels, order=order))
    assert volume.hu[0, 0, 0] == -1000.0
    assert volume.warnings[0].startswith("1 voxels are NaN")


def test_a_thousandth_of_non_finite_voxels_is_taken(write_nifti) -> None:
    voxels = np.zeros((20, 20, 10), dtype=np.float64)
    voxels[:4, 0, 0] = np.nan
    assert read_volume(write_nifti(voxels)).hu[0, 0, 0] == -1000.0


def test_the_source_names_the_bytes_of_the_file(write_nifti, head) -> None:
    path = write_nifti(head)
    source = read_volume(path).source

    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of_file(path)
    assert (source.path, source.format) == (path, "nifti")


def test_equal_pixels_share_a_digest_whatever_the_container(write_nifti, head) -> None:
    packed = read_volume(write_nifti(head)).source
    plain = read_volume(write_nifti(head, name="b.nii", order=">", version=2)).source
    scaled = read_volume(write_nifti(head, name="c.nii", scl_slope=2.0)).source

    assert packed.sha256 != plain.sha256
    assert packed.pixels_sha256 == plain.pixels_sha256
    assert packed.pixels_sha256 != scaled.pixels_sha256


def test_slice_positions_are_the_first_voxel_of_each_slice(write_nifti, head) -> None:
    volume = read_volume(write_nifti(head, OBLIQUE))
    first = np.array([(s, 0, 0) for s in range(volume.n_slices)])

    np.testing.assert_allclose(volume.slice_positions_mm, _ras_mm(volume, first), rtol=0, atol=1e-9)
    assert np.all(np.diff(volume.slice_positions_mm[:, 2]) > 0)


def test_spacing_is_slice_then_row_then_column(write_nifti, head) -> None:
    assert read_volume(write_nifti(head, OBLIQUE)).spacing_mm == pytest.approx((4.0, 0.45, 0.5), rel=1e-6)


def test_stored_voxels_are_contiguous_and_cannot_be_changed(write_nifti, head) -> None:
    stored = read_volume(write_nifti(head)).stored

    assert stored.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        stored[0, 0, 0] = 1


def test_several_members_and_zero_padding_are_legal_gzip(write, make_nifti_bytes, head) -> None:
    content = make_nifti_bytes(head)
    members = [gzip.compress(part) for part in (content[:100], content[100:400], b"", content[400:])]
    path = write(b"".join(members) + bytes(1000), pack=False)

    np.testing.assert_array_equal(read_volume(path).stored, head.transpose(2, 1, 0))


def test_legal_header_extensions_are_passed_over(tmp_path, head) -> None:
    image = nib.Nifti1Image(head, np.diag([-0.5, -0.5, 5.0, 1.0]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note of the writer" * 40))
    for name in ("case.nii", "case.nii.gz"):
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(read_volume(tmp_path / name).stored, head.transpose(2, 1, 0))


def test_a_path_may_be_text_or_chinese(write_nifti, head) -> None:
    path = write_nifti(head, name="头部 CT.nii.gz")
    assert read_volume(str(path)).n_slices == 4
