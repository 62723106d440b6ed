"""Test data seen in training is refused; evaluations are recorded and say how often their test set was seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke import head_eval, head_train
from meddinov3_stroke.cli import main
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.data.exposure import digests_of, record_exposure
from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.heads import HeadContext, load_checkpoint
from meddinov3_stroke.types import HeadData

CONTEXT = HeadContext("mean", 224, None, ("class_0", "class_1"))
CONFIG = HeadConfig(epochs=1, batch_size=32, lr=1e-2, hidden_dim=0, dropout=0.0, seed=0, patience=0)


def rows(seed: int, n: int = 60) -> HeadData:
    rng = np.random.default_rng(seed)
    groups, pixels = tuple(f"patient:P{seed}-{k // 2}" for k in range(n)), tuple(f"{seed}-{k}" for k in range(n))
    labels = (rng.random((n, 2)) < 0.4).astype(np.int8)
    return HeadData(rng.normal(size=(n, 8)).astype(np.float32), labels, groups, pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained head and the arrays of three splits."""
    folder = tmp_path_factory.mktemp("trained")
    head_train.train_head(rows(1), rows(2), CONFIG, CONTEXT, folder, progress=False)
    for seed, split in enumerate(("train", "val", "test"), start=1):
        np.save(folder / f"{split}_embeddings.npy", rows(seed).embeddings)
        np.save(folder / f"{split}_labels.npy", rows(seed).labels)
    return folder


@pytest.fixture
def test_head(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs `test-head` on a split; returns the document."""

    def run(split: str, *flags: str, expected: int = 0) -> dict[str, Any]:
        words = ["--quiet", "--checkpoint", folder / "best.pt", "--exposure-record", tmp_path / "record.jsonl"]
        words += ["--embeddings", folder / f"{split}_embeddings.npy", "--labels", folder / f"{split}_labels.npy"]
        words += ["--output-json", tmp_path / "metrics.json", "--output-probs", tmp_path / "probs.npy", *flags]
        assert head_eval.main([str(word) for word in words]) == expected
        return json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) if expected == 0 else {}

    return run


def test_rows_seen_in_training_are_refused(test_head, capsys) -> None:
    test_head("train", expected=5)
    assert "the head was trained on 60 of 60 rows of this test set" in capsys.readouterr().err


def test_data_that_may_have_been_seen_are_tested_with_a_warning(test_head) -> None:
    warnings = " ".join(test_head("train", "--allow-seen")["warnings"])
    assert "the head was trained on 60 of 60 rows of this test set, so its figures are too good" in warnings


def test_scores_of_unknown_heads_are_not_taken_for_one_head(tmp_path: Path) -> None:
    for _ in range(2):
        found = record_exposure(tmp_path / "record.jsonl", digests_of(["patient:A"]), None, "evaluate")
    assert (found["earlier_by_this_head"], found["earlier_by_others"]) == (0, 1)


def test_another_picture_of_errors_is_left_alone(test_head, tmp_path: Path) -> None:
    (tmp_path / "errors.png").write_bytes(b"of somebody else")
    test_head("test")
    assert (tmp_path / "errors.png").read_bytes() == b"of somebody else"


def test_patients_of_training_are_not_validated_on(folder: Path, tmp_path: Path, capsys) -> None:
    words = [
        f"--{split}-{what}={folder}/{split}_{what}.npy"
        for split in ("train", "val")
        for what in ("embeddings", "labels")
    ]
    for split, first in (("train", 0), ("val", 59)):
        (tmp_path / f"{split}.csv").write_text("patient_id\n" + "\n".join(f"P{k}" for k in range(first, first + 60)))
        words.append(f"--{split}-table={tmp_path}/{split}.csv")
    assert head_train.main([*words, "--epochs=1", f"--output-dir={tmp_path}/out"]) == 5
    assert "1 patients are in" in capsys.readouterr().err


def test_rows_seen_in_validation_are_warned_about(test_head) -> None:
    assert "the head was validated on 60 of 60 rows" in " ".join(test_head("val")["warnings"])
    assert "validated on" not in " ".join(test_head("test")["warnings"])


def test_a_single_row_seen_in_training_is_found_without_it_the_rest_is_tested(folder: Path) -> None:
    head, seen, new = load_checkpoint(folder / "best.pt"), rows(1), rows(3)
    both = ((getattr(new, name), getattr(seen, name)[:1]) for name in ("embeddings", "labels"))
    mixed = HeadData(*map(np.concatenate, both))
    with pytest.raises(DatasetError, match="trained on 1 of 61 rows"):
        head_eval.evaluate_head(head, mixed)
    head_eval.evaluate_head(head, HeadData(mixed.embeddings[:60], mixed.labels[:60]))


@pytest.mark.parametrize(("what", "counted"), [("groups", "30 of 30 patients"), ("pixels", "60 of 60 pixels")])
def test_patients_and_pixels_seen_in_training_are_refused_whatever_their_embeddings(
    folder: Path, what: str, counted: str
) -> None:
    other = rows(3)
    data = HeadData(other.embeddings, other.labels, **{what: getattr(rows(1), what)})
    with pytest.raises(DatasetError, match=f"trained on {counted}"):
        head_eval.evaluate_head(load_checkpoint(folder / "best.pt"), data)


def test_a_table_names_the_patients_that_the_head_was_trained_on(test_head, tmp_path: Path, capsys) -> None:
    table = tmp_path / "table.csv"
    table.write_text("patient_id\n" + "\n".join(f"P1-{k}" for k in range(60)), encoding="utf-8")
    test_head("test", "--table", str(table), expected=5)
    assert "trained on 30 of 60 patients" in capsys.readouterr().err


def test_evaluate_refuses_patients_of_the_training_of_its_checkpoint(folder: Path, tmp_path: Path, capsys) -> None:
    def evaluate(start: str) -> int:
        lines = [f"{start}-{k},{k % 2},0.{k + 1}" for k in range(30)]
        (tmp_path / "t.csv").write_text("\n".join(["patient_id,any,p_any", *lines]), encoding="utf-8")
        words = ["evaluate", "--table", tmp_path / "t.csv", "--checkpoint", folder / "best.pt", "-o", tmp_path / "out"]
        return main([str(word) for word in [*words, "--exposure-record", tmp_path / "record.jsonl"]])

    assert evaluate("P1") == 5
    assert "trained on 30 of 30 patients" in capsys.readouterr().err
    assert evaluate("P9") == 0
    line = json.loads((tmp_path / "record.jsonl").read_text(encoding="utf-8"))
    assert line["head_sha256"] == load_checkpoint(folder / "best.pt").sha256


def test_an_evaluation_says_how_often_its_test_set_was_evaluated(test_head, tmp_path: Path, capsys) -> None:
    def counts(split: str) -> list[int]:
        exposure = test_head(split)["exposure"]
        return [exposure[name] for name in ("earlier_by_this_head", "earlier_by_others", "other_heads")]

    assert counts("test") == [0, 0, 0]
    record = tmp_path / "record.jsonl"
    line = json.loads(record.read_text(encoding="utf-8"))
    assert set(line) == {"time", "command", "head_sha256", "test_set"}
    with record.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line | {"head_sha256": "another"}) + "\n" + '{"cut off')
    capsys.readouterr()
    assert counts("test") == [1, 1, 1]
    assert "earlier evaluations of this test set: 1 of this head, 1 of other heads" in capsys.readouterr().out
    assert counts("val") == [0, 0, 0]  # another test set
    assert len(record.read_text(encoding="utf-8").splitlines()) == 5  # only ever appended


def test_a_test_set_is_known_by_its_patients_whatever_their_order_and_embeddings(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    record_exposure(record, digests_of(["patient:A", "patient:B"], None, rows(1).embeddings), "first", "test-head")
    found = record_exposure(record, digests_of(["patient_id:B", "patient_id:A"]), "second", "evaluate")
    assert (found["earlier_by_others"], found["earlier_by_this_head"]) == (1, 0)


def test_hidden_names_leave_no_digest_of_a_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(1)
    assert set(digests_of(data.groups, data.pixels, data.embeddings)) == {"patients", "pixels", "rows"}
    monkeypatch.setattr("meddinov3_stroke.system.names.are_hidden", lambda: True)
    assert set(digests_of(data.groups, data.pixels, data.embeddings)) == {"pixels", "rows"}


def test_a_record_that_cannot_be_written_is_warned_about(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = record_exposure(tmp_path / "file" / "record.jsonl", digests_of(["patient:A"]), "head", "test-head")
    assert found["earlier_by_this_head"] == 0
    assert "this evaluation is not in the exposure record" in caplog.text
