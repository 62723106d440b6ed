"""Who is calibrated on and who is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.commands.calibrate import Args, _volumes, hold_out
from meddinov3_stroke.errors import DatasetError

cohorts = st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda groups: len(set(groups)) > 1)
shares = st.floats(0.01, 0.99)


def names(groups: list[int]) -> list[str]:
    return [f"patient:{group}" for group in groups]


@given(cohorts, shares, st.integers(0, 5))
def test_no_patient_is_on_both_sides_and_no_volume_is_lost(groups: list[int], share: float, seed: int) -> None:
    calibration, check = hold_out(names(groups), share, seed)
    assert {groups[k] for k in calibration}.isdisjoint(groups[k] for k in check)
    assert sorted(calibration + check) == list(range(len(groups)))


@given(cohorts, shares)
def test_both_sides_have_a_patient_whatever_the_share(groups: list[int], share: float) -> None:
    assert all(hold_out(names(groups), share, seed=0))


def test_the_share_is_of_patients() -> None:
    _, check = hold_out(names(list(range(10))), 0.3, seed=0)
    assert len(check) == 3


def test_the_seed_decides_who_is_held_out() -> None:
    def drawn(seed: int) -> list[int]:
        return hold_out(names(list(range(20))), 0.5, seed)[1]

    assert drawn(1) == drawn(1) != drawn(2)


def test_one_patient_cannot_be_held_out() -> None:
    with pytest.raises(DatasetError, match="at least 2 patients, found 1"):
        hold_out(names([3, 3, 3]), 0.3, seed=0)


def test_the_same_file_named_twice_is_one_patient(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    _, groups, _ = _volumes(Args(input=(path, tmp_path / "." / "a.nii.gz")))
    assert len(groups) == 2
    assert len(set(groups)) == 1
