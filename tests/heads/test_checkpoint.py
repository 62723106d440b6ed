from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meddinov3_stroke.errors import CheckpointError, MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.heads import HeadCheckpoint, check_backbone, load_checkpoint, predict_logits, save_checkpoint
from meddinov3_stroke.types import LABELS, BackboneIdentity, Threshold


def test_checkpoint_comes_back_as_it_was_saved(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    digest = save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    for field in fields(HeadCheckpoint):
        if field.name not in ("state_dict", "sha256"):
            assert getattr(loaded, field.name) == getattr(checkpoint, field.name), field.name
    assert all(np.array_equal(loaded.state_dict[k], v) for k, v in checkpoint.state_dict.items())
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


def test_head_of_a_checkpoint_is_in_eval_mode(checkpoint: HeadCheckpoint) -> None:
    assert not any(module.training for module in checkpoint.head().modules())


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
        (lambda d: d.update(schema_version=2), "schema 2, expected 1"),
        (lambda d: d.update(labels=["a", "a", "b"]), "labels is"),
        (lambda d: d.update(labels=["a", "b"]), "thresholds for .*expected one for each label"),
        (lambda d: d.update(input_dim=9), r"expected .*hidden\.weight \[12, 9\].*found .*hidden\.weight \[12, 8\]"),
        (lambda d: d.update(input_dim=10**12), "tensors differ"),
        (lambda d: d.update(input_dim=True), "input_dim is"),
        (lambda d: d.update(hidden_dim=0), "tensors differ"),
        (lambda d: d.update(dropout=1.0), "dropout is"),
        (lambda d: d.update(pool_mode="median"), "pool_mode is 'median', expected one of slice"),
        (lambda d: d.update(resize=0), "resize is '0'"),
        (lambda d: d.update(backbone={"name": "x"}), "backbone is"),
        (lambda d: d.update(best_metric=float("nan")), "best_metric is 'nan'"),
        (lambda d: d["thresholds"]["class_0"].update(value=1.5), "thresholds is"),
        (lambda d: d["pos_weight"].update(class_0=float("inf")), "pos_weight is"),
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


def test_backbone_weights_are_not_a_head_checkpoint(tmp_path: Path) -> None:
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


def test_file_holds_architecture_and_parameters_beside_the_keys_of_before(
    checkpoint: HeadCheckpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    document = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (document["arch"], document["params"]) == ("mlp", {"hidden_dim": 12, "dropout": 0.2})
    assert (document["hidden_dim"], document["dropout"]) == (12, 0.2)


def without_architecture(document: dict[str, Any]) -> None:
    del document["arch"], document["params"]


def test_checkpoint_from_before_arch_and_params_loads(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    loaded = load_checkpoint(damaged(checkpoint, tmp_path / "best.pt", without_architecture))
    assert (loaded.arch, loaded.params) == ("mlp", {"hidden_dim": 12, "dropout": 0.2})
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    np.testing.assert_array_equal(predict_logits(loaded, rows).logits, predict_logits(checkpoint, rows).logits)


def test_unknown_architecture_is_refused_with_the_known_ones(checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="arch is 'transformer', expected one of linear, mlp"):
        load_checkpoint(damaged(checkpoint, tmp_path / "best.pt", lambda d: d.update(arch="transformer")))


def legacy(path: Path, hidden_dim: int = 12, prefix: str = "net.", **changes: Any) -> torch.nn.Module:
    """A checkpoint of the earlier public implementation, with the names of a plain nn.Sequential."""
    torch.manual_seed(3)
    mlp = torch.nn.Sequential(
        torch.nn.LayerNorm(8), torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(12, 6)
    )
    head = mlp if hidden_dim else torch.nn.Linear(8, 6)
    document = {
        "model_state_dict": {(prefix if hidden_dim else "") + name: value for name, value in head.state_dict().items()},
        "input_dim": 8,
        "num_classes": 6,
        "hidden_dim": hidden_dim,
        "dropout": 0.2,
        "pos_weight": torch.arange(1.0, 7.0),
        "epoch": 4,
        "score": 0.81,
    }
    torch.save(document | changes, path)
    return head.eval()


@pytest.mark.parametrize("hidden_dim", [0, 12])
def test_checkpoint_of_the_earlier_implementation_is_read(tmp_path: Path, hidden_dim: int) -> None:
    head = legacy(tmp_path / "old.pt", hidden_dim)
    loaded = load_checkpoint(tmp_path / "old.pt")
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(predict_logits(loaded, rows).logits, head(torch.tensor(rows)).numpy(), atol=1e-6)
    assert (loaded.labels, loaded.epoch, loaded.best_metric, loaded.is_legacy) == (LABELS, 4, 0.81, True)
    assert list(loaded.pos_weight.values()) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert {threshold.value for threshold in loaded.thresholds.values()} == {0.5}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_state_dict": {"weight": torch.zeros(6, 7), "bias": torch.zeros(6)}}, "tensors differ"),
        ({"model_state_dict": {"a": torch.zeros(6, 8)}}, "tensors differ"),
        ({"num_classes": "six"}, "damaged head checkpoint of the earlier implementation"),
        ({"pos_weight": torch.ones(5)}, "damaged head checkpoint of the earlier implementation"),
    ],
)
def test_damaged_checkpoint_of_the_earlier_implementation_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    legacy(tmp_path / "old.pt", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(tmp_path / "old.pt")


def test_head_of_the_earlier_implementation_is_refused_for_images(tmp_path: Path, identity: BackboneIdentity) -> None:
    legacy(tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"transposed .* without antialiasing.* takes minutes .* train-rsna"):
        check_backbone(load_checkpoint(tmp_path / "old.pt"), identity, 224)
