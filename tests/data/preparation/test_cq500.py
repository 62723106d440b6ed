"""CQ500: cases found by their number whatever the tree, labels by the majority of three readers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data import read_series_table
from meddinov3_stroke.data.cq500 import prepare_cq500
from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.types import LABELS

FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")
HEADER = ["name", "Category", *(f"R{k}:{finding}" for k in (1, 2, 3) for finding in (*FINDINGS, "BleedLocation-Left"))]

Case = tuple[str, str, dict[str, str]]


def votes(**of_finding: str) -> dict[str, str]:
    """`ICH="110"`: the three readers' votes."""
    return {finding: of_finding.get(finding, "000") for finding in FINDINGS}


@pytest.fixture
def cq500(tmp_path: Path) -> Callable[..., Path]:
    """Writes `reads.csv`, and for each case a folder of the given name with a file in it."""

    def write(*cases: Case, folders: tuple[str, ...] = (), encoding: str = "utf-8") -> Path:
        root = tmp_path / "cq500"
        rows = [",".join(HEADER)]
        for name, batch, found in cases:
            cells = [cell for k in range(3) for cell in (*(found[finding][k] for finding in FINDINGS), "0")]
            rows.append(",".join([name, batch, *cells]))
        root.mkdir(exist_ok=True)
        (root / "reads.csv").write_text("\n".join(rows) + "\n", encoding=encoding)
        for folder in folders:
            (root / folder).mkdir(parents=True)
        return root

    return write


def rows_of(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "cq500_series_labels.csv", dtype={"series_uid": str}).set_index("patient_id")


SDH = votes(ICH="110", SDH="101")


def test_two_of_three_votes_make_a_label(cq500: Callable[..., Path], tmp_path: Path) -> None:
    cases = [
        ("CQ500-CT-1", "B1", votes(ICH="111", EDH="110", IPH="011", IVH="101", SAH="100", SDH="001")),
        ("CQ500-CT-2", "B2", votes(ICH="100", SAH="001")),
    ]
    prepare_cq500(cq500(*cases, folders=("CQ500-CT-1", "CQ500-CT-2")), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert rows.loc["CQ500-CT-1", list(LABELS)].tolist() == [1, 1, 1, 1, 0, 0]
    assert rows.loc["CQ500-CT-2", list(LABELS)].tolist() == [0] * 6
    assert rows["batch"].tolist() == ["B1", "B2"]


@pytest.mark.parametrize(
    "folder",
    [
        "CQ500-CT-427",
        "CQ500CT427 CQ500CT427/Unknown Study/CT 4cc sec 150cc D3D on",
        "qct03/CQ500-CT-427/CQ500CT427 CQ500CT427/Unknown Study/CT Plain",
        "cq500_ct_427",
    ],
)
def test_a_case_is_found_whatever_the_folders_are_called(
    cq500: Callable[..., Path], tmp_path: Path, folder: str
) -> None:
    root = cq500(("CQ500-CT-427", "B1", SDH), folders=(folder, "CQ500-CT-42", "CQ500CT4270 CQ500CT4270"))
    prepare_cq500(root, tmp_path / "out")
    found = Path(rows_of(tmp_path / "out").loc["CQ500-CT-427", "dicom_path"])
    assert (root / folder).is_relative_to(found)
    assert "427" in found.name


def test_case_zero_is_a_case(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-0", "B1", SDH), folders=("CQ500-CT-0", "other/CQ500CT0"))
    found = prepare_cq500(root, tmp_path / "out")
    assert found.facts["ledger"]["by_status"] == {"usable": 1}
    assert any("1 cases are in more than one place (CQ500-CT-0)" in warning for warning in found.warnings)


def test_a_number_of_thousands_of_digits_is_no_name(cq500: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SeriesTableError, match="is not a name like"):
        prepare_cq500(cq500(("CQ500-CT-" + "9" * 5000, "B1", SDH)), tmp_path / "out")


def test_an_archive_is_a_case_too_and_a_folder_comes_first(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), ("CQ500-CT-2", "B1", SDH), folders=("CQ500CT2 CQ500CT2",))
    for name in ("CQ500-CT-1.zip", "CQ500-CT-2.zip"):
        zipfile.ZipFile(root / name, "w").close()
    found = prepare_cq500(root, tmp_path / "out")
    names = [Path(path).name for path in rows_of(tmp_path / "out")["dicom_path"]]
    assert names == ["CQ500-CT-1.zip", "CQ500CT2 CQ500CT2"]
    assert any("more than one place (CQ500-CT-2)" in warning for warning in found.warnings)


def test_cases_without_dicom_or_reads_are_counted_and_named(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), ("CQ500-CT-9", "B1", SDH), folders=("CQ500-CT-1", "CQ500-CT-77"))
    found = prepare_cq500(root, tmp_path / "out")
    assert found.facts["ledger"]["by_status"] == {"usable": 1, "missing": 1}
    assert any("missing" in warning and "CQ500-CT-9" in warning for warning in found.warnings)
    assert any("no reads" in warning and "CQ500-CT-77" in warning for warning in found.warnings)


UNDECIDED = votes(ICH="110", SDH="100", IPH="010")
"""Two see a haemorrhage, each of another type."""


def test_a_case_without_a_majority_for_a_type_is_left_out_and_said(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), ("CQ500-CT-2", "B1", UNDECIDED), folders=("CQ500-CT-1", "CQ500-CT-2"))
    found = prepare_cq500(root, tmp_path / "out")
    assert len(read_series_table(tmp_path / "out" / "cq500_series_labels.csv")) == 1
    assert found.facts["ledger"]["by_status"] == {"usable": 1, "undecided": 1}
    assert found.facts["undecided"] == ["CQ500-CT-2"]
    assert any("for no type (CQ500-CT-2)" in warning for warning in found.warnings)


def test_such_a_case_may_be_kept_which_strict_then_refuses(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), ("CQ500-CT-2", "B1", UNDECIDED), folders=("CQ500-CT-1", "CQ500-CT-2"))
    prepare_cq500(root, tmp_path / "out", "keep")
    path = tmp_path / "out" / "cq500_series_labels.csv"
    assert rows_of(tmp_path / "out").loc["CQ500-CT-2", list(LABELS)].tolist() == [1, 0, 0, 0, 0, 0]
    with pytest.raises(LabelError):
        read_series_table(path)
    assert len(read_series_table(path, label_policy="ignore")) == 2


def test_a_type_with_a_majority_makes_any_positive_and_the_vote_stays(
    cq500: Callable[..., Path], tmp_path: Path
) -> None:
    root = cq500(("CQ500-CT-1", "B1", votes(ICH="100", SAH="011")), folders=("CQ500-CT-1",))
    found = prepare_cq500(root, tmp_path / "out")
    row = rows_of(tmp_path / "out").loc["CQ500-CT-1"]
    assert (row["any"], row["any_vote"], row["subarachnoid"]) == (1, 0, 1)
    assert found.facts["types_without_ich"] == ["CQ500-CT-1"]
    assert any("and not for ICH (CQ500-CT-1)" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda text: text.replace("R2:SDH", "R2:XXX"), SeriesTableError, "0 columns are called R2:SDH"),
        (lambda text: text.replace("CQ500-CT-1", "case one"), SeriesTableError, "'case one' is not a name"),
        (lambda text: text + text.splitlines()[1] + "\n", SeriesTableError, "CQ500-CT-1 occurs twice"),
        (lambda text: text.replace(",B1,1", ",B1,2"), LabelError, "row 2: R1:ICH is '2'"),
        (lambda text: text.replace(",B1,1", ",B1,"), LabelError, "row 2: R1:ICH is ''"),
    ],
)
def test_reads_of_another_form_say_what_is_wrong(
    cq500: Callable[..., Path], tmp_path: Path, change: Callable[[str], str], error: type, words: str
) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), folders=("CQ500-CT-1",))
    path = root / "reads.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(error, match=words):
        prepare_cq500(root, tmp_path / "out")


def test_a_folder_without_reads_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SeriesTableError, match=r"expected reads\.csv"):
        prepare_cq500(tmp_path, tmp_path / "out")


def test_the_soft_kernel_series_of_a_case_is_what_its_row_reads(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-5", "B1", SDH))
    folder = root / "CQ500CT5 CQ500CT5" / "Unknown Study"
    hu = np.random.default_rng(0).integers(0, 80, (9, 16, 16)).astype(np.float32)
    geometry = axial_geometry([5.0] * 8, (16, 16))
    soft = write_dicom_series(folder / "CT Plain", hu, geometry, DicomOptions(seed=1, study_seed=9))
    write_dicom_series(
        folder / "CT BONE", hu, geometry, DicomOptions(seed=2, study_seed=9, kernel="BONE", description="bone thin")
    )
    prepare_cq500(root, tmp_path / "out")
    (named,) = read_series_table(tmp_path / "out" / "cq500_series_labels.csv").inputs
    assert named is not None
    assert read_volume(named).source.series_instance_uid == soft.identity.series_uid


def test_the_facts_are_fit_for_json(cq500: Callable[..., Path], tmp_path: Path) -> None:
    root = cq500(("CQ500-CT-1", "B1", SDH), ("CQ500-CT-2", "B2", SDH), folders=("CQ500-CT-1", "CQ500-CT-2"))
    facts = prepare_cq500(root, tmp_path / "out").facts
    assert json.loads(json.dumps(facts))["batches"] == {"B1": 1, "B2": 1}
