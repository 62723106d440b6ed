from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke.commands import prepare_rsna
from meddinov3_stroke.data import read_series_table

KAGGLE_LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three patients of two series of four slices; the first of each is positive for subdural in its second slice."""
    folder, rows = tmp_path / "rsna", ["ID,Label"]
    for k in range(6):
        options = DicomOptions(
            seed=k, patient_id=f"ID_p{k // 2}", header="stripped", names="sop_uid", instance_numbers="absent"
        )
        hu = np.random.default_rng(k).integers(0, 80, (4, 8, 8)).astype(np.float32)
        truth = write_dicom_series(folder / "stage_2_train", hu, axial_geometry([5.0] * 3, (8, 8)), options)
        for image in truth.used:
            bleeds = k % 2 == 0 and image.slice_index == 1
            values = {label: int(bleeds and label in ("any", "subdural")) for label in KAGGLE_LABELS}
            rows += [f"{image.sop_instance_uid}_{label},{values[label]}" for label in KAGGLE_LABELS]
    (folder / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    return folder


def prepare(root: Path, output: Path, *flags: str) -> int:
    return prepare_rsna.main(["--root", str(root), "--output-dir", str(output), "--workers", "1", "--quiet", *flags])


def test_the_command_writes_what_the_pipeline_reads(root: Path, tmp_path: Path) -> None:
    assert prepare(root, tmp_path / "out") == 0
    table = read_series_table(tmp_path / "out" / "rsna_hemorrhage_series_labels.csv")
    assert len(table) == 6
    assert table.labels[:, [0, 5]].sum(axis=0).tolist() == [3, 3]


def test_the_summary_says_what_was_read_and_adds_up(root: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "preparation_summary.json").read_text())
    assert {"schema_version", "disclaimer", "table", "ledger", "headers", "seconds", "memory"} <= set(summary)
    assert summary["table"]["n_patients"] == 3
    assert summary["headers"]["n_files"] == summary["headers"]["n_read_now"] == 24
    assert summary["ledger"]["images"]["slice"] == 24


def test_a_second_run_reads_no_header_and_writes_the_same_table(root: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path / "out")
    first = (tmp_path / "out" / "rsna_hemorrhage_series_labels.csv").read_bytes()
    assert prepare(root, tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "preparation_summary.json").read_text())
    assert (summary["headers"]["n_read_now"], summary["headers"]["n_known_before"]) == (0, 24)
    assert (tmp_path / "out" / "rsna_hemorrhage_series_labels.csv").read_bytes() == first


def test_a_list_of_ids_leaves_patients_out_and_is_in_the_summary(root: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("ID_p1\n")
    assert prepare(root, tmp_path / "out", "--exclude-ids", str(tmp_path / "ids.txt")) == 0
    summary = json.loads((tmp_path / "out" / "preparation_summary.json").read_text())
    assert summary["exclusion"]["n_excluded_series"] == 2
    assert summary["table"]["n_series"] == 4


@pytest.mark.parametrize(
    ("flags", "exit_code", "code"),
    [(("--workers", "-1"), 2, "E-USAGE"), (("--exclude-ids", "absent.txt"), 5, "E-SERIES-CSV")],
)
def test_a_fault_is_one_line_and_its_exit_code(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: tuple[str, str], exit_code: int, code: str
) -> None:
    assert prepare(root, tmp_path / "out", *flags) == exit_code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{code}: ")


def test_conflicting_labels_exit_5(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    csv = root / "stage_2_train.csv"
    line = csv.read_text().splitlines()[1]
    csv.write_text(csv.read_text() + f"{line.rpartition(',')[0]},{1 - int(line[-1])}\n")
    assert prepare(root, tmp_path / "out") == 5
    assert line.rpartition(",")[0] in capfd.readouterr().err


def test_a_file_that_the_machine_does_not_give_exits_8_after_the_rest_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sorted((root / "stage_2_train").iterdir())[0]
    opened = Path.open

    def refuse(path: Path, *args: str, **options: int) -> object:
        if path == bad:
            raise OSError(5, "Input/output error")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert prepare(root, tmp_path / "out") == 8
    summary = json.loads((tmp_path / "out" / "preparation_summary.json").read_text())
    assert summary["ledger"]["images"]["failed"] == 1
    assert prepare(root, tmp_path / "out") == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the command on thirty-six patients of nine slices, six with each type and six with none."""
    folder = tmp_path_factory.mktemp("rsna")
    rows = ["ID,Label"]
    row, column = np.mgrid[:24, :24]
    inside = np.hypot(row - 12, column - 12) < 10
    for k in range(36):
        types = {label: int(k % 6 == place) for place, label in enumerate(KAGGLE_LABELS[:5], start=1)}
        hu = np.where(inside, 30 + 10 * (k % 6), -1000) + np.random.default_rng(k).normal(0, 3, (9, 1, 1))
        options = DicomOptions(
            seed=k, patient_id=f"ID_p{k}", header="stripped", names="sop_uid", instance_numbers="absent"
        )
        images = folder / "root" / "stage_2_train"
        truth = write_dicom_series(images, hu.astype(np.float32), axial_geometry([5.0] * 8, (24, 24)), options)
        for image in truth.used:
            values = types | {"any": max(types.values())}
            rows += [f"{image.sop_instance_uid}_{label},{values[label]}" for label in KAGGLE_LABELS]
    (folder / "root" / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    assert prepare(folder / "root", folder / "out") == 0
    return folder / "out"


def train(prepared: Path, weights: Path, output: Path, *flags: str) -> int:
    from meddinov3_stroke import rsna_train

    arguments = {
        "--series-csv": prepared / "rsna_hemorrhage_series_labels.csv",
        "--output-dir": output,
        "--cache-dir": output / "cache",
        "--checkpoints-dir": output / "checkpoints",
        "--backbone": weights,
        "--resize": 32,
        "--epochs": 1,
        "--device": "cpu",
        "--engine": "torch",
        "--precision": "fp32",
    }
    return rsna_train.main([*(str(word) for pair in arguments.items() for word in pair), "--quiet", *flags])


def test_training_and_case_inference_run_from_the_table_unchanged(
    prepared: Path, random_weights: Callable[..., Path], tmp_path: Path
) -> None:
    from meddinov3_stroke import ich_infer

    weights = random_weights()
    assert train(prepared, weights, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "pipeline_summary.json").read_text())
    assert (summary["extraction"]["n_total"], summary["extraction"]["done"]) == (36, 36)
    (uid,) = read_series_table(prepared / "rsna_hemorrhage_series_labels.csv").frame["series_uid"][:1]
    case = ["--input", prepared / "header_index.parquet", "--series", uid, "--output-dir", tmp_path / "case"]
    model = ["--checkpoint", tmp_path / "run" / "checkpoints" / "best.pt", "--backbone", weights, "--device", "cpu"]
    how = ["--engine", "torch", "--precision", "fp32", "--quiet"]
    assert ich_infer.main([str(word) for word in (*case, *model, *how)]) == 0
    found = json.loads((tmp_path / "case" / "summary.json").read_text())
    assert set(found["probabilities"]) == set(KAGGLE_LABELS)


def test_split_and_training_leave_out_the_same_patients_and_split_alike(
    prepared: Path, random_weights: Callable[..., Path], tmp_path: Path
) -> None:
    from meddinov3_stroke import rsna_split

    (tmp_path / "ids.txt").write_text("# held out\nID_p0\nID_p7\n")
    flags = ("--exclude-ids", str(tmp_path / "ids.txt"))
    csv = str(prepared / "rsna_hemorrhage_series_labels.csv")
    assert rsna_split.main(["--series-csv", csv, "--output-dir", str(tmp_path / "split"), *flags]) == 0
    assert train(prepared, random_weights(), tmp_path / "run", *flags) == 0
    for name in ("train.csv", "val.csv", "test.csv"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "run" / "splits" / name).read_bytes()
        assert not {"ID_p0", "ID_p7"} & set(pd.read_csv(tmp_path / "split" / name)["patient_id"])
    of_split = json.loads((tmp_path / "split" / "split_summary.json").read_text())
    of_run = json.loads((tmp_path / "run" / "pipeline_summary.json").read_text())
    assert of_split["exclusion"] == of_run["split"]["exclusion"]
    assert of_split["exclusion"]["n_excluded_patients"] == 2
