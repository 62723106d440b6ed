"""A volume on an even grid: exact where HU are linear in space, without aliasing, and air outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dicom_writer import SliceGeometry, axial_geometry, sample_hu, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct import writing
from meddinov3_stroke.ct.writing import Resampled, resample
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import Volume


def linear(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """HU that grow evenly in every direction, and differently in each."""
    return 300 + 3.0 * x - 2.0 * y + 4.0 * z


def volume_of(folder: Path, geometry: SliceGeometry, hu: np.ndarray | None = None) -> Volume:
    write_dicom_series(folder, sample_hu(linear, geometry) if hu is None else hu, geometry)
    return read_volume(folder)


def places(grid: Resampled) -> np.ndarray:
    """RAS+ mm of every voxel, by the affine."""
    index = np.stack(np.indices(grid.hu.shape), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def is_inside(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Whether the slices on both sides of a point, along their normal, cover it."""
    row, column = volume.slice_steps_mm[0].T
    normal = np.cross(row, column)
    heights = volume.slice_positions_mm @ normal
    order = np.argsort(heights)
    at = np.searchsorted(heights[order], points @ normal)
    inside = np.ones(points.shape[:-1], bool)
    for side in (order[np.clip(at - 1, 0, len(order) - 1)], order[np.clip(at, 0, len(order) - 1)]):
        offset = points - volume.slice_positions_mm[side]
        for step, n in zip((row, column), volume.stored.shape[1:], strict=True):
            place = offset @ step / (step @ step)
            inside &= (place > 1e-3) & (place < n - 1 - 1e-3)
    return inside


@pytest.mark.parametrize("tilt_degrees", [0.0, 18.0, -18.0])
def test_hu_that_are_linear_in_space_are_kept_on_a_finer_grid(tmp_path: Path, tilt_degrees: float) -> None:
    geometry = axial_geometry([2.5] * 4 + [5.0, 10.0, 5.0], (20, 24), tilt_degrees=tilt_degrees)
    volume = volume_of(tmp_path, geometry)
    grid = resample(volume, (1.25, 2.0, 1.5))
    points = places(grid)
    inside = is_inside(volume, points)
    assert inside.mean() > 0.5
    expected = linear(points[..., 0], points[..., 1], points[..., 2])
    assert np.abs(grid.hu - expected)[inside].max() <= 1.0  # rounding of what was stored, and of what is given


@settings(max_examples=15)
@given(
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    gaps=st.lists(st.floats(2, 8), min_size=2, max_size=6),
    tilt_degrees=st.floats(-20, 20),
)
def test_hu_that_are_linear_are_kept_in_any_oblique_uneven_stack(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    gaps: list[float],
    tilt_degrees: float,
) -> None:
    upright = axial_geometry(gaps, (14, 16), tilt_degrees=tilt_degrees)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    geometry = replace(
        upright,
        positions_mm=np.round(upright.positions_mm @ turn.T, 6),
        row_direction=np.round(turn @ upright.row_direction, 9),
        column_direction=np.round(turn @ upright.column_direction, 9),
    )
    volume = volume_of(tmp_path_factory.mktemp("oblique"), geometry)
    grid = resample(volume, (1.0, 2.0, 2.0))
    points = places(grid)
    inside = is_inside(volume, points)
    expected = linear(points[..., 0], points[..., 1], points[..., 2])
    assert np.abs(grid.hu - expected)[inside].max(initial=0) <= 1.0


@pytest.mark.parametrize("angles", [(0, 0, 0), (12, 7, -9), (-3, 20, 5)], ids=str)
def test_an_even_straight_volume_on_its_own_spacing_is_itself_to_the_last_voxel(
    tmp_path: Path, angles: tuple[float, float, float]
) -> None:
    """The outermost rows and columns too, which rounding would put outside."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    upright = axial_geometry([5.0] * 9, (20, 24), pixel_spacing_mm=(0.488281, 0.488281))
    geometry = replace(
        upright,
        positions_mm=np.round(upright.positions_mm @ turn.T, 6),
        row_direction=np.round(turn @ upright.row_direction, 9),
        column_direction=np.round(turn @ upright.column_direction, 9),
    )
    volume = volume_of(tmp_path, geometry, np.random.default_rng(0).integers(-1000, 2500, (10, 20, 24)))
    grid = resample(volume, volume.spacing_mm)
    np.testing.assert_array_equal(grid.hu, volume.stored)
    np.testing.assert_allclose(grid.affine, volume.affine, atol=1e-5)


def test_the_affine_has_the_spacing_asked_for_and_right_angles(tmp_path: Path) -> None:
    volume = volume_of(tmp_path, axial_geometry([5.0] * 4, (20, 24), tilt_degrees=15))
    grid = resample(volume, (1.0, 2.0, 3.0))
    steps = grid.affine[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(steps, axis=0), [1, 2, 3], atol=1e-9)
    np.testing.assert_allclose(steps.T @ steps, np.diag([1, 4, 9]), atol=1e-9)


def test_the_grid_covers_every_slice_and_ends_within_a_step_of_the_last(tmp_path: Path) -> None:
    volume = volume_of(tmp_path, axial_geometry([5.0, 2.5, 7.0], (20, 24), tilt_degrees=15))
    grid = resample(volume, (1.0, 2.0, 2.0))
    normal = grid.affine[:3, 0]
    heights = volume.slice_positions_mm @ normal
    first, last = places(grid)[0, 0, 0] @ normal, places(grid)[-1, 0, 0] @ normal
    assert first == pytest.approx(heights.min(), abs=1e-6)
    assert 0 <= heights.max() - last < 1 + 1e-6


def test_beyond_the_slices_of_a_sheared_stack_is_air(tmp_path: Path) -> None:
    geometry = axial_geometry([5.0] * 6, (20, 24), tilt_degrees=25)
    volume = volume_of(tmp_path, geometry, np.full((7, 20, 24), 500))
    grid = resample(volume, (5 * float(np.cos(np.radians(25))), 1.0, 3.5))
    outside = ~is_inside(volume, places(grid))
    assert set(np.unique(grid.hu[~outside])) == {500}
    corner = grid.hu[0, [0, -1], 10]
    assert sorted(corner.tolist()) == [-1000, 500]


def checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    return np.where(np.indices(shape).sum(axis=0) % 2, 1000, -1000)


def test_a_checkerboard_within_slices_turns_grey_and_not_into_stripes(tmp_path: Path) -> None:
    board = np.broadcast_to(checkerboard((40, 40)), (4, 40, 40))
    volume = volume_of(tmp_path, axial_geometry([5.0] * 3, (40, 40), pixel_spacing_mm=(1, 1)), board)
    grid = resample(volume, (5.0, 4.0, 4.0))
    assert np.abs(grid.hu[:, 1:-1, 1:-1]).max() < 50


def test_slices_that_alternate_are_averaged_on_a_coarser_grid(tmp_path: Path) -> None:
    board = np.broadcast_to(np.where(np.arange(24) % 2, 1000, -1000)[:, None, None], (24, 6, 6))
    volume = volume_of(tmp_path, axial_geometry([1.0] * 23, (6, 6)), board)
    grid = resample(volume, (4.0, 3.5, 3.5))
    assert np.abs(grid.hu[1:-1]).max() < 50


def test_without_anti_aliasing_the_checkerboard_would_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(ndimage, "gaussian_filter", lambda hu, *args, **options: hu)
    board = np.broadcast_to(checkerboard((40, 40)), (4, 40, 40))
    volume = volume_of(tmp_path, axial_geometry([5.0] * 3, (40, 40), pixel_spacing_mm=(1, 1)), board)
    assert np.abs(resample(volume, (5.0, 4.0, 4.0)).hu).min() > 900


@given(
    gaps=st.lists(st.floats(0.5, 10), min_size=1, max_size=12),
    share=st.floats(0, 1),
    width_mm=st.floats(0.2, 20),
)
def test_the_shares_of_slices_add_up_to_one(gaps: list[float], share: float, width_mm: float) -> None:
    distances = np.concatenate([[0.0], np.cumsum(gaps)])
    weights = writing._slice_weights(distances, share * distances[-1], width_mm)
    assert sum(weights.values()) == pytest.approx(1)
    assert all(0 < weight <= 1 for weight in weights.values())


@pytest.mark.parametrize(
    "spacing_mm", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan")), (float("inf"), 1.0, 1.0)], ids=str
)
def test_an_impossible_spacing_is_a_usage_error(
    head_nifti: Callable[..., Path], spacing_mm: tuple[float, float, float]
) -> None:
    with pytest.raises(UsageError, match="expected three numbers of mm above 0"):
        resample(read_volume(head_nifti()), spacing_mm)


def test_a_grid_beyond_memory_is_refused_before_it_is_made(head_nifti: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"a grid of \d+ x \d+ x \d+ voxels; at most 536870912"):
        resample(read_volume(head_nifti()), (0.01, 0.01, 0.01))
