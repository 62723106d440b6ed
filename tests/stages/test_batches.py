"""`embed` and `convert` take the inputs that `predict` takes: one case, or a batch with a folder for each."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.cases import case_id
from meddinov3_stroke.commands.convert import main as convert
from meddinov3_stroke.commands.status import main as status
from meddinov3_stroke.meddinov3_infer import main as embed
from meddinov3_stroke.system.digest import sha256_of_file

SHAPE = (6, 48, 48)


def study(folder: Path, seed: int) -> Path:
    hu = np.random.default_rng(seed).integers(-100, 100, SHAPE)
    write_dicom_series(folder, hu, axial_geometry([5.0] * 5, SHAPE[1:]), DicomOptions(seed=seed))
    return folder


@pytest.fixture
def cohort(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """Two heads as NIfTI, one as DICOM, and an empty file."""
    for k in range(2):
        head_nifti(f"cohort/case{k}.nii.gz", seed=k)
    (tmp_path / "cohort" / "empty.nii").touch()
    study(tmp_path / "cohort" / "disc", seed=9)
    return tmp_path / "cohort"


@pytest.fixture
def backbone(random_weights: Callable[..., Path]) -> list[str]:
    words = {"--backbone": random_weights(), "--engine": "torch", "--precision": "fp32", "--device": "cpu"}
    return [str(word) for pair in words.items() for word in pair]


def results(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as handle:
        return {Path(row["input"]).name: row for row in csv.DictReader(handle)}


def test_embed_writes_a_folder_for_each_case_and_a_row_for_each_input(backbone, cohort, tmp_path, capsys) -> None:
    assert embed(["-i", str(cohort), "-o", str(tmp_path / "out"), *backbone]) == 8
    rows = results(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(("case0.nii.gz", "case1.nii.gz", "disc"), "done"),
        "empty.nii": "rejected",
    }
    assert capsys.readouterr().out.endswith(f"4 cases: 3 done, 1 rejected · {tmp_path / 'out' / 'results.csv'}\n")
    folder = tmp_path / "out" / case_id(sha256_of_file(cohort / "case1.nii.gz"))
    alone = tmp_path / "alone"
    assert embed(["-i", str(cohort / "case1.nii.gz"), "-o", str(alone), *backbone]) == 0
    for name in ("meddinov3_slice_embeddings.npy", "embedding_mean.npy", "similarity_map.npy"):
        np.testing.assert_allclose(np.load(folder / name), np.load(alone / name), atol=1e-5)
    ours, theirs = (json.loads((one / "summary.json").read_text()) for one in (folder, alone))
    assert ours["similarity"]["patch"] == theirs["similarity"]["patch"]
    assert ours["embed_s"] is None


def test_embed_computes_again_what_was_deleted_and_nothing_else(backbone, cohort, tmp_path, capsys) -> None:
    words = ["-i", str(cohort / "case*.nii.gz"), "-o", str(tmp_path / "out"), *backbone]
    assert embed(words) == 0
    kept, gone = (tmp_path / "out" / case_id(sha256_of_file(cohort / f"case{k}.nii.gz")) for k in range(2))
    before = (kept / "summary.json").stat().st_mtime_ns
    for path in gone.iterdir():
        path.unlink()
    assert embed(words) == 0
    assert (gone / "summary.json").exists()
    assert (kept / "summary.json").stat().st_mtime_ns == before


def test_embed_prints_json_of_a_case_and_of_a_batch(backbone, cohort, tmp_path, capsys) -> None:
    assert embed(["-i", str(cohort / "disc"), "-o", str(tmp_path / "a"), "--json", *backbone]) == 0
    assert json.loads(capsys.readouterr().out)["n_slices"] == SHAPE[0]
    assert embed(["-i", str(cohort / "case*.nii.gz"), "-o", str(tmp_path / "b"), "--json", *backbone]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["done"] == 2


def test_convert_writes_a_folder_for_each_case(cohort, tmp_path, capsys) -> None:
    assert convert(["-i", str(cohort), "--output", str(tmp_path / "out")]) == 8
    rows = results(tmp_path / "out")
    assert {row["status"] for row in rows.values()} == {"done", "rejected"}
    volume = read_volume(cohort / "disc")
    written = tmp_path / "out" / rows["disc"]["case_id"] / "volume.nii.gz"
    np.testing.assert_array_equal(read_volume(written).hu, volume.hu)
    assert json.loads(written.with_name("volume.json").read_text())["input"] == str(cohort / "disc")
    assert "3 done, 1 rejected" in capsys.readouterr().out
    assert status([str(tmp_path / "out")]) == 0


def test_convert_takes_a_folder_of_several_studies(tmp_path, capsys) -> None:
    study(tmp_path / "disc" / "a", 1)
    study(tmp_path / "disc" / "b", 2)
    assert convert(["-i", str(tmp_path / "disc"), "--output", str(tmp_path / "case.nii.gz")]) == 2
    assert "expected a folder, for 2 cases in" in capsys.readouterr().err
    assert convert(["-i", str(tmp_path / "disc"), "--output", str(tmp_path / "out"), "--spacing", "4", "4", "5"]) == 0
    for row in results(tmp_path / "out").values():
        image = nib.load(tmp_path / "out" / row["case_id"] / "volume.nii.gz")
        assert image.header.get_zooms() == (4, 4, 5)


@pytest.mark.parametrize(("inputs", "output"), [("disc", "out"), ("case0.nii.gz", "out"), ("case*.nii.gz", "x.nii.gz")])
def test_an_output_of_the_wrong_kind_is_refused_before_any_work(cohort, tmp_path, capsys, inputs, output) -> None:
    assert convert(["-i", str(cohort / inputs), "--output", str(tmp_path / output)]) == 2
    assert "expected a" in capsys.readouterr().err
    assert not (tmp_path / output).exists()


def test_convert_replaces_no_result_of_another_input(cohort, tmp_path, capsys) -> None:
    output = ["--output", str(tmp_path / "case.nii.gz")]
    assert convert(["-i", str(cohort / "case0.nii.gz"), *output]) == 0
    first = (tmp_path / "case.nii.gz").read_bytes()
    assert convert(["-i", str(cohort / "case0.nii.gz"), *output]) == 0
    assert convert(["-i", str(cohort / "case1.nii.gz"), *output]) == 2
    assert "choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "case.nii.gz").read_bytes() == first
    assert convert(["-i", str(cohort / "case1.nii.gz"), *output, "--overwrite"]) == 0
    assert (tmp_path / "case.nii.gz").read_bytes() != first


def test_convert_leaves_no_document_of_an_earlier_conversion_and_replaces_no_foreign_file(
    cohort, tmp_path, capsys
) -> None:
    words = ["-i", str(cohort / "case0.nii.gz"), "--output", str(tmp_path / "case.nii.gz")]
    assert convert(words) == 0
    assert (tmp_path / "case.slices.json").exists()
    assert convert([*words, "--spacing", "2", "2", "2"]) == 0
    assert not (tmp_path / "case.slices.json").exists()
    (tmp_path / "mine.nii.gz").write_bytes(b"precious")
    words[3] = str(tmp_path / "mine.nii.gz")
    assert convert(words) == 2
    assert "was not written by convert" in capsys.readouterr().err
    assert (tmp_path / "mine.nii.gz").read_bytes() == b"precious"
    assert convert([*words, "--overwrite"]) == 0


def test_results_of_another_verb_are_not_mixed_in(cohort, tmp_path, backbone, capsys) -> None:
    assert convert(["-i", str(cohort / "case*.nii.gz"), "--output", str(tmp_path / "out")]) == 0
    assert embed(["-i", str(cohort / "case*.nii.gz"), "-o", str(tmp_path / "out"), *backbone]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="names are text on Windows")
def test_a_name_that_is_not_utf_8_is_written_as_an_escape_and_resumed(cohort, tmp_path) -> None:
    (cohort / "case0.nii.gz").rename(os.fsdecode(os.fsencode(cohort) + b"/caf\xe9.nii.gz"))
    words = ["-i", str(cohort / "c*.nii.gz"), "--output", str(tmp_path / "out")]
    assert convert(words) == 0
    assert results(tmp_path / "out")["caf\\udce9.nii.gz"]["status"] == "done"
    lines = (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()
    assert convert(words) == 0
    assert len((tmp_path / "out" / "ledger.jsonl").read_text().splitlines()) == len(lines) + 1  # nothing is done again
