from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from meddinov3_stroke import rsna_split
from meddinov3_stroke.types import LABELS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def series_csv(tmp_path: Path) -> Path:
    """Thirty patients, no NIfTI file: a split needs none."""
    rows = []
    for patient in range(30):
        types = [int(patient % 6 == k) for k in range(1, 6)]
        rows.append([f"ID_p{patient}/ID_s{patient}/_{patient}.nii.gz", f"ID_s{patient}", max(types), *types])
    path = tmp_path / "series.csv"
    pd.DataFrame(rows, columns=["nifti_path", "study_uid", *LABELS]).to_csv(path, index=False)
    return path


def split(series_csv: Path, folder: Path, *flags: str) -> int:
    return rsna_split.main(["--series-csv", str(series_csv), "--output-dir", str(folder), *flags])


def test_the_script_writes_three_csvs(series_csv: Path, tmp_path: Path) -> None:
    script = ROOT / "script" / "prepare_rsna_splits.py"
    flags = ["--series-csv", series_csv, "--output-dir", tmp_path / "out", "--seed", "42"]
    ratios = ["--train-ratio", "0.7", "--val-ratio", "0.15", "--test-ratio", "0.15"]
    result = subprocess.run([sys.executable, script, *flags, *ratios], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    sizes = [len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) for name in ("train", "val", "test")]
    assert sizes == [21, 5, 4]


def test_split_csvs_keep_the_columns_of_the_users_table_and_name_the_split(series_csv: Path, tmp_path: Path) -> None:
    table = pd.read_csv(series_csv).rename(columns={label: f"label_{label}" for label in LABELS})
    table.insert(0, "rel_dir", "somewhere")
    table.to_csv(series_csv, index=False)
    assert split(series_csv, tmp_path / "out") == 0
    for name in ("train", "val", "test"):
        written = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        assert list(written.columns[: len(table.columns)]) == list(table.columns)
        assert set(written["split"]) == {name}


def test_the_same_seed_writes_the_same_bytes(series_csv: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert split(series_csv, tmp_path / folder) == 0
    for name in ("train.csv", "val.csv", "test.csv", "split_summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_summary_says_how_the_split_came_about(series_csv: Path, tmp_path: Path) -> None:
    split(series_csv, tmp_path / "out", "--seed", "7")
    summary = json.loads((tmp_path / "out" / "split_summary.json").read_text())
    assert (summary["seed"], summary["unit"], summary["ratios"]["train"]) == (7, "patient", 0.7)
    assert summary["splits"]["train"]["n_patients"] == 21


@pytest.mark.parametrize(
    ("flags", "exit_code", "code"),
    [
        (("--train-ratio", "0.9"), 2, "E-USAGE"),
        (("--columns", "nonsense"), 2, "E-USAGE"),
        (("--columns", "patient_id=PatientID"), 5, "E-SERIES-CSV"),
    ],
)
def test_a_fault_is_one_line_and_its_exit_code(
    series_csv: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    flags: tuple[str, str],
    exit_code: int,
    code: str,
) -> None:
    assert split(series_csv, tmp_path / "out", *flags) == exit_code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{code}: ")
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_labels_exit_5_with_the_row(
    series_csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = series_csv.read_text().splitlines()
    lines[3] = lines[3][:-1] + "0.5"
    series_csv.write_text("\n".join(lines))
    assert split(series_csv, tmp_path / "out") == 5
    assert "E-LABELS: series.csv: subdural holds '0.5' in row 4" in capfd.readouterr().err


def test_an_output_folder_that_cannot_be_made_exits_7(series_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert split(series_csv, tmp_path / "file" / "out") == 7
