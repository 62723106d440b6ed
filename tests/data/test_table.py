from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke.data import read_series_table
from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.types import LABELS

Write = Callable[..., Path]

HEADER = "nifti_path,study_uid,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural"
PLAIN = ("ID_a/ID_s1/_1.nii.gz,ID_s1,1,0,1,0,0,0", "ID_b/ID_s2/_2.nii.gz,ID_s2,0,0,0,0,0,0")


def test_a_plain_table_is_read_row_for_row(series_csv: Write) -> None:
    table = read_series_table(series_csv(*PLAIN))
    np.testing.assert_array_equal(table.labels, [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert table.rows == [2, 3]
    assert table.frame["patient_id"].tolist() == ["ID_a", "ID_b"]
    assert table.frame["series_uid"].tolist() == ["1", "2"]
    assert table.warnings == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_chinese_paths_with_spaces_are_read_in_each_encoding(series_csv: Write, encoding: str, newline: str) -> None:
    row = "数据 集/病人 甲/检查一/_12.nii.gz,检查一,0,0,0,0,0,0"
    table = read_series_table(series_csv(row, encoding=encoding, newline=newline))
    assert table.frame["nifti_path"].tolist() == ["数据 集/病人 甲/检查一/_12.nii.gz"]
    assert table.frame["patient_id"].tolist() == ["病人 甲"]


def test_gbk_is_said_to_have_been_read(series_csv: Write) -> None:
    (warning,) = read_series_table(series_csv("病/甲/_1.nii.gz,甲,0,0,0,0,0,0", encoding="gbk")).warnings
    assert "GBK" in warning


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"\xff\xfen\x00i\x00", "UTF-16"),
        (b"PK\x03\x04\x00\x00", "NUL"),
        (b"nifti_path,any\n\xff\xff\xff,1\n", "neither UTF-8"),
        (b"nifti_path,study_uid,any\n", "no rows"),
        (b"nifti_path;study_uid;any\na;b;1\n", "semicolons"),
        (b"nifti_path\tstudy_uid\tany\na\tb\t1\n", "tabs"),
        (b"a,b\n1,2\n1,2,3\n", "row 3 has 3 cells, expected 2"),
        (b"any,any\n1,2\n", "same name"),
    ],
)
def test_a_file_that_is_no_comma_separated_utf8_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "series.csv"
    path.write_bytes(content)
    with pytest.raises(SeriesTableError, match=words):
        read_series_table(path)


def test_a_missing_csv_is_a_data_set_error(tmp_path: Path) -> None:
    with pytest.raises(SeriesTableError, match="found nothing"):
        read_series_table(tmp_path / "absent.csv")


def test_missing_columns_are_listed_with_what_was_found(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match=r"lacks nifti_path, subdural; found path, study_uid"):
        read_series_table(
            series_csv("x", header="path,study_uid,any,epidural,intraparenchymal,intraventricular,subarachnoid")
        )


def test_columns_are_matched_in_any_case_and_by_the_mapping(series_csv: Write) -> None:
    header = "Path,STUDY_UID,PatientID,Any,Epidural,Intraparenchymal,Intraventricular,Subarachnoid,Subdural"
    csv = series_csv("x.nii.gz,s,p,1,1,0,0,0,0", header=header)
    table = read_series_table(csv, columns={"nifti_path": "path", "patient_id": "PatientID"})
    assert table.frame.loc[0, ["nifti_path", "study_uid", "patient_id"]].tolist() == ["x.nii.gz", "s", "p"]


def test_a_mapped_column_that_is_not_there_is_an_error(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match="patient_id"):
        read_series_table(series_csv(*PLAIN), columns={"patient_id": "PatientID"})


def test_two_columns_that_differ_in_case_only_are_ambiguous(series_csv: Write) -> None:
    header = "nifti_path,Study_UID,STUDY_UID," + ",".join(LABELS)
    with pytest.raises(SeriesTableError, match="could be Study_UID or STUDY_UID"):
        read_series_table(series_csv("x,a,b,0,0,0,0,0,0", header=header))


@pytest.mark.parametrize("spelling", ["0.5", "2", "", "NaN", "nan", "-1", "yes", "1e0", "01", "1,0", "T", "True.0"])
def test_a_label_that_is_not_0_or_1_names_its_row_and_value(series_csv: Write, spelling: str) -> None:
    cell = f'"{spelling}"'
    with pytest.raises(LabelError, match=r"epidural holds .* row 3;") as caught:
        read_series_table(series_csv(PLAIN[0], f"x/y/_1.nii.gz,y,1,{cell},1,0,0,0"))
    assert repr(spelling) in str(caught.value)


@pytest.mark.parametrize(("spelling", "value"), [("1", 1), ("0", 0), ("1.0", 1), ("0.0", 0), ("1.", 1), (" 1 ", 1)])
def test_whole_numbers_are_read_in_each_spelling(series_csv: Write, spelling: str, value: int) -> None:
    table = read_series_table(series_csv(f"x/y/_1.nii.gz,y,1,{spelling},1,0,0,0"))
    assert table.labels[0, 1] == value


def test_rows_are_those_of_the_file_also_behind_blank_lines(series_csv: Write) -> None:
    with pytest.raises(LabelError, match="row 5"):
        read_series_table(series_csv(PLAIN[0], "", ",,,,,,,", "x/y/_1.nii.gz,y,0,0,3,0,0,0"))


def test_any_that_is_not_the_or_stops_with_its_rows(series_csv: Write) -> None:
    with pytest.raises(LabelError, match=r"row 2\b.*--label-policy"):
        read_series_table(series_csv("x/y/_1.nii.gz,y,0,1,0,0,0,0"))


@pytest.mark.parametrize(("policy", "expected"), [("fix-any", 1), ("ignore", 0)])
def test_the_label_policy_decides_about_any_and_says_so(series_csv: Write, policy: str, expected: int) -> None:
    table = read_series_table(series_csv("x/y/_1.nii.gz,y,0,1,0,0,0,0"), label_policy=policy)
    assert table.labels[0, 0] == expected
    assert "row 2" in table.warnings[0]


def test_identical_rows_are_taken_once_and_reported(series_csv: Write) -> None:
    table = read_series_table(series_csv(*PLAIN, PLAIN[0]))
    assert table.rows == [2, 3]
    assert "row 4" in table.warnings[0]


def test_the_same_file_with_other_labels_is_an_error_with_both_rows(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match="rows 2, 4"):
        read_series_table(series_csv(*PLAIN, PLAIN[0].replace(",1,0,1,", ",1,1,1,")))


def test_the_same_series_with_other_labels_is_an_error_with_both_rows(series_csv: Write) -> None:
    other = "elsewhere/" + PLAIN[0].replace(",1,0,1,", ",1,1,1,")
    with pytest.raises(SeriesTableError, match="rows 2, 4"):
        read_series_table(series_csv(*PLAIN, other))


def test_a_relative_path_is_taken_from_datasets_dir_then_from_the_csv(series_csv: Write, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets"
    for path in (datasets / "both.nii", tmp_path / "both.nii", tmp_path / "here.nii"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    rows = [f"{name},s{k},0,0,0,0,0,0" for k, name in enumerate(("both.nii", "here.nii", "none.nii", "/abs/x.nii"))]
    table = read_series_table(series_csv(*rows), datasets_dir=datasets)
    paths = [one.path for one in table.inputs if one is not None]
    assert paths == [datasets / "both.nii", tmp_path / "here.nii", datasets / "none.nii", Path("/abs/x.nii")]


def test_an_empty_path_is_no_path_and_never_the_folder(series_csv: Write, tmp_path: Path) -> None:
    table = read_series_table(series_csv(",,0,0,0,0,0,0", ",,0,0,0,0,0,0"), datasets_dir=tmp_path)
    assert table.inputs == (None, None)
    assert table.frame["study_uid"].tolist() == ["row-2", "row-3"]


def test_a_given_patient_wins_over_the_path(series_csv: Write) -> None:
    header = "patient_id,nifti_path,study_uid," + ",".join(LABELS)
    table = read_series_table(
        series_csv("P1,ID_a/ID_s/_1.nii.gz,S,0,0,0,0,0,0", ",ID_b/ID_t/_2.nii.gz,,0,0,0,0,0,0", header=header)
    )
    assert table.frame["patient_id"].tolist() == ["P1", "ID_b"]
    assert table.frame["study_uid"].tolist() == ["S", "ID_t"]


def test_a_patient_known_in_one_row_is_the_patient_of_the_study(series_csv: Write) -> None:
    header = "patient_id,nifti_path,study_uid," + ",".join(LABELS)
    table = read_series_table(series_csv("P1,a.nii,S,0,0,0,0,0,0", ",b.nii,S,0,0,0,0,0,0", header=header))
    assert table.groups == ["patient:P1", "patient:P1"]


def test_an_unknown_patient_leaves_the_study_as_the_group(series_csv: Write) -> None:
    table = read_series_table(series_csv("a.nii,S,0,0,0,0,0,0"))
    assert table.groups == ["study:S"]
    assert table.n_without_patient == 1


def test_a_study_of_two_patients_is_an_error_with_its_rows(series_csv: Write) -> None:
    header = "patient_id,nifti_path,study_uid," + ",".join(LABELS)
    with pytest.raises(SeriesTableError, match=r"study S belongs to more than one patient \(rows 2, 3\)"):
        read_series_table(series_csv("P1,a.nii,S,0,0,0,0,0,0", "P2,b.nii,S,0,0,0,0,0,0", header=header))


def test_a_row_without_study_or_telling_path_is_an_error(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match="no study_uid in row 3"):
        read_series_table(series_csv(PLAIN[0], "flat.nii.gz,,0,0,0,0,0,0"))


def test_original_cells_are_kept_as_they_stood(series_csv: Write) -> None:
    header = "note,nifti_path,study_uid," + ",".join(LABELS)
    table = read_series_table(series_csv('"007, NaN",a.nii,S,0.0,0,0,0,0,0', header=header))
    assert table.original.loc[0, "note"] == "007, NaN"
    assert table.original.loc[0, "any"] == "0.0"


def test_the_table_of_the_first_implementation_is_read_without_a_flag(series_csv: Write) -> None:
    header = "rel_dir,study_uid,series_uid,nifti_path," + ",".join(f"label_{label}" for label in LABELS)
    row = "ID_a/ID_s1,ID_s1,ID_r1,/data/nii_1mm/ID_a/ID_s1/_1.nii.gz,1.0,0.0,1.0,0,0,0"
    table = read_series_table(series_csv(row, header=header))
    np.testing.assert_array_equal(table.labels, [[1, 0, 1, 0, 0, 0]])
    assert table.frame[["patient_id", "study_uid", "series_uid"]].to_numpy().tolist() == [["ID_a", "ID_s1", "ID_r1"]]
    assert table.warnings == ()


def test_a_plain_label_column_wins_over_its_alias(series_csv: Write) -> None:
    header = "nifti_path,study_uid," + ",".join(LABELS) + ",label_any"
    table = read_series_table(series_csv("ID_a/ID_s1/_1.nii.gz,ID_s1,1,1,0,0,0,0,0", header=header))
    assert table.labels[0, 0] == 1


ALL_LABELS = ",1,0,1,0,0,0"


@pytest.mark.parametrize(("spelling", "value"), [("TRUE", 1), ("FALSE", 0), ("True", 1), ("false", 0)])
def test_true_and_false_are_one_and_zero(series_csv: Write, spelling: str, value: int) -> None:
    table = read_series_table(series_csv(f"x/y/_1.nii.gz,y,TRUE,{spelling},True,0,0.0,FALSE"))
    assert table.labels.tolist() == [[1, value, 1, 0, 0, 0]]


@pytest.mark.parametrize("line", ["sep=,", "SEP=,", '"sep=,"', "sep=,\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_excels_line_that_names_the_separator_is_skipped(series_csv: Write, line: str, encoding: str) -> None:
    plain = read_series_table(series_csv(*PLAIN))
    found = read_series_table(series_csv(HEADER, *PLAIN, header=line, encoding=encoding))
    assert found.labels.tolist() == plain.labels.tolist()
    assert (found.rows, found.groups, found.inputs) == (plain.rows, plain.groups, plain.inputs)


def test_excels_line_with_another_separator_names_it(series_csv: Write) -> None:
    with pytest.raises(SeriesTableError, match="separated by semicolons; expected commas"):
        read_series_table(series_csv(HEADER.replace(",", ";"), PLAIN[0].replace(",", ";"), header="sep=;"))


def test_blank_lines_before_the_header_are_skipped_and_counted(series_csv: Write) -> None:
    assert read_series_table(series_csv("", HEADER, PLAIN[0], header="")).rows == [4]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((PLAIN[0], PLAIN[1] + ",extra"), "row 3 has 9 cells, expected 8; quote cells that contain a comma$"),
        ((PLAIN[0], '"' + PLAIN[1]), "a quotation mark in row 3 is never closed; close or remove it$"),
    ],
)
def test_a_row_of_another_form_is_named_in_our_words(series_csv: Write, rows: tuple[str, ...], words: str) -> None:
    with pytest.raises(SeriesTableError, match=words) as caught:
        read_series_table(series_csv(*rows))
    assert "tokenizing" not in str(caught.value)


def test_quoting_a_cell_with_a_comma_helps(series_csv: Write) -> None:
    assert read_series_table(series_csv('"a,b.nii.gz",s' + ALL_LABELS)).inputs[0].path.name == "a,b.nii.gz"  # type: ignore[union-attr]


@pytest.mark.parametrize("header", ["ID,Label", "Id,label"])
def test_kaggles_list_of_slices_is_named_with_the_command_for_it(series_csv: Write, header: str) -> None:
    with pytest.raises(SeriesTableError, match="expected one row per series; make that table with prepare-rsna --root"):
        read_series_table(series_csv("ID_a_any,1", header=header))
