from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke.data import parse_column_mapping, read_series_table
from meddinov3_stroke.errors import SeriesTableError, UsageError
from meddinov3_stroke.types import LABELS


def test_a_mapping_is_read_pair_by_pair() -> None:
    assert parse_column_mapping(" nifti_path=path, patient_id = Patient ID ,") == {
        "nifti_path": "path",
        "patient_id": "Patient ID",
    }


@pytest.mark.parametrize("text", [None, "", " , "])
def test_no_mapping_is_empty(text: str | None) -> None:
    assert parse_column_mapping(text) == {}


@pytest.mark.parametrize("text", ["path", "path=", "unknown=x", "any=a,any=b", "=x"])
def test_a_mapping_of_another_form_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--columns"):
        parse_column_mapping(text)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/nii_1mm/ID_0a0ba0944f/ID_5d5fb15098/_1530143486.nii.gz", ("ID_0a0ba0944f", "ID_5d5fb15098", "1530143486")),
        ("ID_p/ID_s/_1.nii", ("ID_p", "ID_s", "1")),
        ("data\\ID_p\\ID_s\\_1.nii.gz", ("ID_p", "ID_s", "1")),
        ("ID_p/ID_s/_1.NII.GZ", ("ID_p", "ID_s", "1")),
        ("x/.//ID_p//./ID_s/./_1.nii.gz/", ("ID_p", "ID_s", "1")),
        ("x/ID_p/../_1.nii.gz", None),
        ("ID_p/ID_s/1.nii.gz", None),
        ("ID_s/_1.nii.gz", None),
        ("/ID_s/_1.nii.gz", None),
        ("../ID_s/_1.nii.gz", None),
        ("ID_p/ID_s/_.nii.gz", None),
        ("ID_p/ID_s/_1.dcm", None),
        ("", None),
    ],
)
def test_the_path_names_patient_study_and_series(
    series_csv: Callable[..., Path], path: str, expected: tuple[str, str, str] | None
) -> None:
    csv = series_csv(f"{path},0,0,0,0,0,0", header=",".join(["nifti_path", *LABELS]))
    if path and expected is None:
        with pytest.raises(SeriesTableError, match="no study_uid in row 2"):
            read_series_table(csv)
    else:
        row = read_series_table(csv).frame.loc[0, ["patient_id", "study_uid", "series_uid"]]
        assert tuple(row) == (expected or ("", "row-2", ""))
