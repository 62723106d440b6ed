"""Header fields and the affine of the qform, held to nibabel."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.ct.nifti_header import FIELDS, header_dtype, qform_affine

HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
PARTS = {"quatern": "_b _c _d", "qoffset": "_x _y _z", "srow": "_x _y _z"}


def fields_of(header: nib.Nifti1Header) -> np.void:
    return np.frombuffer(header.binaryblock, header_dtype(header.sizeof_hdr, "="))[0]


def qform_of(affine: np.ndarray, header_type: type[nib.Nifti1Header]) -> nib.Nifti1Header:
    header = header_type()
    header.set_qform(affine, code=1)
    return header


@pytest.mark.parametrize("n_bytes", HEADERS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_field_lies_where_nibabel_has_it(n_bytes: int, order: str) -> None:
    content = np.random.default_rng(3).integers(0, 120, n_bytes, dtype=np.uint8).tobytes()
    expected = HEADERS[n_bytes](content, endianness=order, check=False)
    found = np.frombuffer(content, header_dtype(n_bytes, order))[0]  # type: ignore[arg-type]
    for name in FIELDS:
        names = [name + part for part in PARTS[name].split()] if name in PARTS else [name]
        values = [expected[one] for one in names]
        np.testing.assert_array_equal(found[name], values if name in PARTS else values[0], err_msg=name)


@pytest.mark.parametrize("header_type", HEADERS.values())
def test_the_qform_of_each_of_48_orientations_is_nibabels(header_type: type[nib.Nifti1Header]) -> None:
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.eye(3)[list(order)] * flips * [0.5, 0.75, 5.0]
            header = qform_of(nib.affines.from_matvec(matrix, [10.0, -20.0, 30.0]), header_type)
            np.testing.assert_array_equal(qform_affine(fields_of(header)), header.get_qform())


@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    sides_mm=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    mirrored=st.booleans(),
    header_type=st.sampled_from(list(HEADERS.values())),
)
def test_the_qform_of_any_rotation_is_nibabels(angles, sides_mm, mirrored, header_type) -> None:
    matrix = nib.eulerangles.euler2mat(*angles) @ np.diag(sides_mm) * (-1 if mirrored else 1)
    header = qform_of(nib.affines.from_matvec(matrix, [1.5, -2.5, 3.5]), header_type)
    np.testing.assert_allclose(qform_affine(fields_of(header)), header.get_qform(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [2.0, np.nan, np.inf, 1e38])
def test_a_quaternion_that_nibabel_cannot_use_gives_no_qform(value: float) -> None:
    header = nib.Nifti1Header()
    header["quatern_b"] = value
    with pytest.raises((ValueError, AssertionError)):
        assert np.isfinite(header.get_qform()).all()
    assert qform_affine(fields_of(header)) is None
