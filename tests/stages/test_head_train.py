from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from meddinov3_stroke import head_train
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import DatasetError, LabelError, NonFiniteLoss, UsageError
from meddinov3_stroke.head_train import UNKNOWN_PATIENTS
from meddinov3_stroke.heads import HeadContext, load_checkpoint, predict_logits
from meddinov3_stroke.heads.training import BestEpoch
from meddinov3_stroke.types import LABELS, BackboneIdentity, HeadData, Preprocessing

IDENTITY = BackboneIdentity(
    "tiny", "ab" * 32, 8, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "made-up-1"), "torch", "fp32"
)
OPTIONS = HeadConfig(
    epochs=4, batch_size=32, lr=1e-2, weight_decay=1e-2, hidden_dim=16, dropout=0.1, seed=11, patience=0
)
CONTEXT = HeadContext("mean", 224, asdict(IDENTITY), LABELS)


def made_up(n_rows: int, seed: int) -> HeadData:
    embeddings = np.random.default_rng(seed).normal(size=(n_rows, 8)).astype(np.float32)
    noise = np.random.default_rng(seed + 1000).normal(size=(n_rows, 5))
    subtypes = (embeddings[:, :5] + 0.5 * noise > 0.8).astype(np.int8)
    return HeadData(embeddings, np.concatenate([subtypes.max(axis=1, keepdims=True), subtypes], axis=1))


@pytest.fixture(scope="module")
def data() -> tuple[HeadData, HeadData]:
    return made_up(200, 1), made_up(80, 2)


@pytest.fixture
def arguments(tmp_path: Path, data: tuple[HeadData, HeadData]) -> list[str]:
    flags = ["--output-dir", str(tmp_path / "out"), "--epochs", "3", "--device", "cpu", "--quiet"]
    for split, part in zip(("train", "val"), data, strict=True):
        for name in ("embeddings", "labels"):
            np.save(tmp_path / f"{split}_{name}.npy", getattr(part, name))
            flags += [f"--{split}-{name}", str(tmp_path / f"{split}_{name}.npy")]
    return flags


def saved(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train_summary.json").read_text(encoding="utf-8"))


def train(folder: Path, data: tuple[HeadData, HeadData], **changes: Any) -> dict[str, Any]:
    return head_train.train_head(*data, replace(OPTIONS, **changes), CONTEXT, folder, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: tuple[HeadData, HeadData]) -> Path:
    """The folder of one training with `OPTIONS`, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, data)
    return folder


def test_command_writes_the_four_files_and_says_so(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head_train.main(arguments) == 0
    written = {"best.pt", "last.pt", "train_summary.json", "training_curve.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    printed = capsys.readouterr().out
    assert all(f"wrote {tmp_path / 'out' / name}" in printed for name in written)
    *_, disclaimer, last = printed.splitlines()
    assert "research use only" in disclaimer
    assert last.startswith("kept epoch ")
    assert last.endswith(f" · {tmp_path / 'out' / 'best.pt'}")


def test_summary_holds_configuration_history_best_metric_and_checkpoints(arguments: list[str], tmp_path: Path) -> None:
    head_train.main(arguments)
    summary = saved(tmp_path / "out")
    assert (summary["config"]["epochs"], summary["config"]["lr"], summary["config"]["seed"]) == (3, 1e-3, 42)
    assert summary["config"]["train_embeddings"] == str(tmp_path / "train_embeddings.npy")
    assert [row["epoch"] for row in summary["history"]] == [1, 2, 3]
    assert set(summary["history"][0]["val_per_class_auroc"]) == set(LABELS)
    assert summary["best_metric"] == max(row["val_macro_auroc"] for row in summary["history"])
    assert set(summary["checkpoints"]) == {"best", "last"}
    assert load_checkpoint(Path(summary["checkpoints"]["best"])).sha256 == summary["checkpoint_sha256"]["best"]
    assert {"schema_version", "disclaimer", "package_versions", "seeds", "device", "warnings"} <= set(summary)


def test_best_is_the_epoch_of_the_highest_validation_auroc(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    summary = train(tmp_path, data, epochs=12, lr=3e-2)
    best, last = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("best", "last"))
    aurocs = [row["val_macro_auroc"] for row in summary["history"]]
    assert best.epoch == summary["best_epoch"] == int(np.argmax(aurocs)) + 1
    assert last.epoch == 12
    probabilities = predict_logits(best, data[1].embeddings).probabilities
    assert roc_auc_score(data[1].labels, probabilities, average="macro") == pytest.approx(best.best_metric)


def test_checkpoint_carries_what_the_head_belongs_to(trained: Path, data: tuple[HeadData, HeadData]) -> None:
    best = load_checkpoint(trained / "best.pt")
    assert (best.labels, best.input_dim, best.hidden_dim, best.pool_mode, best.resize) == (LABELS, 8, 16, "mean", 224)
    assert best.backbone == asdict(IDENTITY)
    n_positive = data[0].labels.sum(axis=0)
    assert list(best.pos_weight.values()) == pytest.approx(list(np.minimum((200 - n_positive) / n_positive, 20)))
    assert all(threshold.origin.startswith("validation Youden (") for threshold in best.thresholds.values())


def test_thresholds_are_those_of_the_checkpoint_s_own_epoch(trained: Path, data: tuple[HeadData, HeadData]) -> None:
    from meddinov3_stroke.metrics import youden_thresholds

    for name in ("best", "last"):
        checkpoint = load_checkpoint(trained / f"{name}.pt")
        probabilities = predict_logits(checkpoint, data[1].embeddings).probabilities
        expected = youden_thresholds(data[1].labels, probabilities, LABELS)
        found = {label: threshold.value for label, threshold in checkpoint.thresholds.items()}
        assert found == pytest.approx({label: threshold.value for label, threshold in expected.items()})


def test_same_seed_gives_bit_identical_checkpoints(
    trained: Path, tmp_path: Path, data: tuple[HeadData, HeadData]
) -> None:
    train(tmp_path, data)
    for file in ("best.pt", "last.pt"):
        assert (tmp_path / file).read_bytes() == (trained / file).read_bytes()


def test_another_seed_gives_other_weights(trained: Path, tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    train(tmp_path, data, seed=OPTIONS.seed + 1)
    first, second = (load_checkpoint(folder / "last.pt").state_dict for folder in (trained, tmp_path))
    assert not np.array_equal(first["output.weight"], second["output.weight"])


def test_hidden_dim_zero_saves_a_single_linear_layer(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    train(tmp_path, data, hidden_dim=-5)
    best = load_checkpoint(tmp_path / "best.pt")
    assert {name: tuple(tensor.shape) for name, tensor in best.state_dict.items()} == {"weight": (6, 8), "bias": (6,)}


def test_patience_stops_training_early(
    tmp_path: Path, data: tuple[HeadData, HeadData], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = BestEpoch.offer
    monkeypatch.setattr(BestEpoch, "offer", lambda self, epoch, auroc, loss: offer(self, epoch, 0.5, loss))
    summary = train(tmp_path, data, epochs=20, patience=3)
    assert (len(summary["history"]), summary["stopped"]) == (4, "patience")
    assert train(tmp_path, data, epochs=5, patience=0)["stopped"] == "all epochs"


def test_label_absent_from_validation_is_null_with_threshold_one_half(
    tmp_path: Path, data: tuple[HeadData, HeadData]
) -> None:
    labels = data[1].labels.copy()
    labels[:, 1] = 0
    summary = train(tmp_path, (data[0], HeadData(data[1].embeddings, labels)))
    assert summary["history"][0]["val_per_class_auroc"]["epidural"] is None
    assert summary["thresholds"]["epidural"] == 0.5
    assert summary["threshold_origins"]["epidural"] == "default 0.5: validation has no positive among 80 rows"
    assert any("epidural has 0 positive" in warning for warning in summary["warnings"])


def test_without_any_validation_auroc_the_lowest_loss_decides_and_the_summary_says_so(
    tmp_path: Path, data: tuple[HeadData, HeadData]
) -> None:
    val = HeadData(data[1].embeddings, np.zeros_like(data[1].labels))
    summary = train(tmp_path, (data[0], val), epochs=6)
    losses = [row["val_loss"] for row in summary["history"]]
    assert summary["metric_name"] == "val_loss"
    assert summary["best_metric"] == min(losses)
    assert summary["best_epoch"] == int(np.argmin(losses)) + 1


def test_label_absent_from_training_is_refused_with_counts(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    labels = data[0].labels.copy()
    labels[:, 5] = 0
    with pytest.raises(LabelError, match="subdural 0"):
        train(tmp_path, (HeadData(data[0].embeddings, labels), data[1]))
    assert list(tmp_path.iterdir()) == []


def nan_after(n_good: int) -> Callable[..., Any]:
    from meddinov3_stroke.heads.training import train_epochs

    def epochs(*arguments: Any) -> Any:
        for result in train_epochs(*arguments):
            if result.epoch > n_good:
                raise NonFiniteLoss(f"loss is nan in epoch {result.epoch}, batch 1 of 7")
            yield result

    return epochs


def test_nan_loss_leaves_the_good_checkpoints_and_their_summary(
    tmp_path: Path, data: tuple[HeadData, HeadData], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "good", data, epochs=2)
    monkeypatch.setattr("meddinov3_stroke.heads.training.train_epochs", nan_after(2))
    with pytest.raises(NonFiniteLoss, match="epoch 3, batch 1"):
        train(tmp_path / "bad", data, epochs=4)
    for name in ("best.pt", "last.pt"):
        assert (tmp_path / "bad" / name).read_bytes() == (tmp_path / "good" / name).read_bytes()
    assert saved(tmp_path / "bad")["stopped"] == "non-finite loss"


def test_nan_loss_in_the_first_epoch_leaves_an_older_best_alone(
    tmp_path: Path, data: tuple[HeadData, HeadData], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, data)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("meddinov3_stroke.heads.training.train_epochs", nan_after(0))
    with pytest.raises(NonFiniteLoss):
        train(tmp_path, data)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("python_sigint")
def test_sigint_finishes_the_epoch_saves_and_exits_130(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = BestEpoch.offer

    def interrupted_in_epoch_2(self: BestEpoch, epoch: int, *rest: Any) -> bool:
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)
        return offer(self, epoch, *rest)

    monkeypatch.setattr(BestEpoch, "offer", interrupted_in_epoch_2)
    assert head_train.main([*arguments, "--epochs", "9"]) == 130
    assert load_checkpoint(tmp_path / "out" / "last.pt").epoch == 2
    summary = saved(tmp_path / "out")
    assert (summary["stopped"], len(summary["history"])) == ("interrupted", 2)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--epochs", "0"], 2),
        (["--dropout", "1.5"], 2),
        (["--device", "toaster"], 2),
        (["--train-labels", "nowhere.npy"], 5),
    ],
)
def test_bad_flags_and_files_have_their_exit_codes(
    arguments: list[str], tmp_path: Path, flags: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head_train.main([*arguments, *flags]) == code
    assert not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("E-")


def test_any_against_the_subtypes_needs_a_policy(arguments: list[str], tmp_path: Path, data: Any) -> None:
    labels = data[0].labels.copy()
    labels[3, 0] = 1 - labels[3, 0]
    np.save(tmp_path / "train_labels.npy", labels)
    assert head_train.main(arguments) == 5
    assert head_train.main([*arguments, "--label-policy", "fix-any"]) == 0
    assert any("set to the OR" in warning for warning in saved(tmp_path / "out")["warnings"])


class TestOrigin:
    @pytest.fixture
    def folders(self, tmp_path: Path, data: tuple[HeadData, HeadData]) -> list[str]:
        flags = ["--output-dir", str(tmp_path / "out"), "--epochs", "1", "--device", "cpu", "--quiet"]
        for split, part in zip(("train", "val"), data, strict=True):
            (tmp_path / split).mkdir()
            for name in ("embeddings", "labels"):
                np.save(tmp_path / split / f"{name}.npy", getattr(part, name))
                flags += [f"--{split}-{name}", str(tmp_path / split / f"{name}.npy")]
            self.describe(tmp_path / split, IDENTITY)
        return flags

    def describe(self, folder: Path, identity: BackboneIdentity) -> None:
        summary = {"pool_mode": "slice", "resize": 224, "backbone": asdict(identity)}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    def test_summary_beside_the_embeddings_goes_into_the_checkpoint(self, folders: list[str], tmp_path: Path) -> None:
        assert head_train.main(folders) == 0
        best = load_checkpoint(tmp_path / "out" / "best.pt")
        assert (best.backbone, best.pool_mode, best.resize) == (asdict(IDENTITY), "slice", 224)
        assert saved(tmp_path / "out")["warnings"] == [UNKNOWN_PATIENTS]

    def test_without_summaries_the_backbone_is_unknown_and_warned_of(self, folders: list[str], tmp_path: Path) -> None:
        for split in ("train", "val"):
            (tmp_path / split / "summary.json").unlink()
        assert head_train.main(folders) == 0
        best = load_checkpoint(tmp_path / "out" / "best.pt")
        assert (best.backbone, best.pool_mode, best.resize) == (None, "unknown", None)
        assert len(saved(tmp_path / "out")["warnings"]) == 3

    def test_training_and_validation_by_two_backbones_are_refused(self, folders: list[str], tmp_path: Path) -> None:
        self.describe(tmp_path / "val", replace(IDENTITY, weights_sha256="cd" * 32))
        assert head_train.main(folders) == 5


def test_other_label_counts_are_named_class_0_onwards(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    parts = [HeadData(part.embeddings, part.labels[:, 1:3]) for part in data]
    names = ("class_0", "class_1")
    head_train.train_head(*parts, OPTIONS, replace(CONTEXT, label_names=names), tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "best.pt").labels == names


def test_arrays_given_from_python_are_checked_too(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    embeddings = data[0].embeddings.copy()
    embeddings[5, 2] = np.nan
    with pytest.raises(DatasetError, match="training: NaN or infinity in row 5"):
        train(tmp_path, (HeadData(embeddings, data[0].labels), data[1]))
    with pytest.raises(UsageError, match="--batch-size 0"):
        train(tmp_path, data, batch_size=0)


def test_curve_is_a_picture_that_changes_with_the_history(
    trained: Path, tmp_path: Path, data: tuple[HeadData, HeadData]
) -> None:
    train(tmp_path, data, epochs=1)
    first, second = (np.asarray(Image.open(folder / "training_curve.png")) for folder in (trained, tmp_path))
    assert first.shape == second.shape
    assert first.shape[0] > 300
    assert not np.array_equal(first, second)


def test_epochs_after_the_best_do_not_change_it(tmp_path: Path, data: tuple[HeadData, HeadData]) -> None:
    summary = train(tmp_path, data, epochs=10, lr=0.3)
    best, last = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("best", "last"))
    assert summary["best_epoch"] < 10
    assert not np.array_equal(best.state_dict["output.weight"], last.state_dict["output.weight"])


def test_help_needs_no_torch() -> None:
    code = "import sys; from meddinov3_stroke import head_train, head_eval; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"


def test_without_validation_the_last_epoch_is_kept_and_thresholds_are_one_half(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    position = arguments.index("--val-embeddings")
    assert head_train.main(arguments[:position]) == 0
    output = capfd.readouterr()
    assert "no validation arrays" in output.err
    assert "no validation" in output.out
    summary = saved(tmp_path / "out")
    assert (summary["best_epoch"], summary["best_metric"], summary["val"]) == (3, None, None)
    assert set(summary["thresholds"].values()) == {0.5}
    best, last = ((tmp_path / "out" / f"{name}.pt").read_bytes() for name in ("best", "last"))
    assert best == last
    origins = load_checkpoint(tmp_path / "out" / "best.pt").thresholds.values()
    assert {threshold.origin for threshold in origins} == {"default 0.5: no validation data"}


def test_validation_embeddings_without_labels_are_a_usage_error(arguments: list[str]) -> None:
    assert head_train.main(arguments[: arguments.index("--val-labels")]) == 2


def test_a_missing_torch_exits_7_with_the_install_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meddinov3_stroke.system.devices.find_spec", lambda name: None)
    assert head_train.main(arguments) == 7
    assert "pip install" in capfd.readouterr().err
