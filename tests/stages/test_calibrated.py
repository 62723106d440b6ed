"""Calibration: fitted at the end of training, stored in the checkpoint, applied by `predict` and `test-head`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from meddinov3_stroke import head_eval, head_train, load_backbone
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.heads import HeadContext, LabelCalibration, load_checkpoint, save_checkpoint
from meddinov3_stroke.heads.applying import load_heads
from meddinov3_stroke.ich_infer import main as predict
from meddinov3_stroke.types import LABELS, Calibrator, HeadData, Threshold

CONTEXT = HeadContext("mean", 224, None, ("a", "b"))


def rows(n: int, seed: int, share: float = 0.4) -> HeadData:
    """Two labels that a head can learn well from few rows, and then with too much confidence; patients of two rows."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n, 24)).astype(np.float32)
    chance = expit(1.5 * embeddings[:, :2] + logit(share))
    labels = (rng.random((n, 2)) < chance).astype(np.int8)
    return HeadData(embeddings, labels, tuple(f"P{seed}-{k // 2}" for k in range(n)))


def train(folder: Path, val: HeadData | None, **changes: Any) -> dict[str, Any]:
    config = HeadConfig(epochs=40, batch_size=32, lr=1e-2, hidden_dim=32, dropout=0.0, seed=0, patience=0)
    return head_train.train_head(rows(120, 1), val, replace(config, **changes), CONTEXT, folder, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a head that was trained to overconfidence: the last epoch, not the best."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, rows(400, 2))
    return folder


def test_training_stores_a_calibration_and_operating_points_of_each_label(trained: Path) -> None:
    head = load_checkpoint(trained / "last.pt")
    summary = json.loads((trained / "train_summary.json").read_text(encoding="utf-8"))
    assert head.calibration is not None
    assert head.operating_points is not None
    assert (
        list(head.operating_points)
        == ["youden", "sensitivity_95", "sensitivity_98"]
        == list(summary["operating_points"])
    )
    for name, one in head.calibration.items():
        assert one.calibrator is not None
        assert one.calibrator.kind in ("temperature", "sigmoid", "isotonic")
        assert one.refits.shape == (200, len(one.calibrator.knots) or 2)
        assert (one.figures["n"], one.figures["n_patients"]) == (400, 200)
        assert one.figures["brier"]["after"] < one.figures["brier"]["before"]
        assert one.figures["ece"]["after"] < one.figures["ece"]["before"]
        assert set(one.figures["log_losses"]) == {"temperature", "sigmoid", "isotonic"}
        assert summary["calibration"][name]["method"] in one.figures["log_losses"]


def test_operating_points_hold_their_sensitivity_on_calibrated_validation(trained: Path) -> None:
    head, val = load_checkpoint(trained / "last.pt"), rows(400, 2)
    from meddinov3_stroke.heads import predict_logits

    logits = predict_logits(head, val.embeddings).logits
    for k, (name, one) in enumerate((head.calibration or {}).items()):
        calibrated = one.apply(logits[:, k])
        for point, least in (("sensitivity_95", 0.95), ("sensitivity_98", 0.98)):
            threshold = (head.operating_points or {})[point][name]
            assert (calibrated[val.labels[:, k] == 1] >= threshold.value).mean() >= least
            assert threshold.origin.startswith("validation sensitivity")


def test_calibration_lowers_the_held_out_ece_and_brier_score_of_a_trained_head(trained: Path) -> None:
    metrics, _ = head_eval.evaluate_head(load_checkpoint(trained / "last.pt"), rows(3000, 3))
    for name in ("a", "b"):
        before, after = metrics["evaluation"]["calibration"][name], metrics["evaluation"]["calibrated"]["labels"][name]
        assert after["ece"] < 0.7 * before["ece"]
        assert after["brier"]["value"] < before["brier"]["value"]
    points = metrics["evaluation"]["calibrated"]["operating_points"]
    assert 0.9 < points["sensitivity_95"]["a"]["sensitivity"]["value"] < 0.99


def test_a_stated_prevalence_moves_calibrated_probabilities(trained: Path) -> None:
    head, data = load_checkpoint(trained / "last.pt"), rows(12000, 3)
    options = head_eval.EvaluationOptions(prevalence=0.1)
    metrics, _ = head_eval.evaluate_head(head, data, options=options)
    moved = metrics["evaluation"]["calibrated"]["labels"]["a"]["at_prevalence"]
    positive, negative = (np.flatnonzero(data.labels[:, 0] == value) for value in (1, 0))
    kept = np.concatenate([positive[: len(negative) // 9], negative])  # a tenth of these rows is positive
    rare, _ = head_eval.evaluate_head(head, HeadData(data.embeddings[kept], data.labels[kept]))
    assert moved["prevalence"] == 0.1
    assert moved["ece"] < 0.5 * rare["evaluation"]["calibrated"]["labels"]["a"]["ece"]
    assert moved["brier"]["value"] < rare["evaluation"]["calibrated"]["labels"]["a"]["brier"]["value"]


def test_too_few_positives_are_not_calibrated_and_the_reason_is_kept(tmp_path: Path, caplog) -> None:
    val = rows(100, 2)
    val.labels[:, 1] = 0
    val.labels[[0, 2, 4], 1] = 1
    summary = train(tmp_path, val, epochs=2)
    reason = "validation has 3 patients with a positive row and 50 with a negative one; expected at least 10 of each"
    head = load_checkpoint(tmp_path / "best.pt")
    assert head.calibration is not None
    assert head.calibration["b"].calibrator is None
    assert head.calibration["b"].figures["reason"] == reason
    warning = "no calibration of b: fewer than 10 validation patients have a positive, or a negative, row"
    assert warning in summary["warnings"]
    assert warning in caplog.messages
    assert summary["calibration"]["b"]["method"] is None
    metrics, _ = head_eval.evaluate_head(head, rows(200, 3))
    assert metrics["evaluation"]["calibrated"]["labels"]["b"] == {"method": None, "reason": reason}


def test_no_validation_is_no_calibration(tmp_path: Path) -> None:
    train(tmp_path, None, epochs=2)
    head = load_checkpoint(tmp_path / "best.pt")
    assert head.calibration is not None
    assert head.calibration["a"].figures == {"reason": "the head was trained without validation data"}


def test_train_head_reads_the_patients_of_validation_from_a_table(tmp_path: Path) -> None:
    words = ["--epochs", "2", "--device", "cpu", "--quiet", "--output-dir", str(tmp_path / "out")]
    for split, data in (("train", rows(120, 1)), ("val", rows(100, 2))):
        for name in ("embeddings", "labels"):
            np.save(tmp_path / f"{split}_{name}.npy", getattr(data, name))
            words += [f"--{split}-{name}", str(tmp_path / f"{split}_{name}.npy")]
    table = tmp_path / "val.csv"
    table.write_text("patient_id\n" + "\n".join(rows(100, 2).groups or ()), encoding="utf-8")
    assert head_train.main([*words, "--val-table", str(table)]) == 0
    known = load_checkpoint(tmp_path / "out" / "best.pt")
    summary = json.loads((tmp_path / "out" / "train_summary.json").read_text(encoding="utf-8"))
    assert summary["calibration"]["class_0"]["n_patients"] == 50
    assert head_train.UNKNOWN_PATIENTS not in summary["warnings"]
    assert "patients" in (known.seen or {})["validation"]
    assert head_train.main(words) == 0
    summary = json.loads((tmp_path / "out" / "train_summary.json").read_text(encoding="utf-8"))
    assert summary["calibration"]["class_0"]["n_patients"] == 100
    assert head_train.UNKNOWN_PATIENTS in summary["warnings"]


# --- predict ---------------------------------------------------------------------------------------------------------

SHIFT = 1.5


def calibration(spread: float) -> LabelCalibration:
    """A calibration that adds `SHIFT` to logits, and refits about it."""
    refits = np.stack([np.ones(200), SHIFT + np.linspace(-spread, spread, 200)], axis=1)
    return LabelCalibration(Calibrator("sigmoid", 1.0, SHIFT), refits, {"n": 60})


@pytest.fixture
def run(
    random_weights: Callable[..., Path],
    random_head: Callable[..., Path],
    head_nifti: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., dict[str, Any]]:
    """Runs `predict` with a head whose fields are replaced; returns the summary."""
    backbone = load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu")

    def predicted(*flags: str, expected: int = 0, pool_mode: str = "mean", **changes: Any) -> dict[str, Any]:
        head = random_head(backbone, pool_mode, **changes)
        words = ["-i", head_nifti(), "--backbone", random_weights(), "--checkpoint", head, "-o", tmp_path / "out"]
        words += ["--device", "cpu", "--engine", "torch", "--precision", "fp32", *flags]
        assert predict([str(word) for word in words]) == expected
        path = tmp_path / "out" / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if expected == 0 else {}

    return predicted


def calibrated(spread: float = 0.2, threshold: float = 0.5) -> dict[str, Any]:
    point = {label: Threshold(threshold, "validation sensitivity 95% (38 of 40 positives)") for label in LABELS}
    return {
        "calibration": {label: calibration(spread) for label in LABELS},
        "operating_points": {"sensitivity_95": point},
    }


def test_probabilities_before_and_after_stand_in_every_output(run, tmp_path: Path, capsys) -> None:
    document = run(**calibrated())
    for label in LABELS:
        before, after, about = (
            document[name][label] for name in ("probabilities", "calibrated_probabilities", "calibration")
        )
        assert after == pytest.approx(expit(logit(before) + SHIFT), abs=1e-6)
        assert about["method"] == "sigmoid"
        assert about["low"] == pytest.approx(expit(logit(before) + SHIFT - 0.19), abs=1e-3)
        assert about["high"] == pytest.approx(expit(logit(before) + SHIFT + 0.19), abs=1e-3)
        assert document["decisions"][label] == (before >= 0.5)
    printed = capsys.readouterr().out
    assert f"{document['calibrated_probabilities']['any']:.4f}" in printed
    assert document["operating_point"] is None


def test_an_operating_point_decides_by_the_calibrated_probability(run, capsys) -> None:
    raw = run(**calibrated(0.01))
    between = {label: 0.5 * (raw["probabilities"][label] + raw["calibrated_probabilities"][label]) for label in LABELS}
    changes = calibrated(0.01)
    changes["operating_points"] = {"sensitivity_95": {k: Threshold(v, "made up") for k, v in between.items()}}
    capsys.readouterr()
    document = run("--operating-point", "sensitivity-95", **changes)
    assert document["decisions"] == dict.fromkeys(LABELS, True)
    assert document["classification"] == dict.fromkeys(LABELS, "positive")
    assert document["thresholds"] == between
    assert document["operating_point"] == "sensitivity_95"
    assert document["decision_rule"].startswith("true where the calibrated probability")
    assert f"any {document['calibrated_probabilities']['any']:.2f}" in capsys.readouterr().out.splitlines()[-1]


def test_labels_that_a_point_decides_without_calibration_are_named(run) -> None:
    changes = calibrated(0.01)
    lacking = LabelCalibration(None, np.zeros((0, 2)), {"reason": "two patients"})
    changes["calibration"] = {**changes["calibration"], "subdural": lacking}
    document = run("--operating-point", "sensitivity-95", **changes)
    assert [text for text in document["warnings"] if "subdural without calibration" in text]
    assert document["calibrated_probabilities"]["subdural"] is None


def test_a_head_without_validation_has_no_operating_point(run, capsys) -> None:
    none = LabelCalibration(None, np.zeros((0, 2)), {"reason": "the head was trained without validation data"})
    run("--operating-point", "youden", expected=6, calibration=dict.fromkeys(LABELS, none))
    assert "--operating-point youden: the head was trained without validation data" in capsys.readouterr().err


def test_an_interval_about_the_threshold_is_indeterminate(run, tmp_path: Path, capsys) -> None:
    raw = run(**calibrated())["calibrated_probabilities"]["any"]
    changes = calibrated(0.4, raw)
    document = run("--operating-point", "sensitivity-95", **changes)
    assert document["classification"]["any"] == "indeterminate"
    assert document["decisions"]["any"] is True  # decided as before, for those who need a yes or no
    assert "indeterminate" in capsys.readouterr().out.splitlines()[-1]
    above = run("--operating-point", "sensitivity-95", **calibrated(0.4, float(expit(logit(raw) - 0.5))))
    below = run("--operating-point", "sensitivity-95", **calibrated(0.4, float(expit(logit(raw) + 0.5))))
    assert (above["classification"]["any"], below["classification"]["any"]) == ("positive", "negative")


def test_the_checkpoints_own_thresholds_have_a_band_and_a_given_one_has_none(run) -> None:
    probability = run(**calibrated())["probabilities"]["any"]
    thresholds = {label: Threshold(probability, "made up") for label in LABELS}
    assert run(thresholds=thresholds, **calibrated())["classification"]["any"] == "indeterminate"
    given = run("--threshold", f"{probability:.17g}", **calibrated())
    assert given["classification"]["any"] == "positive"
    assert given["decisions"]["any"] is True


def test_checkpoints_without_a_calibration_work_as_before_and_say_why(run, capsys) -> None:
    document = run()
    assert document["calibrated_probabilities"] == dict.fromkeys(LABELS)
    assert "no calibration" in document["calibration"]["any"]["reason"]
    assert set(document["classification"].values()) <= {"positive", "negative"}
    capsys.readouterr()
    run("--operating-point", "youden", expected=6)
    error = capsys.readouterr().err
    assert "omit it to decide at the thresholds of the checkpoint" in error


def test_slice_heads_and_several_heads_are_not_calibrated(run, random_head, random_weights, tmp_path: Path) -> None:
    assert "maximum over the slices" in run(pool_mode="slice", **calibrated())["calibration"]["any"]["reason"]
    first = load_checkpoint(tmp_path / "best.pt")
    save_checkpoint(tmp_path / "second.pt", replace(first, pool_mode="mean", epoch=9))
    save_checkpoint(tmp_path / "third.pt", replace(first, pool_mode="mean"))
    heads = load_heads([tmp_path / "second.pt", tmp_path / "third.pt"])
    outputs = heads.outputs(np.zeros((1, first.input_dim), dtype=np.float32))
    assert {one.reason for one in heads.calibrated(outputs).values()} == {
        "the mean of the logits of several heads has no calibration"
    }


def test_threshold_and_operating_point_exclude_each_other(run, capsys) -> None:
    run("--threshold", "0.5", "--operating-point", "youden", expected=2, **calibrated())
    assert "pass one of them" in capsys.readouterr().err


def test_an_unknown_operating_point_names_those_of_the_checkpoint(run, capsys) -> None:
    run("--operating-point", "youden", expected=2, **calibrated())
    assert "expected one of sensitivity-95" in capsys.readouterr().err


def test_results_csv_has_both_probabilities_and_the_classification(
    run, random_weights, head_nifti, tmp_path: Path
) -> None:
    run(**calibrated())
    words = ["-i", head_nifti("x.nii.gz"), head_nifti("y.nii.gz", seed=1), "--checkpoint", tmp_path / "best.pt"]
    words += ["--backbone", random_weights(), "-o", tmp_path / "cases", "--device", "cpu", "--engine", "torch"]
    assert predict([str(word) for word in [*words, "--precision", "fp32"]]) == 0
    with (tmp_path / "cases" / "results.csv").open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            shifted = expit(logit(float(row["p_any"])) + SHIFT)
            assert float(row["p_calibrated_any"]) == pytest.approx(shifted, abs=1e-5)
            assert row["classification_any"] in ("positive", "negative", "indeterminate")


@pytest.mark.slow
def test_calibration_lowers_the_held_out_ece_and_brier_score_on_phantoms(tmp_path: Path) -> None:

    from meddinov3_stroke.data import read_series_table, split_by_patient
    from meddinov3_stroke.features import FeatureExtractor
    from meddinov3_stroke.phantom import write_cohort
    from meddinov3_stroke.rsna_pipeline import extract_cohort

    cohort = write_cohort(tmp_path / "phantoms", 150, 1, shape=(10, 64, 64))
    splits = split_by_patient(read_series_table(cohort.csv_path), (0.34, 0.33, 0.33), 1)
    extractor = FeatureExtractor(load_backbone("demo", device="cpu"), resize=112)
    extracted = extract_cohort(
        dict(splits.items()), extractor, tmp_path / "cache", pool_mode="mean", show_progress=False
    )
    features = extracted.features()
    context = HeadContext("mean", 112, asdict(extractor.backbone.identity), LABELS)
    config = HeadConfig(epochs=120, dropout=0.0, seed=1)
    train, val, test = (features[name] for name in ("train", "val", "test"))
    head_train.train_head(train.data, val.data, config, context, tmp_path / "head", progress=False)
    head = load_checkpoint(tmp_path / "head" / "last.pt")
    evaluation = head_eval.evaluate_head(head, test.data, test.table.groups)[0]["evaluation"]
    after = {label: one for label, one in evaluation["calibrated"]["labels"].items() if one["method"]}
    assert "any" in after
    for label, one in after.items():
        before = evaluation["calibration"][label]
        assert one["ece"] < before["ece"]
        assert one["brier"]["value"] < before["brier"]["value"]
