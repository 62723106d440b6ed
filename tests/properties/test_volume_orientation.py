"""Any of the 48 axis orders and flips of one volume is one canonical volume."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.types import Volume

AXIS_ORDERS = [
    np.array(list(zip(order, flips, strict=True)))
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
CANONICAL = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


def _affine(in_plane: float, tilt_x: float, tilt_y: float, sides_mm: tuple[float, float, float]) -> np.ndarray:
    """Of the canonical (slice, row, col): turned in the plane first, then out of it (degrees)."""
    towards = np.array([[0.0, 0, -1], [0, -1, 0], [1, 0, 0]])  # slice to S, row to P, col to L
    turn = nib.eulerangles.euler2mat(z=np.radians(in_plane))
    tilt = nib.eulerangles.euler2mat(x=np.radians(tilt_x), y=np.radians(tilt_y))
    return nib.affines.from_matvec(tilt @ turn @ towards @ np.diag(sides_mm), [12.5, -30.25, 44.0])


def _reordered(affine: np.ndarray, orientation: np.ndarray) -> Volume:
    """The same volume with its axes in another order (nibabel's own arithmetic), read back."""
    voxels = apply_orientation(CANONICAL, orientation)
    image = nib.Nifti1Image(voxels, affine @ inv_ornt_aff(orientation, CANONICAL.shape))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "case.nii"
        nib.save(image, path)
        return read_volume(path)


@pytest.mark.parametrize("affine", [_affine(0, 0, 0, (5, 0.5, 0.5)), _affine(20, -18, 11, (3, 0.6, 0.5))],
                         ids=["axial", "oblique"])  # fmt: skip
def test_all_48_orders_give_one_array_and_one_affine(affine) -> None:
    assert len(AXIS_ORDERS) == 48
    for orientation in AXIS_ORDERS:
        volume = _reordered(affine, orientation)
        np.testing.assert_array_equal(volume.stored, CANONICAL)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
        np.testing.assert_allclose(volume.slice_positions_mm, affine[:3, 3] + np.arange(3)[:, None] * affine[:3, 0],
                                   atol=1e-5)  # fmt: skip
        assert volume.spacing_mm == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0), rel=1e-6)


@pytest.mark.parametrize("in_plane", [-135, -45, 45, 135])
def test_a_head_turned_by_45_degrees_is_one_volume_too(in_plane: float) -> None:
    affine = _affine(in_plane, 0, 0, (5, 0.5, 0.5))
    first, *others = (_reordered(affine, orientation) for orientation in AXIS_ORDERS)
    for volume in others:
        np.testing.assert_array_equal(volume.stored, first.stored)


@settings(max_examples=60, deadline=None)
@given(
    in_plane=st.one_of(st.floats(-180, 180), st.sampled_from([-135, -90, -45, 45, 90, 135, 180])),
    tilt_x=st.floats(-30, 30),
    tilt_y=st.floats(-30, 30),
    sides_mm=st.tuples(st.floats(0.6, 8), st.floats(0.3, 1.1), st.floats(0.3, 1.1)),
    orders=st.lists(st.sampled_from(range(48)), min_size=4, max_size=8, unique=True),
)
def test_no_order_of_the_axes_changes_an_oblique_volume(in_plane, tilt_x, tilt_y, sides_mm, orders) -> None:
    affine = _affine(in_plane, tilt_x, tilt_y, sides_mm)
    first, *others = (_reordered(affine, AXIS_ORDERS[order]) for order in orders)

    for volume in others:
        np.testing.assert_array_equal(volume.stored, first.stored)
        np.testing.assert_allclose(volume.affine, first.affine, atol=1e-4)
    step = first.affine[:3, :3]
    assert step[2, 0] > 0  # slices rise
    assert step[1, 1] < 1e-6  # rows run to posterior
    assert step[0, 2] < 1e-6  # columns run to the patient's left
