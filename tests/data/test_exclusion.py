from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meddinov3_stroke.data import read_id_list, read_series_table
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.types import LABELS

Write = Callable[..., Path]

HEADER = "nifti_path,patient_id,study_uid,series_uid," + ",".join(LABELS)
ROWS = (
    "a.nii,P1,S1,R1,0,0,0,0,0,0",
    "b.nii,P1,S2,R2,0,0,0,0,0,0",
    "c.nii,P2,S3,R3,0,0,0,0,0,0",
    "d.nii,,S4,R4,0,0,0,0,0,0",
    "e.nii,,S4,R5,0,0,0,0,0,0",
    "f.nii,P3,S5,R6,0,0,0,0,0,0",
)


@pytest.fixture
def ids(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "ids.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("P1", ["S3", "S4", "S4", "S5"]),
        ("S2", ["S3", "S4", "S4", "S5"]),
        ("R1", ["S3", "S4", "S4", "S5"]),
        ("R4", ["S1", "S2", "S3", "S5"]),
        ("p2\ns5", ["S1", "S2", "S4", "S4"]),
        ("P2\nS5", ["S1", "S2", "S4", "S4"]),
        ("\ufeff# test patients\nP2  # held out\n\nP2\n", ["S1", "S2", "S4", "S4", "S5"]),
    ],
)
def test_a_patient_named_by_any_id_leaves_with_every_row(
    series_csv: Write, ids: Callable[[str], Path], text: str, left: list[str]
) -> None:
    table = read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids(text))
    assert table.frame["study_uid"].tolist() == left
    assert len(table.inputs) == len(table.original) == len(left)


def test_an_id_that_matches_nothing_is_warned_of_and_counted(series_csv: Write, ids: Callable[[str], Path]) -> None:
    table = read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids("P1\nID_unknown\nP2"))
    assert table.exclusion is not None
    counts = {"n_ids": 3, "n_matched": 2, "n_unmatched": 1, "n_excluded_patients": 2, "n_excluded_series": 3}
    assert counts.items() <= table.exclusion.document.items()
    (warning,) = [warning for warning in table.warnings if "ids.txt" in warning]
    assert "1 of 3 IDs match no" in warning
    assert "ID_unknown" in warning


def test_a_series_named_as_one_of_several_volumes_is_known_by_its_uid(
    series_csv: Write, ids: Callable[[str], Path]
) -> None:
    rows = [row.replace(",R1,", ",R1#2,") for row in ROWS]
    for text in ("R1", "R1#2"):
        table = read_series_table(series_csv(*rows, header=HEADER), exclude_ids=ids(text))
        assert table.frame["study_uid"].tolist() == ["S3", "S4", "S4", "S5"]


def test_a_part_of_an_id_is_no_match(series_csv: Write, ids: Callable[[str], Path]) -> None:
    table = read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids("P\nP3"))
    assert len(table) == len(ROWS) - 1


@pytest.mark.parametrize("text", ["nobody", "ID_0a1b2c3d\nID_ffffffff\n"])
def test_a_list_of_which_nothing_matches_is_an_error(series_csv: Write, ids: Callable[[str], Path], text: str) -> None:
    with pytest.raises(SeriesTableError, match=r"none of its \d IDs .* nobody would be excluded"):
        read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids(text))


@pytest.mark.parametrize("text", ["", "# nobody yet\n\n"])
def test_an_empty_list_leaves_nobody_out_and_says_so(series_csv: Write, ids: Callable[[str], Path], text: str) -> None:
    table = read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids(text))
    assert len(table) == len(ROWS)
    assert any("ids.txt contains no ID; nobody is excluded" in warning for warning in table.warnings)


def test_a_list_of_everybody_is_an_error(series_csv: Write, ids: Callable[[str], Path]) -> None:
    with pytest.raises(SeriesTableError, match="excludes every patient; no row is left"):
        read_series_table(series_csv(*ROWS, header=HEADER), exclude_ids=ids("P1\nP2\nP3\nS4"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"P1,S1\n", "one ID a line"),
    ],
)
def test_a_list_that_is_none_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(SeriesTableError, match=words):
        read_id_list(path)


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SeriesTableError, match="found nothing"):
        read_id_list(tmp_path / "absent.txt")
