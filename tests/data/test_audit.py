from __future__ import annotations

from dataclasses import replace

import pytest

from meddinov3_stroke.data import SeriesDigests, audit_pixels
from meddinov3_stroke.errors import SplitError

ONE = SeriesDigests(row=2, group="patient:a", split="train", file_sha256="f1", pixels_sha256="p1")
OTHER = SeriesDigests(row=3, group="patient:b", split="test", file_sha256="f2", pixels_sha256="p2")


def test_distinct_volumes_pass_in_silence() -> None:
    assert audit_pixels([ONE, OTHER]) == ()


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_pixels_under_two_patients_are_an_error_naming_rows(split: str) -> None:
    with pytest.raises(SplitError, match=rf"rows 2 \(train\) and 3 \({split}\)"):
        audit_pixels([ONE, replace(OTHER, split=split, pixels_sha256="p1")])


def test_the_same_file_under_two_patients_is_an_error() -> None:
    with pytest.raises(SplitError, match="rows 2"):
        audit_pixels([ONE, replace(OTHER, file_sha256="f1")])


def test_copies_within_a_patient_are_only_warned_of() -> None:
    (warning,) = audit_pixels([ONE, replace(ONE, row=9), OTHER])
    assert "2 (train) and 9 (train)" in warning
