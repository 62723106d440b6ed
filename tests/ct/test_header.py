"""Headers that contradict the format, themselves or the package's purpose, before a voxel is read."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput, InputError, OutOfScope, UnsupportedInput


@pytest.mark.parametrize(
    "dim",
    [
        [3, 0, 5, 4, 1, 1, 1, 1],
        [3, 6, -5, 4, 1, 1, 1, 1],
        [0, 6, 5, 4, 1, 1, 1, 1],
        [-1, 6, 5, 4, 1, 1, 1, 1],
        [8, 6, 5, 4, 1, 1, 1, 1],
        [4, 6, 5, 4, -1, 1, 1, 1],
    ],
    ids=str,
)
def test_impossible_dimensions_are_corrupt(write_nifti, head, dim) -> None:
    with pytest.raises(CorruptInput, match="dim is"):
        read_volume(write_nifti(head, dim=dim))


def test_more_voxels_than_the_cap_are_refused_unread(write_nifti, head) -> None:
    with pytest.raises(UnsupportedInput, match="32767x32767x32767 = 35181150961663 voxels"):
        read_volume(write_nifti(head, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))


def test_the_voxel_cap_of_the_caller_counts(write_nifti, head) -> None:
    assert read_volume(write_nifti(head), max_voxels=120).n_slices == 4
    with pytest.raises(UnsupportedInput, match="at most 119 are read"):
        read_volume(write_nifti(head), max_voxels=119)


def test_nifti2_dimensions_beyond_64_bits_of_bytes_are_refused(write_nifti, head) -> None:
    with pytest.raises(UnsupportedInput, match="voxels"):
        read_volume(write_nifti(head, version=2, dim=[3, 2**62, 2**62, 2**62, 1, 1, 1, 1]))


@pytest.mark.parametrize("trailing", [(1,), (1, 1, 1, 1)])
def test_further_dimensions_of_one_are_taken_as_three(write_nifti, head, trailing) -> None:
    volume = read_volume(write_nifti(head.reshape(*head.shape, *trailing)))
    np.testing.assert_array_equal(volume.stored, head.transpose(2, 1, 0))


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("dim", [[4, 6, 5, 4, 0, 1, 1, 1], [7, 6, 5, 4, 0, 0, 0, 0], [5, 6, 5, 4, 1, 0, 1, 1]], ids=str)
def test_further_dimensions_of_zero_are_taken_as_three_and_reported(write_nifti, head, dim, name) -> None:
    path = write_nifti(head, name=name, dim=dim)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.stored, head.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).squeeze())
    assert volume.warnings == tuple(f"dim[{k}] is 0 and was read as 1" for k in range(4, dim[0] + 1) if dim[k] == 0)


@pytest.mark.parametrize("dim", [[3, 6, 5, 4, 0, 0, 0, 0], [2, 30, 4, 0, 0, 0, 0, 0]], ids=str)
def test_sizes_beyond_the_number_of_dimensions_mean_nothing(write_nifti, head, dim) -> None:
    volume = read_volume(write_nifti(head, dim=dim), allow_single_slice=True)
    assert volume.stored.ravel().tolist() == head.ravel(order="F").tolist()
    assert volume.warnings == ()


def test_a_zero_dimension_of_several_volumes_is_corrupt(make_nifti_bytes, write, head) -> None:
    four = make_nifti_bytes(np.stack([head, head], axis=3), dim=[4, 6, 5, 4, 0, 1, 1, 1])
    for name in ("case.nii", "case.nii.gz"):
        with pytest.raises(CorruptInput, match=r"dim\[4\] is 0.*bytes follow the last voxel"):
            read_volume(write(four, name))


@pytest.mark.parametrize("shape", [(6, 5, 2, 2), (6, 5, 2, 1, 2)])
def test_more_than_three_dimensions_are_unsupported(write_nifti, head, shape) -> None:
    with pytest.raises(UnsupportedInput, match=f"{len(shape)}-D data"):
        read_volume(write_nifti(head.reshape(shape)))


@pytest.mark.parametrize("shape", [(30, 4), (30, 4, 1)], ids=["2-D", "one slice"])
def test_a_single_slice_is_out_of_scope_unless_allowed(write_nifti, head, shape) -> None:
    path = write_nifti(head.reshape(shape))
    with pytest.raises(OutOfScope, match="single slice"):
        read_volume(path)
    assert read_volume(path, allow_single_slice=True).stored.shape == (1, 4, 30)


def test_a_line_of_voxels_is_unsupported(write_nifti, head) -> None:
    with pytest.raises(UnsupportedInput, match="one-dimensional"):
        read_volume(write_nifti(head, dim=[1, 120, 1, 1, 1, 1, 1, 1]), allow_single_slice=True)


@pytest.mark.parametrize(
    ("code", "name"), [(32, "complex64"), (128, "RGB24"), (1, "1-bit"), (1536, "float128"), (2304, "RGBA32")]
)
def test_voxels_that_are_not_one_real_number_are_unsupported(write_nifti, head, code, name) -> None:
    with pytest.raises(UnsupportedInput, match=f"voxels are {name}"):
        read_volume(write_nifti(head, datatype=code))


@pytest.mark.parametrize("code", [0, 255, 3, -4])
def test_an_unknown_datatype_is_corrupt(write_nifti, head, code) -> None:
    with pytest.raises(CorruptInput, match=f"datatype code {code} "):
        read_volume(write_nifti(head, datatype=code))


@pytest.mark.parametrize("side", [0.0, -0.5, np.nan, np.inf, 1e30, 1e-9])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_an_impossible_spacing_is_corrupt(write_nifti, head, axis, side) -> None:
    pixdim = [1, 0.5, 0.5, 5, 0, 0, 0, 0]
    pixdim[axis] = side
    with pytest.raises(CorruptInput, match="voxel sides"):
        read_volume(write_nifti(head, pixdim=pixdim))


@pytest.mark.parametrize("slope", [np.inf, -np.inf, 1e30, 1e-9, -1e-9, -1e30])
def test_an_impossible_slope_is_corrupt(write_nifti, head, slope) -> None:
    with pytest.raises(CorruptInput, match="scl_slope"):
        read_volume(write_nifti(head, scl_slope=slope))


@pytest.mark.parametrize("slope", [1e-6, 1e6])
def test_the_ends_of_the_slope_range_are_taken(write_nifti, head, slope) -> None:
    assert read_volume(write_nifti(np.abs(head), scl_slope=slope)).slope == pytest.approx(slope)


@pytest.mark.parametrize("intercept", [np.inf, -np.inf, 1e30])
def test_an_impossible_intercept_is_corrupt(write_nifti, head, intercept) -> None:
    with pytest.raises(CorruptInput, match="scl_inter"):
        read_volume(write_nifti(head, scl_slope=1.0, scl_inter=intercept))


@pytest.mark.parametrize("offset", [0.0, 340.0, 348.0, 350.0, 351.0, -1.0, 352.5, np.nan, np.inf])
def test_an_impossible_voxel_offset_is_corrupt(write_nifti, head, offset) -> None:
    with pytest.raises(CorruptInput, match="vox_offset"):
        read_volume(write_nifti(head, vox_offset=offset))


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_voxels_that_follow_the_header_at_once_are_read_as_simpleitk_does(
    make_nifti_bytes, write, head, version, name
) -> None:
    n_header = {1: 348, 2: 540}[version]
    content = make_nifti_bytes(head, version=version, vox_offset=n_header)
    path = write(content[:n_header] + content[n_header + 4 :], name)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.stored, head.transpose(2, 1, 0))
    if version == 1:  # SimpleITK does not read NIfTI-2
        np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))
    assert volume.warnings == (
        f"vox_offset is {n_header}, below {n_header + 4}: voxels were read from byte {n_header}",
    )


def test_a_voxel_offset_behind_endless_extensions_is_refused(write_nifti, head) -> None:
    with pytest.raises(InputError, match="extensions"):
        read_volume(write_nifti(head, vox_offset=1e12))


@pytest.mark.parametrize(("unit", "name"), [(1, "metre"), (3, "micrometre"), (7, "code 7")])
def test_another_unit_than_mm_is_unsupported(write_nifti, head, unit, name) -> None:
    with pytest.raises(UnsupportedInput, match=f"spatial unit is {name}"):
        read_volume(write_nifti(head, xyzt_units=unit))


def test_an_unset_unit_is_read_as_mm(write_nifti, head) -> None:
    assert read_volume(write_nifti(head, xyzt_units=0)).spacing_mm[0] == pytest.approx(5.0)


def test_a_nifti2_magic_mangled_as_text_is_corrupt(write, make_nifti_bytes, head) -> None:
    content = bytearray(make_nifti_bytes(head, version=2))
    content[8:12] = b"\n\x1a\n\0"
    with pytest.raises(CorruptInput, match="magic"):
        read_volume(write(bytes(content)))


def test_a_damaged_magic_inside_gzip_is_corrupt(write, make_nifti_bytes, head) -> None:
    content = bytearray(make_nifti_bytes(head))
    content[344:348] = b"n?1\0"
    with pytest.raises(CorruptInput, match="magic"):
        read_volume(write(bytes(content)))
