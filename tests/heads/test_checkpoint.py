from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from meddinov3_stroke.errors import CheckpointError, MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.heads import HeadCheckpoint, LabelCalibration, load_checkpoint, predict_logits, save_checkpoint
from meddinov3_stroke.types import LABELS, Calibrator, Threshold


def test_checkpoint_comes_back_as_it_was_saved(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    digest = save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    for field in fields(HeadCheckpoint):
        if field.name not in ("state_dict", "sha256"):
            assert getattr(loaded, field.name) == getattr(checkpoint, field.name), field.name
    for name, tensor in checkpoint.state_dict.items():
        np.testing.assert_array_equal(loaded.state_dict[name], tensor)
    assert loaded.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change", [{"backbone": None}, {"resize": None}, {"best_metric": None}, {"pool_mode": "unknown"}]
)
def test_unknown_origin_is_allowed(checkpoint: HeadCheckpoint, tmp_path: Path, change: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "best.pt", replace(checkpoint, **change))
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert {name: getattr(loaded, name) for name in change} == change


def test_loaded_head_gives_the_same_logits(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    before, after = (predict_logits(ck, rows).logits for ck in (checkpoint, load_checkpoint(tmp_path / "best.pt")))
    np.testing.assert_array_equal(before, after)


def test_same_checkpoint_gives_the_same_bytes(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    assert save_checkpoint(tmp_path / "a.pt", checkpoint) == save_checkpoint(tmp_path / "b.pt", checkpoint)


def damaged(checkpoint: HeadCheckpoint, path: Path, damage: Callable[[dict[str, Any]], Any]) -> Path:
    save_checkpoint(path, checkpoint)
    document = torch.load(path, weights_only=True)
    damage(document)
    torch.save(document, path)
    return path


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda d: d.pop("thresholds"), "lacks thresholds"),
        (lambda d: d.update(format="other"), "found format 'other', expected 'meddinov3_stroke.head'"),
        (lambda d: d.update(schema_version=3), "schema 3, expected at most 2"),
        (lambda d: d.update(labels=["a", "a", "b"]), "labels is"),
        (lambda d: d.update(labels=["a", "b"]), "thresholds for .*expected one for each label"),
        (lambda d: d.update(input_dim=9), r"expected .*hidden\.weight \[12, 9\].*found .*hidden\.weight \[12, 8\]"),
        (lambda d: d.update(input_dim=10**12), "tensors differ"),
        (lambda d: d.update(input_dim=True), "input_dim is"),
        (lambda d: d["params"].update(hidden_dim=0), "tensors differ"),
        (lambda d: d.update(arch="other"), "arch is 'other', expected one of mlp"),
        (lambda d: d["params"].update(dropout=1.0), "params is"),
        (lambda d: d.update(pool_mode="median"), "pool_mode is 'median', expected one of slice"),
        (lambda d: d.update(resize=0), "resize is '0'"),
        (lambda d: d.update(backbone={"name": "x"}), "backbone is"),
        (lambda d: d.update(best_metric=float("nan")), "best_metric is 'nan'"),
        (lambda d: d["thresholds"]["class_0"].update(value=1.5), "thresholds is"),
        (lambda d: d["pos_weight"].update(class_0=float("inf")), "pos_weight is"),
        (lambda d: d.update(format=torch.zeros(2)), "is not a head checkpoint"),
        (lambda d: d.update(schema_version=torch.ones(2)), "checkpoint schema"),
        (lambda d: d["backbone"].update(embed_dim="8"), "backbone is"),
        (lambda d: d["thresholds"].update({3: d["thresholds"]["class_0"]}), "thresholds is"),
        (lambda d: d["state_dict"].update({3: torch.zeros(1)}), "state_dict is"),
        (lambda d: d["state_dict"].pop("output.bias"), "tensors differ"),
        (lambda d: d["state_dict"].update(extra=torch.zeros(1)), r"found extra \[1\]"),
        (lambda d: d["state_dict"].update({"output.bias": torch.zeros(3).double()}), r"output\.bias \[3\] float64"),
        (lambda d: d["state_dict"]["output.bias"].fill_(float("nan")), r"NaN or infinity in output\.bias"),
    ],
)
def test_damaged_checkpoint_is_refused_with_expected_and_found(
    checkpoint: HeadCheckpoint, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(damaged(checkpoint, tmp_path / "best.pt", damage))


def test_backbone_weights_are_no_head_checkpoint(tmp_path: Path) -> None:
    torch.save({"teacher": {"w": torch.zeros(2)}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="not a head checkpoint"):
        load_checkpoint(tmp_path / "model.pth")


def test_truncated_checkpoint_is_refused(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError):
        load_checkpoint(path)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"nowhere\.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"format": "meddinov3_stroke.head", "state_dict": Malicious(tmp_path / "mark")}, tmp_path / "best.pt")
    with pytest.raises(UnsafeWeights):
        load_checkpoint(tmp_path / "best.pt")
    assert not (tmp_path / "mark").exists()


def test_threshold_origins_survive(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    thresholds = {**checkpoint.thresholds, "class_1": Threshold(0.5, "default 0.5: validation has no positive")}
    save_checkpoint(tmp_path / "best.pt", replace(checkpoint, thresholds=thresholds))
    assert load_checkpoint(tmp_path / "best.pt").thresholds["class_1"].origin.startswith("default 0.5")


def schema_1(checkpoint: HeadCheckpoint, path: Path) -> Path:
    """The file that the version before `arch` and `params` wrote."""

    def downgrade(document: dict[str, Any]) -> None:
        document.update(schema_version=1, **document.pop("params"))
        del document["arch"]

    return damaged(checkpoint, path, downgrade)


def test_a_checkpoint_of_the_version_before_loads(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    loaded = load_checkpoint(schema_1(checkpoint, tmp_path / "best.pt"))
    assert (loaded.arch, loaded.params, loaded.hidden_dim) == ("mlp", {"hidden_dim": 12, "dropout": 0.2}, 12)
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(predict_logits(loaded, rows).logits, predict_logits(checkpoint, rows).logits)


@pytest.mark.parametrize("hidden_dim", [0, 12])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_checkpoint_of_the_first_implementation_is_read(tmp_path: Path, hidden_dim: int, prefix: str) -> None:
    torch.manual_seed(1)
    parts = [nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 6)]
    head = nn.Sequential(*parts).eval() if hidden_dim else nn.Linear(8, 6)
    document = {
        "model_state_dict": {prefix * bool(hidden_dim) + name: value for name, value in head.state_dict().items()},
        "input_dim": 8,
        "num_classes": 6,
        "hidden_dim": hidden_dim,
        "dropout": 0.2,
        "pos_weight": torch.full((6,), 3.0),
        "epoch": 7,
        "score": 0.8,
    }
    torch.save(document, tmp_path / "best.pt")
    loaded = load_checkpoint(tmp_path / "best.pt")
    rows = torch.randn(20, 8)
    with torch.no_grad():
        np.testing.assert_allclose(predict_logits(loaded, rows.numpy()).logits, head(rows).numpy(), atol=1e-6)
    assert (loaded.labels, loaded.is_foreign, loaded.pos_weight["any"]) == (LABELS, True, 3.0)
    assert {threshold.value for threshold in loaded.thresholds.values()} == {0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 10**12},
        {"num_classes": "6"},
        {"model_state_dict": 3},
        {"model_state_dict": {}},
        {"dropout": "a lot"},
        {"epoch": "last"},
        {"pos_weight": ["x"]},
        {"hidden_dim": None, "model_state_dict": {str(k): torch.zeros(6) for k in range(6)}},
    ],
    ids=str,
)
def test_a_damaged_checkpoint_of_the_first_implementation_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    document = {"model_state_dict": nn.Linear(8, 6).state_dict(), "input_dim": 8, "num_classes": 6} | change
    torch.save(document, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="nor a readable foreign one"):
        load_checkpoint(tmp_path / "best.pt")


def test_loading_and_applying_a_head_needs_no_torch(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from meddinov3_stroke.heads import load_checkpoint, predict_logits\n"
        f"head = load_checkpoint({str(tmp_path / 'best.pt')!r})\n"
        "print(predict_logits(head, np.zeros((2, 8), np.float32)).probabilities.shape, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3) False"


def calibrated(checkpoint: HeadCheckpoint, kind: str) -> HeadCheckpoint:
    """The checkpoint with a calibration of each label: fitted, isotonic, and none."""
    sigmoid = LabelCalibration(Calibrator("sigmoid", 0.5, -1.0), np.array([[0.5, -1.0], [0.6, -0.9]]), {"n": 60})
    knots = ((-2.0, 0.1), (0.0, 0.2), (1.0, 0.9))
    isotonic = LabelCalibration(Calibrator("isotonic", knots=knots), np.array([[0.1, 0.3, 0.8]]), {"n": 60})
    none = LabelCalibration(None, np.zeros((0, 2)), {"reason": "too few"})
    fitted = dict(zip(checkpoint.labels, (sigmoid, isotonic, none), strict=True))
    return replace(checkpoint, calibration=fitted, operating_points={kind: checkpoint.thresholds})


def test_calibration_operating_points_and_digests_survive_saving(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    seen = {"training": {"rows": np.arange(3), "patients": np.array([-5, 7])}}
    given = replace(calibrated(checkpoint, "youden"), seen=seen)
    save_checkpoint(tmp_path / "head.pt", given)
    found = load_checkpoint(tmp_path / "head.pt")
    assert found.operating_points == given.operating_points
    np.testing.assert_array_equal((found.seen or {})["training"]["patients"], [-5, 7])
    for name, one in (given.calibration or {}).items():
        same = (found.calibration or {})[name]
        assert (same.calibrator, dict(same.figures)) == (one.calibrator, dict(one.figures))
        np.testing.assert_array_equal(same.refits, one.refits)
        assert [same.of(z) for z in (-9.0, -1.0, 0.3)] == [one.of(z) for z in (-9.0, -1.0, 0.3)]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("calibration", lambda stored: stored["class_0"].update(refits=stored["class_1"]["refits"])),
        ("calibration", lambda stored: stored["class_0"].update(calibrator=None)),
        ("calibration", lambda stored: stored["class_0"]["calibrator"].update(slope=float("nan"))),
        ("calibration", lambda stored: stored["class_2"].pop("reason")),
        ("calibration", lambda stored: stored.pop("class_1")),
        ("operating point youden", lambda stored: stored["youden"].pop("class_1")),
        ("operating_points", lambda stored: stored["youden"]["class_0"].update(value=2.0)),
        ("seen", lambda stored: stored["training"].update(rows="all")),
    ],
)
def test_a_damaged_calibration_is_refused(checkpoint: HeadCheckpoint, tmp_path: Path, field: str, change) -> None:
    path = tmp_path / "head.pt"
    save_checkpoint(path, replace(calibrated(checkpoint, "youden"), seen={"training": {"rows": np.arange(3)}}))
    document = torch.load(path, weights_only=True)
    change(document[{"operating point youden": "operating_points"}.get(field, field)])
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=field):
        load_checkpoint(path)
