from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import axial_geometry, write_dicom_series
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data import parse_column_mapping, read_series_table
from meddinov3_stroke.errors import MissingInput, SeriesTableError
from meddinov3_stroke.types import LABELS, VolumeInput

Write = Callable[..., Path]

NO_LABELS = ",0,0,0,0,0,0"


def header(*columns: str) -> str:
    return ",".join((*columns, "study_uid", "series_uid", *LABELS))


def test_a_row_may_name_a_dicom_folder_and_its_series(series_csv: Write, tmp_path: Path) -> None:
    rows = [f"{cells}{NO_LABELS}" for cells in ("study one,S1,1.2.3", "study two,S2,", "study one,S1,1.2.4#2")]
    one, two, three = read_series_table(series_csv(*rows, header=header("dicom_path"))).inputs
    assert (one, two) == (VolumeInput(tmp_path / "study one", "1.2.3"), VolumeInput(tmp_path / "study two"))
    assert three == VolumeInput(tmp_path / "study one", "1.2.4#2")


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


def _nifti_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    nib.save(nib.Nifti1Image(hu, np.diag([-0.5, -0.5, 5.0, 1.0])), path)
    return path


@pytest.mark.parametrize("text", [r"sub\b.nii", r".\sub\b.nii", r"sub\.\b.nii", r"sub/b.nii"])
@pytest.mark.parametrize("with_datasets_dir", [False, True])
def test_a_path_with_backslashes_is_read_where_the_file_exists(
    series_csv: Write, tmp_path: Path, text: str, with_datasets_dir: bool
) -> None:
    folder = tmp_path / "data" if with_datasets_dir else tmp_path
    path = _nifti_at(folder / "sub" / "b.nii")
    csv = series_csv(f"{text},S1,7" + NO_LABELS, header=header("nifti_path"))
    (found,) = read_series_table(csv, datasets_dir=folder if with_datasets_dir else None).inputs
    assert found is not None
    assert found.path.samefile(path)
    assert read_volume(found).hu.sum() == np.arange(120).sum()


def test_a_file_whose_name_has_a_backslash_comes_first(series_csv: Write, tmp_path: Path) -> None:
    _nifti_at(tmp_path / "sub" / "b.nii")
    named = _nifti_at(tmp_path / r"sub\b.nii")
    table = read_series_table(series_csv(r"sub\b.nii,S1,7" + NO_LABELS, header=header("nifti_path")))
    assert table.inputs == (VolumeInput(named, format="nifti"),)


@pytest.mark.parametrize("text", ["D:\\a\\P1\\b.nii", "d:/a/P1/b.nii", r"\\server\share\P1\b.nii"])
def test_a_path_of_another_machine_is_named_and_its_advice_works(series_csv: Write, tmp_path: Path, text: str) -> None:
    rows = ["here.nii,S0,6" + NO_LABELS, f"{text},S1,7" + NO_LABELS]
    with pytest.raises(SeriesTableError, match=r"paths of a Windows machine.*P1.*row 3;.*DATASETS_DIR") as caught:
        read_series_table(series_csv(*rows, header=header("nifti_path")))
    assert text in str(caught.value)
    path = _nifti_at(tmp_path / "copied" / "P1" / "b.nii")
    csv = series_csv(rows[0], r"P1\b.nii,S1,7" + NO_LABELS, header=header("nifti_path"))
    found = read_series_table(csv, datasets_dir=tmp_path / "copied").inputs[1]
    assert found == VolumeInput(path, format="nifti")


def test_a_dicom_folder_named_as_a_volume_belongs_under_dicom_path(series_csv: Write, tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2500, (4, 9, 11))
    write_dicom_series(tmp_path / "x.nii", hu, axial_geometry([5.0] * 3, (9, 11)))
    under_nifti = read_series_table(series_csv("x.nii,S1," + NO_LABELS, header=header("nifti_path"))).inputs[0]
    with pytest.raises(MissingInput, match="a DICOM folder belongs under dicom_path"):
        read_volume(under_nifti)  # type: ignore[arg-type]
    (found,) = read_series_table(series_csv("x.nii,S1," + NO_LABELS, header=header("dicom_path"))).inputs
    np.testing.assert_array_equal(read_volume(found).hu, hu)  # type: ignore[arg-type]


def test_a_nifti_file_under_dicom_path_is_an_error(series_csv: Write, tmp_path: Path) -> None:
    _nifti_at(tmp_path / "x.nii")
    with pytest.raises(SeriesTableError, match="a NIfTI file under dicom_path or header_index in row 2"):
        read_series_table(series_csv("x.nii,S1," + NO_LABELS, header=header("dicom_path")))
