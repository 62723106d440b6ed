from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from meddinov3_stroke import head_eval
from meddinov3_stroke.errors import CheckpointError, DatasetError
from meddinov3_stroke.heads import HeadCheckpoint, build_head, load_checkpoint, save_checkpoint
from meddinov3_stroke.metrics import NO_PATIENTS
from meddinov3_stroke.types import LABELS, BackboneIdentity, HeadData, Preprocessing, Threshold

IDENTITY = BackboneIdentity(
    "tiny", "ab" * 32, 8, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "made-up-1"), "torch", "fp32"
)


def made_up_checkpoint(labels: tuple[str, ...] = LABELS) -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint(
        state_dict={name: tensor.numpy() for name, tensor in build_head(8, 0, len(labels), 0.0).state_dict().items()},
        labels=labels,
        input_dim=8,
        arch="mlp",
        params={"hidden_dim": 0, "dropout": 0.0},
        pool_mode="mean",
        resize=224,
        backbone=asdict(IDENTITY),
        thresholds={label: Threshold(0.45, "validation Youden (3 positive of 9)") for label in labels},
        pos_weight={label: 1.0 + number for number, label in enumerate(labels)},
        seed=3,
        epoch=2,
        metric_name="val_macro_auroc",
        best_metric=0.75,
    )


@pytest.fixture
def data() -> HeadData:
    rng = np.random.default_rng(4)
    subtypes = (rng.random((60, 5)) < 0.3).astype(np.int8)
    labels = np.concatenate([subtypes.max(axis=1, keepdims=True), subtypes], axis=1)
    return HeadData(rng.normal(size=(60, 8)).astype(np.float32), labels)


@pytest.fixture
def arguments(tmp_path: Path, data: HeadData) -> list[str]:
    np.save(tmp_path / "e.npy", data.embeddings)
    np.save(tmp_path / "l.npy", data.labels)
    save_checkpoint(tmp_path / "best.pt", made_up_checkpoint())
    paths = {
        "embeddings": "e.npy",
        "labels": "l.npy",
        "checkpoint": "best.pt",
        "output-json": "out/metrics.json",
        "output-probs": "out/probs.npy",
    }
    return ["--quiet", "--device", "cpu"] + [x for k, v in paths.items() for x in (f"--{k}", str(tmp_path / v))]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))


def describe(folder: Path, **changes: Any) -> None:
    summary = {"pool_mode": "mean", "resize": 224, "backbone": asdict(IDENTITY)} | changes
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def test_command_writes_metrics_and_probabilities(
    arguments: list[str], tmp_path: Path, data: HeadData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head_eval.main(arguments) == 0
    metrics, probabilities = metrics_of(tmp_path), np.load(tmp_path / "out" / "probs.npy")
    assert probabilities.shape == (60, 6)
    for column, label in enumerate(LABELS):
        expected = roc_auc_score(data.labels[:, column], probabilities[:, column])
        assert metrics["per_class_auroc"][label] == pytest.approx(expected)
    assert metrics["macro_auroc"] == pytest.approx(np.mean(list(metrics["per_class_auroc"].values())))
    assert (metrics["n_samples"], metrics["n_classes_in_macro"]) == (60, 6)
    assert metrics["head_sha256"] == load_checkpoint(tmp_path / "best.pt").sha256
    assert metrics["weights_sha256"] == IDENTITY.weights_sha256
    printed = capsys.readouterr().out
    assert "research use only" in printed
    assert str(tmp_path / "out" / "metrics.json") in printed


def test_loss_is_torchs_with_the_pos_weight_of_training(data: HeadData) -> None:
    checkpoint = made_up_checkpoint()
    metrics, probabilities = head_eval.evaluate_head(checkpoint, data)
    state = {name: torch.from_numpy(array) for name, array in checkpoint.state_dict.items()}
    logits = torch.nn.functional.linear(torch.tensor(data.embeddings), state["weight"], state["bias"])
    weight = torch.tensor(list(checkpoint.pos_weight.values()))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(data.labels).float(), pos_weight=weight
    )
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(probabilities, expit(logits.numpy().astype(np.float64)), atol=1e-6)


def test_single_class_label_is_null_with_its_reason_and_out_of_the_macro(data: HeadData) -> None:
    labels = data.labels.copy()
    labels[:, 1] = 0
    metrics, _ = head_eval.evaluate_head(made_up_checkpoint(), HeadData(data.embeddings, labels))
    assert metrics["per_class_auroc"]["epidural"] is None
    assert metrics["per_class_auroc_reasons"] == {"epidural": "no positive among 60 rows"}
    assert metrics["n_classes_in_macro"] == 5
    assert metrics["n_positive"]["epidural"] == 0
    assert metrics["operating_points"]["epidural"]["sensitivity"] is None
    assert any("epidural" in warning for warning in metrics["warnings"])


def test_groups_add_an_interval_by_patient(data: HeadData) -> None:
    patients = [f"patient {k // 2}" for k in range(60)]
    metrics, _ = head_eval.evaluate_head(made_up_checkpoint(), data, patients)
    interval = metrics["macro_auroc_interval"]
    assert interval["low"] < metrics["macro_auroc"] < interval["high"]
    assert interval["unit"] == "patient"
    assert "macro_auroc_interval" not in head_eval.evaluate_head(made_up_checkpoint(), data)[0]


def test_other_embedding_size_or_labels_are_refused_with_expected_and_found(data: HeadData) -> None:
    with pytest.raises(CheckpointError, match=r"expected 8 .*found 7"):
        head_eval.evaluate_head(made_up_checkpoint(), HeadData(data.embeddings[:, :7], data.labels))
    with pytest.raises(CheckpointError, match=r"expected any, .*; found class_0, class_1;"):
        head_eval.evaluate_head(made_up_checkpoint(), HeadData(data.embeddings, data.labels[:, :2]))


def test_a_head_of_six_labels_in_another_order_is_refused(data: HeadData) -> None:
    with pytest.raises(CheckpointError, match=r"expected subdural, .*; found any,"):
        head_eval.evaluate_head(made_up_checkpoint(LABELS[::-1]), data)


def test_unnamed_columns_take_the_names_of_the_head(data: HeadData) -> None:
    metrics, _ = head_eval.evaluate_head(
        made_up_checkpoint(("bleed", "shift")), HeadData(data.embeddings, data.labels[:, :2])
    )
    assert list(metrics["per_class_auroc"]) == ["bleed", "shift"]


def test_operating_points_do_not_depend_on_the_order_of_the_thresholds(data: HeadData) -> None:
    checkpoint = made_up_checkpoint()
    shuffled = replace(checkpoint, thresholds=dict(reversed(checkpoint.thresholds.items())))
    points = [head_eval.evaluate_head(one, data)[0]["operating_points"] for one in (checkpoint, shuffled)]
    assert points[0] == points[1]


def test_arrays_given_from_python_are_checked_too(data: HeadData) -> None:
    data.embeddings[7, 0] = np.inf
    with pytest.raises(DatasetError, match="test: NaN or infinity in row 7"):
        head_eval.evaluate_head(made_up_checkpoint(), data)


def test_unknown_embeddings_are_warned_of(arguments: list[str], tmp_path: Path) -> None:
    assert head_eval.main(arguments) == 0
    assert any("no summary.json" in warning for warning in metrics_of(tmp_path)["warnings"])


def test_embeddings_of_the_training_backbone_give_no_warning(arguments: list[str], tmp_path: Path) -> None:
    describe(tmp_path)
    assert head_eval.main(arguments) == 0
    assert metrics_of(tmp_path)["warnings"] == [NO_PATIENTS]


@pytest.mark.parametrize(
    "changes",
    [{"backbone": asdict(replace(IDENTITY, weights_sha256="cd" * 32))}, {"resize": 512}],
    ids=["weights", "resize"],
)
def test_embeddings_of_another_make_exit_6_and_write_nothing(
    arguments: list[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    describe(tmp_path, **changes)
    assert head_eval.main(arguments) == 6
    assert not (tmp_path / "out").exists()


def test_embeddings_of_another_pooling_or_precision_are_warned_of(arguments: list[str], tmp_path: Path) -> None:
    describe(tmp_path, pool_mode="slice", backbone=asdict(replace(IDENTITY, precision="bf16")))
    assert head_eval.main(arguments) == 0
    warnings = " ".join(metrics_of(tmp_path)["warnings"])
    assert "pooled by mean, these are slice" in warnings
    assert "precision: expected fp32, found bf16" in warnings


@pytest.mark.parametrize(("flag", "code"), [("--checkpoint", 6), ("--embeddings", 5), ("--labels", 5)])
def test_missing_files_have_their_exit_codes(arguments: list[str], tmp_path: Path, flag: str, code: int) -> None:
    arguments[arguments.index(flag) + 1] = str(tmp_path / "nowhere")
    assert head_eval.main(arguments) == code


def test_door_has_the_head_its_auroc_and_its_checks() -> None:
    from meddinov3_stroke import head_model

    assert {"MLPHead", "build_head", "auroc_report", "check_head_data", "load_checkpoint"} <= set(head_model.__all__)
    assert all(hasattr(head_model, name) for name in head_model.__all__)


def test_scripts_are_entries_to_the_stages() -> None:
    scripts = Path(__file__).resolve().parents[2] / "script"
    for name, stage in (("train_meddinov3_head", "head_train"), ("test_meddinov3_head", "head_eval")):
        assert f"from meddinov3_stroke.{stage} import main" in (scripts / f"{name}.py").read_text(encoding="utf-8")


def test_counts_and_rates_at_a_threshold_are_scikit_learns(
    arguments: list[str], tmp_path: Path, data: HeadData
) -> None:
    assert head_eval.main([*arguments, "--threshold", "0.4", "--batch-size", "16"]) == 0
    metrics, probabilities = metrics_of(tmp_path), np.load(tmp_path / "out" / "probs.npy")
    for name, threshold in (("metrics_at_threshold", 0.4), ("metrics_at_checkpoint_thresholds", 0.45)):
        found = metrics[name]
        for column, label in enumerate(LABELS):
            truth, decided = data.labels[:, column], probabilities[:, column] >= threshold
            tn, fp, fn, tp = confusion_matrix(truth, decided, labels=[0, 1]).ravel().tolist()
            counts = found["per_class"][label]
            assert (counts["tn"], counts["fp"], counts["fn"], counts["tp"]) == (tn, fp, fn, tp)
            expected = {
                "accuracy": accuracy_score(truth, decided),
                "precision": precision_score(truth, decided) if decided.any() else None,
                "sensitivity": recall_score(truth, decided),
                "f1": f1_score(truth, decided),
            }
            assert {rate: counts[rate] for rate in expected} == pytest.approx(expected)
        accuracies = [found["per_class"][label]["accuracy"] for label in LABELS]
        assert found["macro"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["metrics_at_threshold"]["threshold"] == 0.4


@pytest.mark.parametrize("threshold", ["-0.1", "1.5"])
def test_a_threshold_that_is_no_probability_is_a_usage_error(arguments: list[str], threshold: str) -> None:
    assert head_eval.main([*arguments, "--threshold", threshold]) == 2


def test_a_checkpoint_of_the_first_implementation_is_tested(arguments: list[str], tmp_path: Path) -> None:
    head = torch.nn.Linear(8, 6)
    foreign = {"model_state_dict": head.state_dict(), "input_dim": 8, "num_classes": 6, "epoch": 3, "score": 0.7}
    torch.save(foreign, tmp_path / "best.pt")
    assert head_eval.main(arguments) == 0
    metrics = metrics_of(tmp_path)
    assert any("another implementation" in warning for warning in metrics["warnings"])
    rows = torch.tensor(np.load(tmp_path / "e.npy"))
    expected = torch.sigmoid(head(rows)).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "probs.npy"), expected, atol=1e-6)


def test_testing_a_head_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(name, *rest):\n"
        "        assert name != 'torch'\n"
        "sys.meta_path.insert(0, NoTorch)\n"
        f"from meddinov3_stroke import head_eval; sys.exit(head_eval.main({arguments!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_head_model_is_imported_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from meddinov3_stroke.head_model import load_checkpoint; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_a_device_name_that_does_not_exist_is_a_usage_error(arguments: list[str]) -> None:
    assert head_eval.main([*arguments, "--device", "toaster"]) == 2


def saved(folder: Path, **arrays: np.ndarray) -> list[str]:
    """Flags that name the arrays, saved in a folder."""
    flags = []
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        flags += [f"--{name.replace('_', '-')}", str(folder / f"{name}.npy")]
    return flags


def test_a_table_names_patients_and_subgroups(arguments: list[str], tmp_path: Path, data: HeadData) -> None:
    cells = [f"P{k // 3},{'AB'[k % 2]}" for k in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["patient_id,site", *cells]))
    assert head_eval.main([*arguments, "--table", str(tmp_path / "t.csv"), "--subgroups", "site"]) == 0
    metrics = metrics_of(tmp_path)
    assert NO_PATIENTS not in metrics["warnings"]
    evaluation = metrics["evaluation"]
    assert (evaluation["n_rows"], evaluation["n_patients"]) == (60, 20)
    assert evaluation["macro"]["auroc"]["value"] == pytest.approx(metrics["macro_auroc"])
    assert metrics["macro_auroc_interval"] == evaluation["macro"]["auroc"]["interval"]
    assert {name: group["n_rows"] for name, group in evaluation["subgroups"]["site"].items()} == {"A": 30, "B": 30}
    assert (tmp_path / "out" / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_source_rows_pick_the_rows_of_the_series_table(arguments: list[str], tmp_path: Path, data: HeadData) -> None:
    kept = np.arange(0, 60, 2)
    flags = saved(tmp_path, some_embeddings=data.embeddings[kept])
    np.save(tmp_path / "some_source_rows.npy", kept + 2)  # the header is row 1
    flags = ["--embeddings", flags[1], *saved(tmp_path, labels=data.labels[kept])]
    cells = ["odd" if k % 2 else f"P{k // 4}" for k in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["patient_id,x", *(f"{cell},1" for cell in cells)]))
    assert head_eval.main([*arguments, *flags, "--table", str(tmp_path / "t.csv")]) == 0
    assert metrics_of(tmp_path)["evaluation"]["n_patients"] == 15
    (tmp_path / "some_source_rows.npy").unlink()
    assert head_eval.main([*arguments, *flags, "--table", str(tmp_path / "t.csv")]) == 5


def test_operating_points_are_fixed_on_validation(arguments: list[str], tmp_path: Path, data: HeadData) -> None:
    rng = np.random.default_rng(8)
    embeddings, labels = rng.normal(size=(40, 8)).astype(np.float32), data.labels[:40]
    flags = saved(tmp_path, val_embeddings=embeddings, val_labels=labels)
    assert head_eval.main([*arguments, *flags, "--prevalence", "0.1"]) == 0
    points = metrics_of(tmp_path)["evaluation"]["operating_points"]
    assert list(points) == ["checkpoint", "youden", "sensitivity_95", "sensitivity_98"]
    head_eval.main([*arguments, *flags[:2]])
    _, held = head_eval.evaluate_head(load_checkpoint(tmp_path / "best.pt"), HeadData(embeddings, labels))
    point = points["sensitivity_95"]["any"]
    positives = held[labels[:, 0] == 1, 0]
    assert np.mean(positives >= point["threshold"]) >= 0.95
    next_threshold = positives[positives >= point["threshold"]].min()
    assert np.mean(positives > next_threshold) < 0.95
    assert point["at_prevalence"]["prevalence"] == 0.1


@pytest.mark.parametrize("flags", ["--val-labels l.npy", "--subgroups site", "--prevalence 1", "--resamples 0"])
def test_flags_that_do_not_fit_are_usage_errors(arguments: list[str], flags: str) -> None:
    assert head_eval.main([*arguments, *flags.split()]) == 2


def test_slice_embeddings_need_their_positions(arguments: list[str], tmp_path: Path) -> None:
    describe(tmp_path, pool_mode="slice")
    assert head_eval.main(arguments) == 0
    assert head_eval.NO_POSITIONS in metrics_of(tmp_path)["warnings"]
    cells = [f"P{k // 10},{k % 10},10" for k in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["patient_id,slice_index,n_slices", *cells]))
    assert head_eval.main([*arguments, "--table", str(tmp_path / "t.csv")]) == 0
    metrics = metrics_of(tmp_path)
    assert head_eval.NO_POSITIONS not in metrics["warnings"]
    found = metrics["evaluation"]["slices"]["labels"]["any"]
    assert list(found) == ["model", "mid_stack", "position_only"]
    assert found["model"]["auroc"]["value"] == pytest.approx(metrics["per_class_auroc"]["any"])
