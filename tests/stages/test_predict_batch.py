"""`predict` on several inputs: what counts as a case, folders, results.csv, the ledger, resuming, mix-ups."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import load_backbone
from meddinov3_stroke.cases import Case, FailedCase, case_id, find_cases
from meddinov3_stroke.commands.status import main as status
from meddinov3_stroke.errors import MissingInput
from meddinov3_stroke.features.ledger import LEDGER_NAME, Ledger
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.system.digest import sha256_of_file

SHAPE = (6, 48, 48)


def study(folder: Path, seed: int) -> Path:
    hu = np.random.default_rng(seed).integers(-100, 100, SHAPE)
    write_dicom_series(folder, hu, axial_geometry([5.0] * 5, SHAPE[1:]), DicomOptions(seed=seed))
    return folder


@pytest.fixture
def flags(random_weights: Callable[..., Path], random_head: Callable[..., Path]) -> list[str]:
    weights = random_weights()
    head = random_head(load_backbone(weights, engine="torch", precision="fp32", device="cpu"))
    words = {"--checkpoint": head, "--backbone": weights, "--engine": "torch", "--precision": "fp32", "--device": "cpu"}
    return [str(word) for pair in words.items() for word in pair]


@pytest.fixture
def cohort(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """Four heads as NIfTI and one as DICOM; a damaged file, an empty one and one that is no volume."""
    folder = tmp_path / "cohort"
    for k in range(4):
        path = head_nifti(f"cohort/case{k}.nii.gz", seed=k)
    content = path.read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "empty.nii").touch()
    (folder / "page.nii").write_text("<html>")
    study(folder / "disc" / "DICOM", seed=9)
    return folder


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def without_time(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def ended(folder: Path) -> list[str]:
    """Inputs that a record of the ledger calls done, once for each record."""
    lines = [json.loads(line) for line in (folder / LEDGER_NAME).read_text().splitlines()]
    return [line["input"] for line in lines if line.get("status") == "done"]


def test_every_input_has_one_row_and_one_state(flags, cohort, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert predict(["--input", str(cohort), "--output-dir", str(out), *flags]) == 8
    rows = results(out)
    assert [row["status"] for row in rows].count("done") == 5
    assert {Path(row["input"]).name for row in rows if row["status"] == "rejected"} == {
        "cut.nii.gz",
        "empty.nii",
        "page.nii",
    }
    assert Ledger(out).totals() == {"total": 8, "done": 5, "rejected": 3, "refused": 0, "failed": 0, "pending": 0}
    for row in rows:
        summary = out / row["case_id"] / "summary.json"
        assert summary.is_file() == (row["status"] == "done")
        if row["status"] == "done":
            document = json.loads(summary.read_text())
            assert float(row["p_any"]) == pytest.approx(document["probabilities"]["any"], abs=1e-6)
            assert row["case_id"] == case_id(document["input_sha256"])
    captured = capsys.readouterr()
    assert "8 cases: 5 done, 3 rejected" in captured.out
    assert "3 of 8 cases have no result" in captured.err
    assert status([str(out)]) == 0
    assert "8 total, 5 done, 3 rejected, 0 refused, 0 failed, 0 pending" in capsys.readouterr().out


def test_a_batch_finds_what_single_runs_find(flags, cohort, tmp_path) -> None:
    predict(["--input", str(cohort), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"])
    for row in results(tmp_path / "out"):
        if row["status"] == "done":
            assert predict(["--input", row["input"], "--output-dir", str(tmp_path / "one"), "--overwrite", *flags]) == 0
            single = json.loads((tmp_path / "one" / "summary.json").read_text())
            assert float(row["p_any"]) == pytest.approx(single["probabilities"]["any"], abs=1e-5)


def test_a_second_run_computes_only_what_has_no_result(flags, cohort, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    words = ["--input", str(cohort), "--output-dir", str(out), *flags, "--quiet"]
    assert predict(words) == 8
    before = without_time(results(out))
    shutil.copy(cohort / "case0.nii.gz", cohort / "empty.nii.gz")
    (cohort / "empty.nii").unlink()
    tried: list[str] = []
    original = ICHPredictor.map

    def noted(self: ICHPredictor, todo, *more, **flags) -> Iterator[Case | FailedCase]:
        return original(self, (tried.append(str(one.path)) or one for one in todo), *more, **flags)

    monkeypatch.setattr(ICHPredictor, "map", noted)
    assert predict(words) == 8
    assert {Path(path).name for path in tried} == {"cut.nii.gz", "empty.nii.gz", "page.nii"}
    kept = [row for row in without_time(results(out)) if Path(row["input"]).name != "empty.nii.gz"]
    assert kept == [row for row in before if Path(row["input"]).name != "empty.nii"]


def test_a_changed_input_is_computed_again(flags, head_nifti, tmp_path) -> None:
    path, out = head_nifti("in/a.nii.gz"), tmp_path / "out"
    words = ["--input", str(path.parent), "--output-dir", str(out), *flags, "--quiet"]
    assert predict(words) == 0
    head_nifti("in/a.nii.gz", seed=5)
    assert predict(words) == 0
    assert len(ended(out)) == 2
    (row,) = results(out)
    assert row["case_id"] == case_id(sha256_of_file(path))


@pytest.mark.slow
def test_a_killed_batch_ends_as_one_that_was_not(flags, head_nifti, tmp_path) -> None:
    for k in range(12):
        head_nifti(f"in/case{k:02}.nii.gz", seed=k)
    (tmp_path / "in" / "bad.nii").write_text("bad")
    time.sleep(2.1)  # younger files are hashed again
    command = [sys.executable, "-m", "meddinov3_stroke", "predict", "--input", str(tmp_path / "in"), *flags, "--force"]

    def run(folder: Path, *, kill_at: int | None = None) -> int:
        process = subprocess.Popen([*command, "--output-dir", str(folder), "--quiet"], stderr=subprocess.DEVNULL)
        while kill_at is not None and process.poll() is None:
            if (folder / LEDGER_NAME).exists() and len(ended(folder)) >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        return process.wait()

    assert run(tmp_path / "whole") == 8
    for kill_at in range(0, 12, 2):
        run(tmp_path / "killed", kill_at=kill_at)
    assert run(tmp_path / "killed") == 8
    assert without_time(results(tmp_path / "killed")) == without_time(results(tmp_path / "whole"))
    done = ended(tmp_path / "killed")
    assert len(done) == len(set(done)) == 12


def test_a_damaged_last_line_of_the_ledger_counts_as_pending(flags, cohort, tmp_path, caplog) -> None:
    out = tmp_path / "out"
    words = ["--input", str(cohort), "--output-dir", str(out), *flags, "--quiet"]
    predict(words)
    lines = (out / LEDGER_NAME).read_text().splitlines()
    cut = next(k for k, line in enumerate(lines) if '"done"' in line)
    (out / LEDGER_NAME).write_text("\n".join([*lines[:cut], *lines[cut + 1 :], lines[cut][:40]]))
    assert Ledger(out).totals()["pending"] == 1
    assert predict(words) == 8
    assert Ledger(out).totals()["pending"] == 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_folder_of_volumes_is_a_batch_even_of_one(flags, head_nifti, tmp_path, n) -> None:
    for k in range(n):
        head_nifti(f"in/{k}.nii.gz", seed=k)
    assert predict(["--input", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 0
    assert len(results(tmp_path / "out")) == n


def test_a_dicom_folder_of_one_study_is_one_case(flags, tmp_path) -> None:
    study(tmp_path / "disc" / "DICOM", seed=1)
    assert predict(["--input", str(tmp_path / "disc"), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 0
    assert (tmp_path / "out" / "summary.json").is_file()
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_dicom_folder_of_two_studies_is_two_cases(flags, tmp_path, is_flat) -> None:
    for seed in (1, 2):
        folder = study(tmp_path / "made" / f"{seed}", seed=seed)
        for path in folder.iterdir():
            target = tmp_path / "in" / (f"{seed}_{path.name}" if is_flat else f"{seed}/{path.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    assert predict(["--input", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 0
    assert len({row["case_id"] for row in results(tmp_path / "out")}) == 2


def test_two_discs_with_folders_of_one_name_get_folders_of_their_own(flags, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        study(tmp_path / f"disc{seed}" / "DICOM", seed=seed)
        assert predict(["--input", f"disc{seed}/DICOM", *flags, "--quiet"]) == 0
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("outputs/ich_*/summary.json"))]
    assert {one["input"] for one in found} == {"disc1/DICOM", "disc2/DICOM"}


def test_patterns_tables_and_lists_of_inputs_name_cases(head_nifti, tmp_path) -> None:
    paths = [head_nifti(f"in/{name}.nii.gz", seed=k) for k, name in enumerate("abc")]
    (tmp_path / "table.csv").write_text("study_uid,NIFTI_PATH\n1,in/a.nii.gz\n2,\n3,in/missing.nii.gz\n")
    assert [one.path for one in find_cases([tmp_path / "in" / "[ab]*.nii.gz"]).inputs] == paths[:2]
    assert [one.path for one in find_cases([paths[1], paths[0], paths[1]]).inputs] == [paths[1], paths[0]]
    rows = find_cases([tmp_path / "table.csv"])
    assert rows.is_batch
    assert [one.path.name for one in rows.inputs] == ["a.nii.gz", "row 3 names no volume", "missing.nii.gz"]


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInput, match="nothing matches"):
        find_cases([Path("*.nothing")])


def test_another_input_does_not_replace_a_result(flags, head_nifti, tmp_path, capsys) -> None:
    first, second = head_nifti("a.nii.gz", seed=1), head_nifti("b.nii.gz", seed=2)
    words = ["--output-dir", str(tmp_path / "out"), *flags, "--quiet"]
    assert predict(["--input", str(first), *words]) == 0
    assert predict(["--input", str(first), *words]) == 0
    capsys.readouterr()
    assert predict(["--input", str(second), *words]) == 2
    assert "holds the result of another input" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["input"] == str(first)
    assert predict(["--input", str(second), "--overwrite", *words]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["input"] == str(second)


def test_a_batch_of_other_settings_is_refused_unless_it_may_overwrite(flags, cohort, tmp_path, capsys) -> None:
    words = ["--input", str(cohort), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]
    assert predict(words) == 8
    assert predict([*words, "--threshold", "0.3"]) == 2
    assert "results of other settings" in capsys.readouterr().err
    assert predict([*words, "--threshold", "0.3", "--overwrite"]) == 8
    assert len(ended(tmp_path / "out")) == 10


def test_results_as_json_on_standard_output(flags, cohort, head_nifti, tmp_path, capsys) -> None:
    single = head_nifti("one.nii.gz")
    assert predict(["--input", str(single), "--json", "--output-dir", str(tmp_path / "one"), *flags, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"].keys() >= {"any"}
    assert predict(["--input", str(cohort), "--json", "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert document["totals"]["done"] == 5
    assert len(document["results"]) == 8


def test_a_text_that_looks_like_a_formula_is_quoted() -> None:
    from meddinov3_stroke.batch import csv_text

    text = csv_text([{"input": "=a.nii", "warnings": "=cmd()", "p_any": -0.5}])
    assert text == "input,warnings,p_any\n=a.nii,'=cmd(),-0.5\n"


def test_a_case_whose_embedding_is_no_number_stops_no_other(flags, head_nifti, tmp_path, monkeypatch) -> None:
    from meddinov3_stroke.backbone import Backbone

    paths = [head_nifti(f"in/{k}.nii.gz", seed=k) for k in range(4)]
    predictor = ICHPredictor.load(flags[1], backbone=flags[3], engine="torch", precision="fp32", device="cpu")
    original = Backbone.class_tokens
    bad = predictor.extractor.embed(__import__("meddinov3_stroke.ct", fromlist=["ct"]).read_volume(paths[1])).cls[0]

    def poisoned(self: Backbone, pixels: np.ndarray) -> np.ndarray:
        cls = original(self, pixels)
        return np.where(np.isclose(cls, bad, atol=1e-4).all(axis=1, keepdims=True), np.nan, cls).astype(np.float32)

    monkeypatch.setattr(Backbone, "class_tokens", poisoned)
    cases = list(predictor.map(paths))
    assert [case.status for case in cases] == ["done", "failed", "done", "done"]
    assert [case.path for case in cases] == paths


def test_cohort_runs_keep_a_ledger_too(random_weights, head_nifti, tmp_path) -> None:
    from meddinov3_stroke.commands.extract import main as extract

    head_nifti("a.nii.gz")
    (tmp_path / "bad.nii").write_text("bad")
    names = "any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural"
    lines = ["nifti_path,study_uid,patient_id," + names, "a.nii.gz,1,p,0,0,0,0,0,0", "bad.nii,2,q,0,0,0,0,0,0"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    words = {"--series-csv": tmp_path / "table.csv", "--backbone": random_weights(), "--output-dir": tmp_path / "out"}
    words |= {
        "--cache-dir": tmp_path / "cache",
        "--max-invalid": 1,
        "--resize": 64,
        "--device": "cpu",
        "--engine": "torch",
    }
    assert extract([*(str(word) for pair in words.items() for word in pair), "--skip-invalid-nifti", "--quiet"]) == 0
    assert Ledger(tmp_path / "out").totals() == {
        "total": 2, "done": 1, "rejected": 1, "refused": 0, "failed": 0, "pending": 0,
    }  # fmt: skip


def test_pictures_name_the_case_by_content_and_series_and_never_by_path(flags, tmp_path, monkeypatch) -> None:
    from meddinov3_stroke.report import pictures

    drawn: list[str] = []
    original = pictures.wrap
    monkeypatch.setattr(
        pictures, "wrap", lambda text, *rest, **named: drawn.append(text) or original(text, *rest, **named)
    )
    folder = study(tmp_path / "CANARY" / "DICOM", seed=1)
    assert predict(["--input", str(folder), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    text = " ".join(drawn)
    assert f"Case {summary['input_sha256'][:12]} · series ...{summary['dicom']['series_instance_uid'][-8:]}" in text
    assert "CANARY" not in text


def test_places_without_a_readable_series_have_a_row_too(flags, head_nifti, tmp_path) -> None:
    head_nifti("in/good.nii.gz")
    (tmp_path / "in" / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    with zipfile.ZipFile(tmp_path / "in" / "letters.zip", "w") as archive:
        archive.writestr("letter.txt", "no image")
    for path in study(tmp_path / "in" / "disc", seed=1).iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert predict(["--input", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 8
    found = {Path(row["input"]).name: row["status"] for row in results(tmp_path / "out")}
    assert found == {"good.nii.gz": "done", "cut.zip": "rejected", "letters.zip": "rejected", "disc": "rejected"}


def test_a_ledger_survives_names_that_hold_line_separators(flags, head_nifti, tmp_path) -> None:
    head_nifti("in/a\u2028b.nii.gz")
    assert predict(["--input", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), *flags, "--quiet"]) == 0
    assert Ledger(tmp_path / "out").totals()["done"] == 1
