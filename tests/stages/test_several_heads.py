"""`predict --checkpoint a.pt b.pt`: logits averaged, spread reported, heads that do not belong together refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke import load_backbone
from meddinov3_stroke.heads import load_checkpoint, save_checkpoint
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.types import LABELS, Threshold


@pytest.fixture
def heads(random_weights: Callable[..., Path], random_head: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """Two heads on one backbone: a random one, and the same with other weights and thresholds."""
    first = random_head(load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu"))
    head = load_checkpoint(first)
    state = {name: 0.5 * array + np.float32(0.2) for name, array in head.state_dict.items()}
    save_checkpoint(tmp_path / "second.pt", replace(head, state_dict=state, thresholds=dict.fromkeys(LABELS, THIRD)))
    return [first, tmp_path / "second.pt"]


THIRD = Threshold(0.3, "given")


@pytest.fixture
def flags(random_weights: Callable[..., Path], head_nifti: Callable[..., Path], tmp_path: Path) -> list[str]:
    words = {"-i": head_nifti(), "--backbone": random_weights(), "-o": tmp_path / "out", "--device": "cpu"}
    return [str(word) for pair in words.items() for word in pair] + ["--engine", "torch", "--precision", "fp32"]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def logit(p: np.ndarray | float) -> np.ndarray:
    return np.log(p) - np.log1p(-np.asarray(p))


def given(heads: list[Path]) -> list[str]:
    return ["--checkpoint", *map(str, heads)]


def test_the_logits_of_a_case_and_of_its_thresholds_are_averaged(heads, flags, tmp_path, capsys) -> None:
    alone = []
    for k, head in enumerate(heads):
        assert predict([*flags, *given([head]), "-o", str(tmp_path / f"alone{k}")]) == 0
        alone.append(summary(tmp_path / f"alone{k}"))
    capsys.readouterr()
    assert predict([*flags, *given(heads)]) == 0
    both = summary(tmp_path / "out")
    for label in LABELS:
        each = np.array([one["probabilities"][label] for one in alone])
        assert logit(both["probabilities"][label]) == pytest.approx(logit(each).mean(), abs=1e-5)
        thresholds = np.array([one["thresholds"][label] for one in alone])
        assert logit(both["thresholds"][label]) == pytest.approx(logit(thresholds).mean(), abs=1e-9)
        spread = both["spread"][label]
        assert [spread["min"], spread["max"]] == pytest.approx([each.min(), each.max()])
        assert spread["sd"] == pytest.approx(each.std(ddof=1))
        assert [one[label] for one in both["probabilities_of_heads"]] == pytest.approx(each)
    assert [one["sha256"] for one in both["head"]["members"]] == [one["head_sha256"] for one in alone]
    assert both["head_sha256"] not in [one["head_sha256"] for one in alone]
    spread = both["spread"]["any"]
    answer = capsys.readouterr().out.splitlines()[-1]
    assert f"2 heads {spread['min']:.2f} to {spread['max']:.2f}" in answer


def test_a_single_head_is_reported_without_a_spread(heads, flags, tmp_path) -> None:
    assert predict([*flags, *given(heads[:1])]) == 0
    found = summary(tmp_path / "out")
    assert "spread" not in found
    assert "members" not in found["head"]


def test_a_batch_has_columns_for_the_range(heads, flags, head_nifti, tmp_path) -> None:
    head_nifti("cohort/a.nii.gz", seed=5)
    assert predict([*flags, *given(heads), "-i", str(tmp_path / "cohort")]) == 0
    with (tmp_path / "out" / "results.csv").open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert float(row["p_min_any"]) <= float(row["p_any"]) <= float(row["p_max_any"])


def test_heads_in_another_order_give_the_same_probabilities_and_name(heads, random_weights, head_nifti) -> None:
    both = [
        ICHPredictor.load(order, backbone=random_weights(), device="cpu", engine="torch", precision="fp32")
        for order in (heads, heads[::-1])
    ]
    assert both[0].heads.sha256 == both[1].heads.sha256
    cases = [one(head_nifti()) for one in both]
    assert cases[0].probabilities == pytest.approx(cases[1].probabilities, abs=1e-12)


def test_the_head_that_a_case_is_farthest_from_decides(heads, random_weights, head_nifti, tmp_path) -> None:
    from meddinov3_stroke.heads import TrainingDistribution

    head = load_checkpoint(heads[1])
    rule = TrainingDistribution(
        mean=np.full(head.input_dim, 100, np.float32),
        components=np.zeros((head.input_dim, 0), np.float32),
        variances=np.zeros(0, np.float32),
        residual_variance=1.0,
        limit=1.0,
        n_rows=100,
    )
    save_checkpoint(tmp_path / "far.pt", replace(head, distribution=rule))
    settings = {"backbone": random_weights(), "device": "cpu", "engine": "torch", "precision": "fp32", "force": True}
    for order in ([heads[0], tmp_path / "far.pt"], [tmp_path / "far.pt", heads[0]]):
        case = ICHPredictor.load(order, **settings)(head_nifti())
        assert case.findings.distribution["in_distribution"] is False


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"labels": LABELS[::-1]}, 6, "labels: expected"),
        ({"pool_mode": "max"}, 6, "pool_mode: expected"),
        ({"resize": 999}, 6, "resize: expected"),
        ({}, 2, "this head is named twice"),
    ],
)
def test_heads_that_do_not_belong_together_are_refused(heads, flags, tmp_path, capsys, change, code, words) -> None:
    save_checkpoint(tmp_path / "other.pt", replace(load_checkpoint(heads[0]), **change))
    assert predict([*flags, *given([heads[0], tmp_path / "other.pt"])]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_head_at_all_is_a_usage_error(flags, capsys) -> None:
    assert predict([*flags, "--checkpoint"]) == 2
