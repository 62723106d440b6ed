from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke.data import parse_column_mapping, read_series_table
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.types import LABELS, VolumeInput

Write = Callable[..., Path]

NO_LABELS = ",0,0,0,0,0,0"


def header(*columns: str) -> str:
    return ",".join((*columns, "study_uid", "series_uid", *LABELS))


def test_a_row_may_name_a_dicom_folder_and_its_series(series_csv: Write, tmp_path: Path) -> None:
    csv = series_csv("study one,S1,1.2.3" + NO_LABELS, "study two,S2," + NO_LABELS, header=header("dicom_path"))
    table = read_series_table(csv)
    assert table.inputs == (VolumeInput(tmp_path / "study one", "1.2.3"), VolumeInput(tmp_path / "study two"))


def test_an_index_holds_many_series_and_a_row_is_one_of_them(series_csv: Write, tmp_path: Path) -> None:
    rows = [f"header_index.parquet,S{k},ID_{k}" + NO_LABELS for k in range(3)]
    table = read_series_table(series_csv(*rows, header=header("header_index")))
    assert table.inputs == tuple(VolumeInput(tmp_path / "header_index.parquet", f"ID_{k}") for k in range(3))


def test_a_nifti_file_keeps_its_series_as_a_key_only(series_csv: Write, tmp_path: Path) -> None:
    table = read_series_table(series_csv("a.nii,S1,77" + NO_LABELS, header=header("nifti_path")))
    assert table.inputs == (VolumeInput(tmp_path / "a.nii", format="nifti"),)
    assert table.frame["series_uid"].tolist() == ["77"]


def test_one_table_may_mix_the_three(series_csv: Write) -> None:
    rows = [f"{cells},S{k},{k}" + NO_LABELS for k, cells in enumerate(("a.nii,,", ",b,", ",,c.parquet", ",,"))]
    table = read_series_table(series_csv(*rows, header=header("nifti_path", "dicom_path", "header_index")))
    named = [one and (one.path.name, one.series_uid, one.format) for one in table.inputs]
    assert named == [("a.nii", None, "nifti"), ("b", "1", None), ("c.parquet", "2", None), None]


def test_a_row_that_names_two_volumes_is_an_error_with_its_row(series_csv: Write) -> None:
    rows = ("a.nii,,S0,0" + NO_LABELS, "a.nii,b,S1,1" + NO_LABELS)
    with pytest.raises(SeriesTableError, match="more than one volume named in row 3"):
        read_series_table(series_csv(*rows, header=header("nifti_path", "dicom_path")))


def test_an_index_without_a_series_is_an_error_with_its_row(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match=r"no series_uid in row 2"):
        read_series_table(series_csv("c.parquet,S0," + NO_LABELS, header=header("header_index")))


def test_a_table_without_any_of_the_three_lists_them(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match=r"lacks nifti_path; .* needed nifti_path or dicom_path or header_index"):
        read_series_table(series_csv("x,S0,0" + NO_LABELS, header=header("file")))


def test_a_dicom_row_without_study_is_an_error(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match="no study_uid in row 2"):
        read_series_table(series_csv("P/S/_1,,7" + NO_LABELS, header=header("dicom_path")))


def test_a_column_may_be_mapped_to_dicom_path(series_csv: Write, tmp_path: Path) -> None:
    csv = series_csv("scan.zip,S1,1.2.3" + NO_LABELS, header=header("Folder"))
    table = read_series_table(csv, columns=parse_column_mapping("dicom_path=folder"))
    assert table.inputs == (VolumeInput(tmp_path / "scan.zip", "1.2.3"),)


def test_the_same_series_of_an_index_twice_is_taken_once(series_csv: Write) -> None:
    row = "c.parquet,S0,7" + NO_LABELS
    table = read_series_table(series_csv(row, row, header=header("header_index")))
    assert len(table) == 1
    assert "row 3" in table.warnings[0]


def test_the_same_series_of_an_index_with_other_labels_is_an_error(series_csv: Write) -> None:
    rows = ("c.parquet,S0,7,0,0,0,0,0,0", "c.parquet,S0,7,1,1,0,0,0,0")
    with pytest.raises(SeriesTableError, match=r"rows 2, 3 name the same file .*c\.parquet \(series 7\)"):
        read_series_table(series_csv(*rows, header=header("header_index")))


def test_nifti_under_dicom_path_is_an_error_with_its_row(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match=r"row 2; it belongs under nifti_path"):
        read_series_table(series_csv("a.NII.gz,S0,7" + NO_LABELS, header=header("dicom_path")))


def test_a_file_name_with_braces_is_named_as_it_is(series_csv: Write) -> None:
    csv = series_csv("a.NII.gz,S0,7" + NO_LABELS, header=header("dicom_path"))
    named = csv.rename(csv.with_name("{0}{rows}.csv"))
    with pytest.raises(SeriesTableError, match=r"^\{0\}.*\.csv: a NIfTI file .* row 2;"):
        read_series_table(named)
