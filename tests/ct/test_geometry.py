"""Which affine counts, and which volumes are too far from axial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput, OutOfScope, UnsupportedInput

SIDES_MM = np.diag([-0.5, -0.5, 1.0])


def _tilted(degrees: float, shear: bool = False) -> np.ndarray:
    """Slices tilted about the right-left axis; sheared, their stack still rises straight up as under a gantry tilt."""
    matrix = nib.eulerangles.euler2mat(x=np.radians(degrees)) @ SIDES_MM
    if shear:
        matrix[:, 2] = [0, 0, 1.0]
    return nib.affines.from_matvec(matrix, [10, 20, 30])


def _both_forms(write: Callable[..., Path], head: np.ndarray, sform: np.ndarray, qform: np.ndarray) -> Path:
    """A file with an sform and a qform of its own."""
    image = nib.Nifti1Image(head, None)
    image.header.set_sform(sform, code=1)
    image.header.set_qform(qform, code=1)
    return write(image.to_bytes())


def test_the_sform_takes_precedence_over_the_qform_and_a_disagreement_is_reported(write, head) -> None:
    qform = _tilted(0)
    sform = qform.copy()
    sform[2, 3] += 40.0
    volume = read_volume(_both_forms(write, head, sform, qform))

    assert volume.slice_positions_mm[0, 2] == pytest.approx(70.0)
    assert volume.warnings == ("sform and qform disagree by up to 40.0 mm; the sform is used",)


def test_agreeing_sform_and_qform_give_no_warning(write, head) -> None:
    for degrees in (0, 17, -30):
        assert read_volume(_both_forms(write, head, _tilted(degrees), _tilted(degrees))).warnings == ()


def test_the_qform_alone_is_enough(write, head) -> None:
    image = nib.Nifti1Image(head, None)
    image.header.set_sform(None, code=0)
    image.header.set_qform(_tilted(20), code=1)
    volume = read_volume(write(image.to_bytes()))

    expected = nib.affines.apply_affine(_tilted(20), [(0, 0, k) for k in range(4)])
    np.testing.assert_allclose(volume.slice_positions_mm, expected, atol=1e-4)


@pytest.mark.parametrize("qfac", [0.0, 2.0])
def test_a_qfac_that_is_not_negative_is_one(write_nifti, head, qfac) -> None:
    options = {"sform_code": 0, "qform_code": 1, "quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0}
    sound = read_volume(write_nifti(head, **options, pixdim=[1, 0.5, 0.5, 5, 0, 0, 0, 0]))
    odd = read_volume(write_nifti(head, **options, pixdim=[qfac, 0.5, 0.5, 5, 0, 0, 0, 0]))

    np.testing.assert_array_equal(odd.affine, sound.affine)


def test_neither_sform_nor_qform_is_unsupported(write_nifti, head) -> None:
    with pytest.raises(UnsupportedInput, match="sform_code and qform_code are 0 and 0"):
        read_volume(write_nifti(head, sform_code=0, qform_code=0))


@pytest.mark.parametrize("quaternion", [(2.0, 0.0, 0.0), (np.nan, 0.0, 0.0), (1e38, 1e38, 1e38)])
def test_a_quaternion_that_is_not_a_rotation_is_corrupt_without_an_sform(write_nifti, head, quaternion) -> None:
    fields = dict(zip(("quatern_b", "quatern_c", "quatern_d"), quaternion, strict=True))
    with pytest.raises(CorruptInput, match="not a rotation"):
        read_volume(write_nifti(head, sform_code=0, qform_code=1, **fields))


def test_a_quaternion_that_is_not_a_rotation_is_reported_beside_an_sform(write_nifti, head) -> None:
    volume = read_volume(write_nifti(head, qform_code=1, quatern_b=2.0))
    assert volume.warnings == ("the qform quaternion is not a rotation; the sform is used",)


def test_voxel_sides_that_disagree_with_the_sform_are_reported(write_nifti, head) -> None:
    volume = read_volume(write_nifti(head, pixdim=[1, 0.5, 0.5, 2.5, 0, 0, 0, 0]))

    assert volume.spacing_mm[0] == pytest.approx(5.0)
    assert volume.warnings == ("voxel sides are 0.5 x 0.5 x 2.5 mm in pixdim and 0.5 x 0.5 x 5 mm in the sform; "
                               "the sform is used",)  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        {"srow_x": [0, 0, 0, 0], "srow_y": [0, 0, 0, 0], "srow_z": [0, 0, 0, 0]},
        {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"srow_x": [1, 1, 0, 0], "srow_y": [0, 1e-4, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_y": [0, 0, 0, np.inf]},
        {"srow_z": [0, 0, 0, 1e30]},
        {"srow_x": [1e30, 0, 0, 0]},
        {"srow_x": [1e300, 0, 0, 0], "version": 2},
    ],
    ids=["all zero", "parallel", "nearly parallel", "NaN", "infinite offset", "absurd offset", "absurd side", "1e300"],
)
def test_a_singular_or_non_finite_sform_is_corrupt(write_nifti, head, rows) -> None:
    with pytest.raises(CorruptInput, match=r"sform|voxel sides"):
        read_volume(write_nifti(head, **rows))


@pytest.mark.parametrize("place", [80, 280, 320], ids=["pixdim", "srow_x", "srow_z"])
def test_a_signalling_nan_in_the_header_is_corrupt_without_a_numpy_warning(
    write, make_nifti_bytes, head, place
) -> None:
    content = bytearray(make_nifti_bytes(head))
    content[place : place + 4] = b"\x00\x00\x81\x7f"
    with pytest.raises(CorruptInput, match=r"sform|voxel sides"):
        read_volume(write(bytes(content)))


@pytest.mark.parametrize("degrees", [-44, 0, 18.5, 44])
@pytest.mark.parametrize("shear", [False, True])
def test_tilted_slices_are_taken(write_nifti, head, degrees, shear) -> None:
    volume = read_volume(write_nifti(head, _tilted(degrees, shear)))
    np.testing.assert_array_equal(volume.stored, head.transpose(2, 1, 0))


@pytest.mark.parametrize("degrees", [-46, 46])
@pytest.mark.parametrize("shear", [False, True])
def test_slices_more_than_45_degrees_off_axial_are_refused(write_nifti, head, degrees, shear) -> None:
    affine = _tilted(degrees, shear)
    if not shear:  # turned about a diagonal, no axis comes within 45 degrees of superior
        corner = nib.quaternions.angle_axis2mat(np.radians(54.7), [1, 1, 0])
        affine = nib.affines.from_matvec(corner @ SIDES_MM)
    with pytest.raises(OutOfScope, match="degrees off axial"):
        read_volume(write_nifti(head, affine))


@pytest.mark.parametrize("ratio", [2.0, 8.0])
@pytest.mark.parametrize("axis", [0, 1], ids=["sagittal", "coronal"])
def test_thick_slices_along_another_axis_are_refused(write_nifti, head, axis, ratio) -> None:
    affine = np.diag([0.6, 0.6, 0.6, 1.0])
    affine[axis, axis] *= ratio
    with pytest.raises(OutOfScope, match="not axial"):
        read_volume(write_nifti(head, affine))


def test_isotropic_and_thin_slices_are_taken(write_nifti, head) -> None:
    for slice_mm in (0.6, 0.31):
        assert read_volume(write_nifti(head, np.diag([0.6, 0.6, slice_mm, 1.0]))).n_slices == 4
