"""Stage `extract`: every row of a table becomes one row of features, in order, and nothing is split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke.commands import extract as extract_features
from meddinov3_stroke.types import LABELS

N_ROWS = 4


@pytest.fixture(scope="module")
def weights(random_weights: Callable[..., Path]) -> Path:
    return random_weights()


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path) -> pd.DataFrame:
    """Four series of four patients, the last of whom bleeds."""
    rows = []
    for k in range(N_ROWS):
        labels = dict.fromkeys(LABELS, int(k == N_ROWS - 1))
        path = head_nifti(f"{k}.nii.gz", seed=k)
        rows.append({"nifti_path": str(path), "patient_id": f"P{k}", "study_uid": f"S{k}"} | labels)
    return pd.DataFrame(rows)


@pytest.fixture
def extract(weights: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Runs the command on a table; gives the exit code and the output folder."""

    def run(table: pd.DataFrame, *flags: str) -> tuple[int, Path]:
        csv = tmp_path / "series.csv"
        table.to_csv(csv, index=False)
        fixed = ["--backbone", str(weights), "--engine", "torch", "--precision", "fp32", "--device", "cpu"]
        fixed += ["--resize", "64", "--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "out")]
        return extract_features.main(["--series-csv", str(csv), "--quiet", *fixed, *flags]), tmp_path / "out"

    return run


def arrays(folder: Path) -> tuple[Any, Any, Any]:
    return tuple(np.load(folder / f"cohort_{name}.npy") for name in ("embeddings", "labels", "source_rows"))  # type: ignore[return-value]


def test_each_row_is_the_mean_of_its_slices_in_the_order_of_the_table(extract, table, weights) -> None:
    from meddinov3_stroke import load_backbone, read_volume

    code, folder = extract(table)
    embeddings, labels, rows = arrays(folder)
    backbone = load_backbone(weights, engine="torch", precision="fp32", device="cpu")
    wanted = [backbone.embed(read_volume(path).hu, resize=64, batch=8).cls.mean(axis=0) for path in table["nifti_path"]]
    assert code == 0
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)
    assert labels.tolist() == table[list(LABELS)].to_numpy().tolist()
    assert rows.tolist() == [2, 3, 4, 5]


def test_the_features_say_where_they_came_from(extract, table) -> None:
    _, folder = extract(table, "--pool-mode", "meanmax")
    beside = json.loads((folder / "summary.json").read_text())
    whole = json.loads((folder / "extraction_summary.json").read_text())
    assert beside["pool_mode"] == whole["pool_mode"] == "mean_max"
    assert beside["n_rows"] == {"cohort": N_ROWS}
    assert whole["extraction"]["done"] == whole["extraction"]["n_total"] == N_ROWS
    assert whole["disclaimer"] == "research use only, not for clinical diagnosis"


def test_a_bad_row_stops_the_run_and_is_named(extract, table, capfd) -> None:
    Path(table["nifti_path"][1]).write_bytes(b"no volume")
    code, folder = extract(table)
    assert code == 3
    assert "series.csv row 3" in capfd.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["ledger.jsonl"]


def test_a_relative_path_that_is_not_there_names_where_it_was_looked_for(
    extract, table, tmp_path, capfd, monkeypatch
) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "volumes").mkdir()
    for path in map(Path, table["nifti_path"]):
        path.rename(tmp_path / "volumes" / path.name)
    table["nifti_path"] = [Path(path).name for path in table["nifti_path"]]
    assert extract(table)[0] == 3
    assert "looked for below DATASETS_DIR and beside the table" in capfd.readouterr().err
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "volumes"))
    assert extract(table)[0] == 0


def test_a_skipped_row_leaves_its_number_out(extract, table) -> None:
    Path(table["nifti_path"][1]).write_bytes(b"no volume")
    code, folder = extract(table, "--skip-invalid-nifti", "--max-invalid", "0.5")
    assert code == 0
    assert arrays(folder)[2].tolist() == [2, 4, 5]


def test_more_bad_rows_than_the_cap_write_nothing(extract, table) -> None:
    Path(table["nifti_path"][1]).write_bytes(b"no volume")
    code, folder = extract(table, "--skip-invalid-nifti")
    assert code == 8
    assert [path.name for path in folder.iterdir()] == ["ledger.jsonl"]


def test_one_volume_under_two_patients_is_refused(extract, table, capfd) -> None:
    Path(table["nifti_path"][1]).write_bytes(Path(table["nifti_path"][0]).read_bytes())
    assert extract(table)[0] == 5
    assert "E-SPLIT" in capfd.readouterr().err


def test_excluded_patients_are_left_out(extract, table, tmp_path) -> None:
    (tmp_path / "ids.txt").write_text("P2\n")
    _, folder = extract(table, "--exclude-ids", str(tmp_path / "ids.txt"))
    assert arrays(folder)[2].tolist() == [2, 3, 5]
