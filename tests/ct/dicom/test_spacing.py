"""How slices lie: gaps, missing slices and tilt, as they are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_writer import DicomOptions, SliceGeometry, axial_geometry, write_dicom_series
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.layout import SliceLayout, layout_of
from meddinov3_stroke.ct.dicom.survey import survey


def layout(folder: Path, geometry: SliceGeometry, *missing: int) -> SliceLayout:
    hu = np.random.default_rng(0).integers(0, 90, (len(geometry.positions_mm), *geometry.shape))
    write_dicom_series(folder, hu, geometry, DicomOptions(missing_slices=missing, names="shuffled"))
    with open_files(folder) as files:
        (stack,) = survey(files).stacks
    return layout_of(stack)


def test_an_even_straight_stack_has_nothing_to_tell(tmp_path: Path) -> None:
    found = layout(tmp_path, axial_geometry([5.0] * 9, (4, 5)))
    assert found.notes == ()
    assert (found.nominal_mm, len(found.runs)) == (5.0, 1)


def test_positions_rounded_to_a_hundredth_are_even(tmp_path: Path) -> None:
    geometry = axial_geometry([1.0] * 30, (4, 5))
    noise = np.random.default_rng(1).uniform(-0.005, 0.005, geometry.positions_mm.shape)
    rounded = replace(geometry, positions_mm=np.round(geometry.positions_mm + noise * [0, 0, 1], 3))
    assert len(layout(tmp_path, rounded).runs) == 1


def test_runs_of_gaps_are_told_from_inferior_to_superior(tmp_path: Path) -> None:
    found = layout(tmp_path, axial_geometry([2.5] * 4 + [5.0] * 3, (4, 5)))
    assert found.notes == (
        "slices are not evenly spaced: gaps 2.500 mm x4, 5.000 mm x3; each slice keeps its own position",
    )
    assert found.nominal_mm == 2.5
    assert [(run.after_slice, run.n_gaps) for run in found.runs] == [(0, 4), (4, 3)]


@pytest.mark.parametrize(
    ("missing", "notes"),
    [
        ((4,), ["a slice may be missing after slice 3 (Instance Number 4)"]),
        ((4, 5), ["2 slices may be missing after slice 3 (Instance Number 4)"]),
        (
            (2, 6, 7),
            [
                "a slice may be missing after slice 1 (Instance Number 2)",
                "2 slices may be missing after slice 4 (Instance Number 5)",
            ],
        ),
        ((8,), ["a slice may be missing after slice 7 (Instance Number 8)"]),
    ],
    ids=str,
)
def test_missing_slices_are_told_with_their_place(tmp_path: Path, missing: tuple[int, ...], notes: list[str]) -> None:
    assert list(layout(tmp_path, axial_geometry([5.0] * 9, (4, 5)), *missing).notes[1:]) == notes


def test_a_missing_end_leaves_nothing_to_tell(tmp_path: Path) -> None:
    assert layout(tmp_path, axial_geometry([5.0] * 9, (4, 5)), 9).notes == ()


def test_a_change_of_spacing_is_no_missing_slice(tmp_path: Path) -> None:
    assert "missing" not in str(layout(tmp_path, axial_geometry([2.5] * 4 + [5.0] * 3, (4, 5))).notes)


def test_many_runs_are_cut_short(tmp_path: Path) -> None:
    (note,) = layout(tmp_path, axial_geometry([2.0, 2.5] * 5, (4, 5))).notes
    assert note.count("mm x1") == 6
    assert ", ...;" in note


@pytest.mark.parametrize("tilt_degrees", [18.5, -18.5, 0.5, -25.0])
@pytest.mark.parametrize("is_turned", [False, True], ids=["upright", "turned"])
def test_a_tilt_has_the_sign_and_size_of_the_gantrys(tmp_path: Path, tilt_degrees: float, is_turned: bool) -> None:
    found = layout(tmp_path, axial_geometry([5.0] * 5, (4, 5), tilt_degrees=tilt_degrees, is_turned=is_turned))
    assert found.tilt_degrees == pytest.approx(tilt_degrees, abs=1e-4)
    assert found.notes == (f"gantry tilt of {tilt_degrees:+.1f} degrees; slices stay as acquired",)


def test_gaps_of_a_tilted_stack_are_measured_along_its_normal(tmp_path: Path) -> None:
    found = layout(tmp_path, axial_geometry([5.0] * 5, (4, 5), tilt_degrees=18.0))
    assert found.nominal_mm == pytest.approx(5 * np.cos(np.radians(18)), abs=1e-5)


def test_rounding_of_directions_is_no_tilt(tmp_path: Path) -> None:
    assert layout(tmp_path, axial_geometry([5.0] * 5, (4, 5), tilt_degrees=0.05)).notes == ()


def test_the_thickness_of_a_single_image_stands_for_its_spacing(tmp_path: Path) -> None:
    assert layout(tmp_path, replace(axial_geometry([], (4, 5)), thickness_mm=3.5)).nominal_mm == 3.5
