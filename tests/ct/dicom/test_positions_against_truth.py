"""The bar: every voxel of a DICOM series has the HU of the very place that the volume claims for it.

The object is a formula, HU(x, y, z). It is sampled here at the voxel centres that DICOM defines (PS3.3 C.7.6.2.1.1),
written by the phantom's DICOM writer, read by `read_volume`, and evaluated again here at the positions claimed. Of the
reader nothing is known but its front door.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dicom_writer import (
    TRANSFER_SYNTAXES,
    DicomOptions,
    DicomSeriesTruth,
    SliceGeometry,
    axial_geometry,
    write_dicom_series,
)
from meddinov3_stroke import read_volume
from meddinov3_stroke.types import Volume

TOLERANCE_HU = 15.0
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
EVEN = [5.0] * 13
THIN_THEN_THICK = [2.5] * 8 + [5.0] * 6
"""Thin slices through the base of the skull, thick ones above: the spacing changes inside the series."""
CLUTTERED = ("localizer", "secondary_capture", "rgb_summary", "dose_report", "clutter")


def hu_at(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """HU at RAS+ mm: a head-sized ellipsoid in air, with waves that are nowhere alike and have no mirror plane.

    A head's contrast per millimetre, and more: half a millimetre off is more than 15 HU in a large share of the voxels.
    """
    radius = np.sqrt((x / 70) ** 2 + (y / 85) ** 2 + (z / 75) ** 2)
    inside = 0.5 * (1 + np.tanh((1 - radius) / 0.04))
    waves = 260 * np.sin(x / 7 + 0.3) + 230 * np.sin(y / 9 + z / 13) + 240 * np.cos(z / 6 - x / 23)
    return -1000 + inside * (1600 + waves)


def sampled(geometry: SliceGeometry) -> np.ndarray:
    """HU at the centre of every voxel, by the equation of PS3.3 C.7.6.2.1.1."""
    rows, columns = np.indices(geometry.shape)[..., None]
    between_rows, between_columns = geometry.pixel_spacing_mm
    in_plane = rows * between_rows * geometry.column_direction + columns * between_columns * geometry.row_direction
    ras = (geometry.positions_mm[:, None, None] + in_plane) * LPS_TO_RAS
    return hu_at(ras[..., 0], ras[..., 1], ras[..., 2])


def share_off(volume: Volume, *, moved_mm: tuple[float, float, float] = (0, 0, 0), least_hu: float = -1024) -> float:
    """Share of voxels that differ from the formula at their claimed position by more than the tolerance."""
    rows, columns = np.indices(volume.hu.shape[1:])[..., None]
    steps = volume.slice_steps_mm[:, None, None]
    claimed = volume.slice_positions_mm[:, None, None] + rows * steps[..., 0] + columns * steps[..., 1]
    claimed = claimed + np.array(moved_mm)
    expected = np.maximum(hu_at(claimed[..., 0], claimed[..., 1], claimed[..., 2]), least_hu)
    return float((np.abs(volume.hu - expected) > TOLERANCE_HU).mean())


def written(folder: Path, geometry: SliceGeometry, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, sampled(geometry), geometry, DicomOptions(**{"seed": 3, **options}))


def assert_bar(folder: Path, geometry: SliceGeometry, *, least_hu: float = -1024, **options: Any) -> None:
    """Nothing off; no slice lost, doubled or made up; each slice where its own header puts it, under its own name."""
    truth = written(folder, geometry, **options)
    volume = read_volume(folder)
    assert share_off(volume, least_hu=least_hu) == 0
    images = {(image.sop_instance_uid, image.frame_number): image for image in truth.images}
    shown = [images[image.sop_instance_uid, image.frame_number] for image in volume.source.images]
    assert [image.slice_index for image in shown] == [image.slice_index for image in truth.used]
    assert sorted(volume.hu.shape[1:]) == sorted(geometry.shape)
    assert_canonical(volume)
    for image, position_mm in zip(shown, volume.slice_positions_mm, strict=True):
        assert image.plane is not None
        corners = image.plane.voxel_positions_mm[[0, 0, -1, -1], [0, -1, 0, -1]] * LPS_TO_RAS
        assert np.linalg.norm(corners - position_mm, axis=1).min() < 1e-6


def assert_canonical(volume: Volume) -> None:
    """Slices run upwards, rows to the back, columns to the patient's left."""
    assert (np.diff(volume.slice_positions_mm[:, 2]) > 0).all()
    assert (np.abs(volume.slice_steps_mm).argmax(axis=1) == [1, 0]).all()
    assert (volume.slice_steps_mm[:, [1, 0], [0, 1]] < 0).all()


TILTS = pytest.mark.parametrize("tilt_degrees", [18.0, -18.0, 0.0], ids=["tilted", "tilted back", "straight"])
FAULTS: dict[str, dict[str, Any]] = {
    "sound": {},
    "a missing slice": {"missing_slices": (6,)},
    "two gaps, one of two slices": {"missing_slices": (3, 8, 9)},
    "a localizer inside": {"companions": ("localizer",)},
    "captures, a dose report and clutter": {"companions": CLUTTERED},
    "files copied under other names": {"copied_slices": (0, 5, 13)},
    "slices repeated under new UIDs": {"repeated_slices": (0, 5, 13)},
    "headers as bare as RSNA's": {"header": "stripped", "names": "sop_uid"},
    "coronal images inside": {"n_coronal": 4},
    "shuffled names and numbers": {"names": "shuffled", "instance_numbers": "shuffled", "extension": ""},
    "one instance number for all": {"instance_numbers": "constant", "names": "shuffled"},
    "no instance numbers": {"instance_numbers": "absent", "names": "shuffled"},
}
PIXELS: dict[str, dict[str, Any]] = {
    "12-bit unsigned": {"pixels": "unsigned12"},
    "16-bit unsigned": {"pixels": "unsigned16"},
    "slope and intercept of each slice": {"rescale": "per_slice"},
    "slope and intercept of each slice in 12 bits": {"rescale": "per_slice", "pixels": "unsigned12"},
    "RSNA's wrapped values": {"pixels": "wrapped12", "header": "stripped", "names": "sop_uid"},
    "RSNA's wrapped values under a full header": {"pixels": "wrapped12"},
    "padding of -1500 HU": {"padding_value": -476},
    "padding of -2000 HU that no header tells": {"padding_value": -976, "is_padding_declared": False},
    "padding of -3024 HU": {"padding_value": -2000},
    "a range of padding": {"padding_value": -2000, "padding_limit": -1500},
    "a range of padding that ends above -1024 HU": {"intercept": -1200.0, "padding_value": -100, "padding_limit": 180},
    "padding of 0 in unsigned values": {"padding_value": 0, "pixels": "unsigned12"},
}
CONTAINERS: dict[str, dict[str, Any]] = {
    "no extension": {"extension": ""},
    "another extension": {"extension": ".IMA"},
    "no preamble": {"container": "no_preamble"},
    "a bare data set, implicit": {"container": "bare", "transfer_syntax": "implicit"},
    "a bare data set, explicit": {"container": "bare", "transfer_syntax": "explicit", "extension": ""},
}
EVERYTHING: dict[str, Any] = {
    "missing_slices": (6,),
    "copied_slices": (2, 9),
    "repeated_slices": (2, 4, 14),
    "n_coronal": 3,
    "companions": CLUTTERED,
    "names": "shuffled",
    "instance_numbers": "shuffled",
    "extension": "",
}


@TILTS
@pytest.mark.parametrize("options", FAULTS.values(), ids=FAULTS.keys())
def test_no_voxel_is_off_whatever_the_fault(tmp_path: Path, options: dict[str, Any], tilt_degrees: float) -> None:
    assert_bar(tmp_path, axial_geometry(EVEN, tilt_degrees=tilt_degrees), **options)


@TILTS
@pytest.mark.parametrize("header", ["full", "stripped"])
def test_no_voxel_is_off_where_the_spacing_changes(tmp_path: Path, header: str, tilt_degrees: float) -> None:
    assert_bar(tmp_path, axial_geometry(THIN_THEN_THICK, tilt_degrees=tilt_degrees), header=header)


@TILTS
@pytest.mark.parametrize("header", ["full", "stripped"])
@pytest.mark.parametrize("pixels", ["signed16", "wrapped12"])
def test_no_voxel_is_off_with_every_fault_at_once(
    tmp_path: Path, header: str, pixels: str, tilt_degrees: float
) -> None:
    geometry = axial_geometry(THIN_THEN_THICK, tilt_degrees=tilt_degrees)
    assert_bar(tmp_path, geometry, header=header, pixels=pixels, **EVERYTHING)


@pytest.mark.parametrize("options", PIXELS.values(), ids=PIXELS.keys())
def test_no_voxel_is_off_however_values_are_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_bar(tmp_path, axial_geometry(EVEN, tilt_degrees=18.0), **options)


def test_no_voxel_is_off_through_a_modality_lut(tmp_path: Path) -> None:
    """A LUT's outputs are never negative, so that everything below water reads as 0."""
    geometry = axial_geometry(EVEN, tilt_degrees=18.0)
    assert_bar(tmp_path, geometry, pixels="unsigned12", rescale="lut", least_hu=0)


@pytest.mark.parametrize("options", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_no_voxel_is_off_in_any_container(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_bar(tmp_path, axial_geometry(EVEN, tilt_degrees=-18.0), **options)


@TILTS
def test_no_voxel_is_off_in_images_that_are_turned(tmp_path: Path, tilt_degrees: float) -> None:
    assert_bar(tmp_path, axial_geometry(EVEN, tilt_degrees=tilt_degrees, is_turned=True))


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)], ids=str)
@pytest.mark.parametrize("is_transposed", [False, True], ids=["rows across", "rows down"])
def test_no_voxel_is_off_in_any_of_the_eight_ways_to_store_a_slice(
    tmp_path: Path, corner: tuple[int, int], is_transposed: bool
) -> None:
    upright = axial_geometry(EVEN, (72, 56), pixel_spacing_mm=(2.75, 3.25), tilt_degrees=18.0)
    assert_bar(tmp_path, stored_from(upright, corner, is_transposed), missing_slices=(6,))


def stored_from(geometry: SliceGeometry, corner: tuple[int, int], is_transposed: bool) -> SliceGeometry:
    """The same slices, stored from another corner of theirs and, transposed, along the other side first."""
    firsts = [geometry.plane(k).voxel_positions_mm[corner] for k in range(len(geometry.positions_mm))]
    down = geometry.column_direction * (1 if corner[0] == 0 else -1)
    across = geometry.row_direction * (1 if corner[1] == 0 else -1)
    turn = -1 if is_transposed else 1
    return replace(
        geometry,
        positions_mm=np.round(firsts, 6),
        row_direction=(across, down)[::turn][0],
        column_direction=(across, down)[::turn][1],
        pixel_spacing_mm=geometry.pixel_spacing_mm[::turn],
        shape=geometry.shape[::turn],
    )


@settings(max_examples=20)
@given(
    angles=st.tuples(*[st.floats(-14, 14)] * 3),  # together with the shear below the 45 degrees that are refused
    shear=st.floats(-0.3, 0.3),
    spacings_mm=st.lists(st.floats(0.6, 9), min_size=2, max_size=12),
)
def test_no_voxel_is_off_in_any_oblique_and_uneven_stack(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, float, float], shear: float, spacings_mm: list[float]
) -> None:
    geometry = axial_geometry(spacings_mm)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    sheared = geometry.positions_mm + geometry.positions_mm[:, 2:] * [0, shear, 0]
    turned = replace(
        geometry,
        positions_mm=np.round(sheared @ rotation.T, 6),
        row_direction=np.round(rotation @ geometry.row_direction, 9),
        column_direction=np.round(rotation @ geometry.column_direction, 9),
    )
    assert_bar(tmp_path_factory.mktemp("oblique"), turned, names="shuffled")


def test_no_voxel_is_off_in_pixels_and_images_that_are_no_squares(tmp_path: Path) -> None:
    spacing_mm, centre_mm = (2.75, 3.25), (4.5, -11.25, 6.0)
    assert_bar(tmp_path, axial_geometry(EVEN, (72, 56), pixel_spacing_mm=spacing_mm, centre_mm=centre_mm))


@pytest.mark.parametrize("pixels", ["signed16", "unsigned12"])
@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
def test_no_voxel_is_off_in_any_transfer_syntax(tmp_path: Path, transfer_syntax: str, pixels: str) -> None:
    geometry = axial_geometry(EVEN, tilt_degrees=18.0)
    assert_bar(tmp_path, geometry, transfer_syntax=transfer_syntax, pixels=pixels, missing_slices=(6,))


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_no_voxel_is_off_in_a_multi_frame_object(tmp_path: Path, layout: str, transfer_syntax: str) -> None:
    geometry = axial_geometry(THIN_THEN_THICK, tilt_degrees=18.0)
    assert_bar(
        tmp_path, geometry, layout=layout, transfer_syntax=transfer_syntax, names="shuffled", missing_slices=(6,)
    )


@TILTS
@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_no_voxel_is_off_in_a_multi_frame_object_with_every_fault(
    tmp_path: Path, layout: str, tilt_degrees: float
) -> None:
    geometry = axial_geometry(THIN_THEN_THICK, tilt_degrees=tilt_degrees)
    assert_bar(tmp_path, geometry, layout=layout, rescale="per_slice", **EVERYTHING)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["right", "front", "up"])
def test_the_truth_notices_half_a_millimetre(tmp_path: Path, axis: int) -> None:
    """The bar can be missed: positions claimed half a millimetre off are voxels off, in every direction."""
    written(tmp_path, axial_geometry(EVEN, tilt_degrees=18.0))
    moved = [0.0, 0.0, 0.0]
    moved[axis] = 0.5
    assert share_off(read_volume(tmp_path), moved_mm=(moved[0], moved[1], moved[2])) > 0.02
