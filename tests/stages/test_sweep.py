"""Heads compared by cross-validation, and the best one in `predict`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from meddinov3_stroke import ICHPredictor
from meddinov3_stroke.cli import main
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, slice_label_table, write_slice_labels
from meddinov3_stroke.heads import load_checkpoint
from meddinov3_stroke.types import LABELS

N = 12
BASE = ["--series-csv", "table.csv", "--backbone", "demo", "--engine", "openvino", "--precision", "fp32", "--quiet"]
WORDS = ["sweep", *BASE, "--cache-dir", "cache", "--resize", "64", "--folds", "3", "--epochs", "2", "--resamples", "50"]


@pytest.fixture
def table(head_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of twelve small heads of six patients, with labels of their slices."""
    monkeypatch.chdir(tmp_path)
    rows, slices = [",".join(["nifti_path", "patient_id", "study_uid", "series_uid", *LABELS])], []
    for k in range(N):
        path = head_nifti(f"heads/{k}.nii.gz", seed=k)
        label = ",".join([str(k % 2)] * 6)
        rows.append(f"{path},p{k // 2},1.{k},2.{k},{label}")
        slices.append((f"2.{k}", k % 2))
    Path("table.csv").write_text("\n".join(rows))
    return tmp_path


def write_labels(n_slices: int) -> None:
    import pyarrow as pa

    uids = pa.array([f"2.{k}" for k in range(N) for _ in range(n_slices)])
    indices = np.tile(np.arange(n_slices), N)
    labels = np.repeat(
        np.array([[k % 2 and i >= n_slices // 2] * 6 for k in range(N) for i in range(n_slices)]), 1, axis=0
    )
    positions = np.stack([np.zeros(len(indices)), np.zeros(len(indices)), indices * 5.0], axis=1)
    empty = pa.array([""] * len(indices))
    write_slice_labels(Path(SLICE_LABELS), slice_label_table(uids, indices, empty, positions, labels.astype(np.int8)))


def fitted_basis() -> str:
    words = ["extract", *BASE, "--cache-dir", "cache", "--resize", "64", "--views", "cls", "patches4"]
    assert main([*words, "--basis", "fit-all", "-o", "extracted"]) == 0
    return "extracted/patch_basis_patches4.safetensors"


def test_every_kind_of_head_is_ranked_with_the_reference_and_its_figures(table: Path) -> None:
    basis = fitted_basis()
    found = np.load("extracted/cohort_embeddings.npy")
    assert len(found) == N
    words = [*WORDS, "--views", "cls", "stats", "patches4", "--basis", basis]
    assert main([*words, "--heads", "linear", "probe", "slices", "evidence", "-o", "out"]) == 0
    document = json.loads(Path("out/sweep.json").read_text())
    names = {(one["view"], one["head"]) for one in document["candidates"]}
    on_rows = {(view, head) for view in ("cls", "stats") for head in ("linear", "probe", "slices")}
    assert names == {("cls", "mlp"), ("patches4", "evidence")} | on_rows
    macros = [one["macro"]["auroc"]["value"] for one in document["candidates"]]
    assert macros == sorted(macros, reverse=True)
    rows = pd.read_csv("out/leaderboard.csv")
    assert rows.macro_auroc.tolist() == pytest.approx(macros)
    reference = rows[(rows["view"] == "cls") & (rows["head"] == "mlp")].iloc[0]
    assert reference.any_minus_reference == 0
    assert Path("out/leaderboard.png").read_bytes().startswith(b"\x89PNG")
    assert "research use only" in Path("out/sweep.json").read_text().lower()


def test_no_patient_is_scored_by_a_head_that_has_seen_it(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meddinov3_stroke.heads import fitting

    seen: list[set[str]] = []
    real = fitting.fit_heads

    def spy(fits: Any, data: Any, *rest: Any) -> Any:
        seen.extend({data.groups[k] for k in fit.train} for fit in fits)
        return real(fits, data, *rest)

    monkeypatch.setattr(fitting, "fit_heads", spy)
    assert main([*WORDS, "--heads", "probe", "-o", "out"]) == 0
    of_folds = [one for one in seen if len(one) < N // 2]
    assert len(of_folds) == 6  # three folds of two heads
    assert all(len(set.intersection(*of_folds[k : k + 3])) == 0 for k in (0, 3))


def test_a_sweep_resumes_and_finished_fits_are_not_repeated(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*WORDS, "--heads", "linear", "-o", "out"]) == 0
    first = json.loads(Path("out/sweep.json").read_text())["candidates"]
    from meddinov3_stroke.heads import fitting

    calls: list[int] = []
    real = fitting.fit_heads
    monkeypatch.setattr(fitting, "fit_heads", lambda fits, *rest: (calls.append(len(fits)), real(fits, *rest))[1])
    assert main([*WORDS, "--heads", "linear", "-o", "out"]) == 0
    assert calls == [1]  # the best one on all rows
    assert json.loads(Path("out/sweep.json").read_text())["candidates"] == first
    assert main([*WORDS, "--heads", "linear", "--seeds", "2", "-o", "out"]) == 0
    assert calls[1:] == [3, 3, 1]  # the second seed of both heads


@pytest.mark.parametrize("head", ["slices", "mil", "gru", "evidence", "probe", "knn"])
def test_predict_gives_what_the_head_gives(table: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from meddinov3_stroke import sweeping

    real = sweeping.leaderboard
    # the head under test counts as the best
    monkeypatch.setattr(sweeping, "leaderboard", lambda *a: sorted(real(*a), key=lambda row: row["head"] != head))
    words = ["--views", "cls", "patches4", "--basis", fitted_basis()]
    assert main([*WORDS, *words, "--heads", head, *(() if head == "evidence" else ("evidence",)), "-o", "out"]) == 0
    checkpoint = load_checkpoint(Path("out/best.pt"))
    assert checkpoint.arch == head
    assert len((checkpoint.seen or {})["training"]["patients"]) == N // 2
    predictor = ICHPredictor.load(
        "out/best.pt", backbone="demo", engine="openvino", precision="fp32", device="cpu", force=True
    )
    case = predictor("heads/3.nii.gz")
    again = predictor.judge(__import__("meddinov3_stroke").read_volume("heads/3.nii.gz"))
    assert case.probabilities == pytest.approx(again.probabilities)
    assert set(case.probabilities) == set(LABELS)
    if checkpoint.pool_mode in ("slices", "patches"):
        assert case.findings.slice_probabilities is not None
        assert case.findings.slice_probabilities.shape == (len(case.findings.embeddings.slice_indices), 6)
    files = case.save("case")
    assert ("slice_probs.npy" in files) == (case.findings.slice_probabilities is not None)
    summary = json.loads(Path("case/summary.json").read_text())
    assert summary["head"]["arch"] == head


def test_slice_labels_beside_the_table_are_learned_and_judged(table: Path, head_nifti: Callable[..., Path]) -> None:
    from meddinov3_stroke import read_volume

    write_labels(read_volume("heads/0.nii.gz").n_slices)
    assert main([*WORDS, "--heads", "slices", "-o", "out"]) == 0
    document = json.loads(Path("out/sweep.json").read_text())
    (one,) = [one for one in document["candidates"] if one["head"] == "slices"]
    figures = one["slices"]["labels"]["any"]
    assert figures["model"]["position_matched_auroc"]["value"] is not None
    assert set(figures) >= {"mid_stack", "position_only"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--heads", "forest"], "--heads forest: expected some of mlp"),
        (["--heads", "evidence"], "none of the views is for it"),
        (["--position"], "--position needs the heights of slices"),
        (["--folds", "9"], "expected 2 to 6, the number of patients"),
        (["--views", "patches4", "--heads", "evidence"], "no basis for view patches4"),
    ],
)
def test_what_cannot_be_swept_is_said(table: Path, capsys, words, told) -> None:
    assert main([*WORDS, *words, "-o", "out"]) == 2
    assert told in capsys.readouterr().err
