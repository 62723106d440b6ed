"""The most confident errors: the right rows, in order, and pictures of their slices."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meddinov3_stroke.cli import main
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.predictions import read_predictions
from meddinov3_stroke.metrics import confident_errors
from meddinov3_stroke.report.errors import errors_png
from meddinov3_stroke.report.pictures import brain_window
from meddinov3_stroke.types import Threshold

SCORES = (0.9, 0.2, 0.1, 0.7, 0.6, 0.3)
TRUTH = (0, 1, 1, 0, 1, 0)


def test_errors_are_rows_on_the_wrong_side_the_farthest_first() -> None:
    truth, scores = np.array(TRUTH, dtype=np.int8)[:, None], np.array(SCORES)[:, None]
    found = confident_errors(truth, scores, ["any"], {"any": Threshold(0.5, "made up")}, 5)["any"]
    assert [one["index"] for one in found["false_positives"]] == [0, 3]
    assert [one["index"] for one in found["false_negatives"]] == [2, 1]
    assert found["false_negatives"][0]["score"] == 0.1
    one = confident_errors(truth, scores, ["any"], {"any": Threshold(0.5, "made up")}, 1)["any"]
    assert [len(side) for side in one.values()] == [1, 1]


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path) -> Path:
    """A table of six slices of one volume, four of them wrong; it ends with the slice that has blood."""
    head_nifti("case.nii.gz")
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["nifti_path", "patient_id", "slice_index", "n_slices", "any", "p_any"])
        for k, (truth, score) in enumerate(zip(TRUTH, SCORES, strict=True)):
            writer.writerow(["case.nii.gz", f"P{k}", k + 1, 8, truth, score])
    return tmp_path / "t.csv"


def test_evaluate_lists_and_draws_the_slices_of_its_errors(table: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", "--table", str(table), "-o", str(tmp_path / "out"), "--no-brightness"]) == 0
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    first = document["confident_errors"]["any"]["false_positives"][0]
    assert (first["row"], first["slice_index"], first["score"]) == (2, 1, 0.9)
    assert first["input"] == str(tmp_path / "case.nii.gz")
    assert f"wrote {tmp_path / 'out' / 'errors.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "errors.png") as picture:
        assert picture.width > 1000


def test_the_picture_shows_the_slice_of_the_row(table: Path) -> None:
    read = read_predictions(table)
    errors = {"any": {"false_positives": [{"index": 4, "score": 0.6}], "false_negatives": []}}
    png, warnings = errors_png(errors, read)
    assert warnings == []
    with Image.open(io.BytesIO(png or b"")) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    volume = read_volume(table.parent / "case.nii.gz")
    panel = np.argwhere(grey == 255).min(axis=0)  # of the skull, inside the panel
    assert panel.min() > 0
    windows = [brain_window(volume.hu_slices([k])[0]) for k in (5, 2)]  # of row 4, and one without blood
    shrunk = [np.asarray(Image.fromarray((one * 255).astype(np.uint8)).resize((315, 315))) for one in windows]
    top = next(k for k in range(grey.shape[0]) if np.abs(grey[k : k + 315, 45 : 45 + 315] - shrunk[0]).mean() < 12)
    found = grey[top : top + 315, 45 : 45 + 315]
    assert np.abs(found - shrunk[0]).mean() < np.abs(found - shrunk[1]).mean()


def test_a_table_whose_paths_are_of_another_machine_costs_the_picture_alone(table: Path, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace("case.nii.gz", "D:\\data\\case.nii.gz"))
    assert main(["evaluate", "--table", str(table), "-o", str(tmp_path / "out"), "--no-brightness"]) == 0
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert any("errors are not drawn: t.csv: paths of a Windows machine" in one for one in document["warnings"])


def test_volumes_are_looked_for_below_datasets_dir(table: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "case.nii.gz").rename(tmp_path / "elsewhere" / "case.nii.gz")
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "elsewhere"))
    assert main(["evaluate", "--table", str(table), "-o", str(tmp_path / "out"), "--no-brightness"]) == 0
    assert (tmp_path / "out" / "errors.png").exists()


def test_volumes_that_cannot_be_read_are_warned_about_and_zero_lists_none(table: Path, tmp_path: Path) -> None:
    (tmp_path / "case.nii.gz").unlink()
    words = ["evaluate", "--table", str(table), "-o", str(tmp_path / "out"), "--no-brightness"]
    assert main(words) == 0
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert any("1 volumes of the most confident errors are not drawn" in one for one in document["warnings"])
    assert not (tmp_path / "out" / "errors.png").exists()
    (tmp_path / "out" / "errors.png").write_bytes(b"of an earlier evaluation")
    assert main([*words, "--errors", "0"]) == 0
    assert not (tmp_path / "out" / "errors.png").exists()
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert document["confident_errors"]["any"] == {"false_positives": [], "false_negatives": []}
