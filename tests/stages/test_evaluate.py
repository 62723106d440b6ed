"""`evaluate`: tables of labels and scores, of series and of slices."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

from meddinov3_stroke.cli import main
from meddinov3_stroke.commands.evaluate import NO_VALIDATION
from meddinov3_stroke.metrics import NO_PATIENTS
from meddinov3_stroke.system.atomic import write_json, write_npy


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def series(n: int = 120, seed: int = 0, start: int = 0, noise: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """Two labels of patients with two series each; noisier scores rank worse, of the same labels."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 2)) < 0.4).astype(int)
    scores = 1 / (1 + np.exp(-(2 * truth - 1 + noise * rng.normal(size=(n, 2)))))
    return [
        {
            "patient_id": f"P{start + k // 2:03}",
            "any": truth[k, 0],
            "subdural": truth[k, 1],
            "p_any": scores[k, 0],
            "p_subdural": scores[k, 1],
            "site": "AB"[k // 2 % 2],
            "thickness": round(1 + 4 * rng.random(), 3),
        }
        | more
        for k in range(n)
    ]


def slices(n_patients: int = 20, scored: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = []
    for patient in range(n_patients):
        n_slices = int(rng.integers(20, 30))
        for k in range(n_slices):
            label = int(abs(k / n_slices - 0.5) < 0.15 and rng.random() < 0.8)
            row = {"patient_id": f"P{patient}", "slice_index": k, "n_slices": n_slices, "any": label}
            rows.append(row | ({"p_any": label + rng.normal()} if scored else {}))
    return rows


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the verb on rows; returns the document that it wrote."""

    def run(rows: Sequence[dict[str, Any]], *flags: str) -> dict[str, Any]:
        table = write_table(tmp_path / "table.csv", rows)
        assert main(["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out"), *flags]) == 0
        return json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))

    return run


def columns(rows: Sequence[dict[str, Any]], label: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[label] for row in rows]), np.array([row[f"p_{label}"] for row in rows])


def test_ranking_figures_are_scikit_learns_and_stand_with_counts_and_intervals(evaluate) -> None:
    rows = series()
    document = evaluate(rows)
    assert (document["n_rows"], document["n_patients"]) == (120, 60)
    for label in ("any", "subdural"):
        truth, scores = columns(rows, label)
        found = document["labels"][label]
        assert found["n_positive"] == truth.sum()
        for measure, reference in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            value = reference(truth, scores)
            assert found[measure]["value"] == pytest.approx(value, abs=1e-9)
            assert found[measure]["interval"]["low"] < value < found[measure]["interval"]["high"]
    assert document["macro"]["labels"] == ["any", "subdural"]
    assert document["warnings"] == [NO_VALIDATION]


def test_the_macro_names_the_labels_it_covers(evaluate) -> None:
    document = evaluate(series(subdural=0))
    assert document["macro"]["labels"] == ["any"]
    found = document["labels"]["subdural"]["auroc"]
    assert (found["value"], found["interval"]["reason"]) == (None, "no positive among 120 rows")


def test_six_labels_have_the_challenges_loss(evaluate) -> None:
    from sklearn.metrics import log_loss

    from meddinov3_stroke.types import LABELS

    rng = np.random.default_rng(0)
    rows = []
    for k in range(40):
        subtypes = [int(k % 5 == j) for j in range(5)]
        truth = dict(zip(LABELS, [1, *subtypes], strict=True)) if k < 30 else dict.fromkeys(LABELS, 0)
        rows.append({"patient_id": k, **truth, **{f"p_{label}": rng.uniform(0.01, 0.99) for label in LABELS}})
    each = [log_loss(*columns(rows, label)) for label in LABELS]
    assert evaluate(rows)["weighted_log_loss"] == pytest.approx((2 * each[0] + sum(each[1:])) / 7, abs=1e-9)


def test_operating_points_are_fixed_on_validation_and_measured_on_the_table(evaluate, tmp_path: Path) -> None:
    rows, held = series(), series(seed=1, start=500)
    validation = write_table(tmp_path / "val.csv", held)
    document = evaluate(rows, "--validation", str(validation), "--prevalence", "0.15")
    assert document["warnings"] == []
    points = document["operating_points"]
    assert list(points) == ["youden", "sensitivity_95", "sensitivity_98"]
    truth, scores = columns(rows, "any")
    held_truth, held_scores = columns(held, "any")
    for name, share in (("sensitivity_95", 0.95), ("sensitivity_98", 0.98)):
        assert np.mean(held_scores[held_truth == 1] >= points[name]["any"]["threshold"]) >= share
    found = points["youden"]["any"]
    decided = scores >= found["threshold"]
    tn, fp, fn, tp = confusion_matrix(truth, decided).ravel().tolist()
    expected = {"accuracy": (tp + tn) / 120, "f1": f1_score(truth, decided), "sensitivity": tp / (tp + fn)}
    expected |= {"specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "npv": tn / (tn + fn)}
    for rate, value in expected.items():
        assert found[rate]["value"] == pytest.approx(value, abs=1e-9)
        assert found[rate]["low"] < value < found[rate]["high"]
    sensitivity, specificity = expected["sensitivity"], expected["specificity"]
    at = found["at_prevalence"]
    ppv = 0.15 * sensitivity / (0.15 * sensitivity + 0.85 * (1 - specificity))
    npv = 0.85 * specificity / (0.85 * specificity + 0.15 * (1 - sensitivity))
    assert (at["ppv"]["value"], at["npv"]["value"]) == (pytest.approx(ppv), pytest.approx(npv))
    assert at["ppv"]["low"] < ppv < at["ppv"]["high"]


def test_probabilities_have_calibration_figures_and_other_scores_a_warning(evaluate) -> None:
    rows = series()
    document = evaluate(rows)
    truth, scores = columns(rows, "any")
    assert document["calibration"]["any"]["brier"]["value"] == pytest.approx(np.mean((scores - truth) ** 2))
    document = evaluate([row | {"p_any": 10 * row["p_any"]} for row in rows])
    assert list(document["calibration"]) == ["subdural"]
    assert any("scores of any lie outside 0 to 1" in warning for warning in document["warnings"])


def test_validation_of_the_tested_patients_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", series())
    words = ["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out"), "--validation"]
    assert main([*words, str(write_table(tmp_path / "v.csv", series(seed=1, start=59)))]) == 5
    assert "1 patients are in" in capfd.readouterr().err
    assert main([*words, str(write_table(tmp_path / "v.csv", series(seed=1, start=60)))]) == 0


def test_two_models_are_compared_on_the_same_rows(evaluate, tmp_path: Path) -> None:
    rows = series()
    worse = [
        row | {"p_any": 0.3 * row["p_any"] + 0.7 * np.random.default_rng(k).random()} for k, row in enumerate(rows)
    ]
    other = write_table(tmp_path / "other.csv", worse)
    found = evaluate(rows, "--compare", str(other))["comparison"]["labels"]["any"]["auroc"]
    expected = roc_auc_score(*columns(rows, "any")) - roc_auc_score(*columns(worse, "any"))
    assert found["difference"] == pytest.approx(expected, abs=1e-9)
    assert found["interval"]["low"] > 0
    assert found["delong"]["p"] < 0.05


@pytest.mark.parametrize("change", [{"any": 1}, {"patient_id": "other"}])
def test_a_comparison_of_other_rows_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    rows = series(any=0)
    table = write_table(tmp_path / "t.csv", rows)
    other = write_table(tmp_path / "o.csv", [*rows[:5], rows[5] | change, *rows[6:]])
    assert main(["evaluate", "--table", str(table), "--compare", str(other), "--output-dir", str(tmp_path / "o")]) == 5
    assert "differ from" in (error := capfd.readouterr().err)
    assert "in row 7" in error


def test_subgroups_repeat_the_figures_and_cut_numbers_into_quarters(evaluate) -> None:
    rows = series()
    groups = evaluate(rows, "--subgroups", "site", "thickness")["subgroups"]
    for value in "AB":
        truth, scores = columns([row for row in rows if row["site"] == value], "any")
        found = groups["site"][value]["labels"]["any"]
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
        assert found["n_positive"] == truth.sum()
    assert [group["n_rows"] for group in groups["thickness"].values()] == [30, 30, 30, 30]


def test_subgroups_by_a_free_text_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", series())
    words = ["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out"), "--subgroups"]
    assert main([*words, "patient_id"]) == 2
    assert "--subgroups patient_id: found 60 different texts" in capfd.readouterr().err
    assert main([*words, "nothing"]) == 5


def test_without_patients_every_row_counts_as_its_own_and_a_warning_says_so(evaluate) -> None:
    rows = [{name: value for name, value in row.items() if name != "patient_id"} for row in series()]
    document = evaluate(rows)
    assert document["n_patients"] == 120
    assert NO_PATIENTS in document["warnings"]
    rows = series()
    rows[0]["patient_id"] = ""
    assert "table.csv: 1 rows name no patient; each counts as its own" in evaluate(rows)["warnings"]


def test_slices_lead_with_the_position_matched_auroc_beside_the_rules(
    evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = slices()
    embeddings = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    write_npy(tmp_path / "random.npy", embeddings)
    found = evaluate(rows, "--random-embeddings", str(tmp_path / "random.npy"))["slices"]["labels"]["any"]
    assert list(found) == ["model", "mid_stack", "position_only", "random_backbone"]
    assert found["model"]["position_matched_auroc"]["value"] == pytest.approx(0.76, abs=0.08)
    assert found["mid_stack"]["auroc"]["value"] > 0.85
    assert 0.4 < found["mid_stack"]["position_matched_auroc"]["value"] < 0.6
    assert found["random_backbone"]["auroc"]["value"] == pytest.approx(0.5, abs=0.12)
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("any: position-matched AUROC 0.")
    assert " of the model" in last


def test_slices_without_scores_give_the_rules_alone(evaluate) -> None:
    document = evaluate(slices(scored=False), "--labels", "any", "--no-brightness")
    assert list(document["slices"]["labels"]["any"]) == ["mid_stack", "position_only"]
    assert "labels" not in document
    assert document["warnings"] == []


def test_without_a_number_of_slices_a_volume_ends_at_its_last_listed_slice(evaluate) -> None:
    rows = slices()
    expected = evaluate(rows)["slices"]
    short = [{name: value for name, value in row.items() if name != "n_slices"} for row in rows]
    document = evaluate(short)
    assert document["slices"] == expected
    assert any("no column n_slices" in warning for warning in document["warnings"])


def test_the_brightness_rule_reads_the_volumes(evaluate, head_nifti: Callable[..., Path]) -> None:
    rows = []
    for patient in range(6):
        path = head_nifti(f"case{patient}.nii.gz", seed=patient)
        rows += [
            {"patient_id": patient, "nifti_path": path.name, "slice_index": k, "n_slices": 8, "any": int(k >= 5)}
            for k in range(8)
        ]
    found = evaluate(rows, "--labels", "any")["slices"]["labels"]["any"]
    assert found["brightness"]["auroc"]["value"] == 1.0  # blood of 75 HU in the upper slices


def test_scores_of_slices_come_from_the_case_folders_of_predict(evaluate, tmp_path: Path) -> None:
    rows, cases = [], tmp_path / "cases"
    rng = np.random.default_rng(0)
    for patient in range(8):
        path = tmp_path / f"{patient}.nii.gz"
        labels = rng.integers(0, 2, 20)
        scores = np.c_[0.4 * labels + 0.6 * rng.random(20), rng.random(20)].astype(np.float32)[::2]
        write_npy(cases / str(patient) / "slice_probs.npy", scores)
        about = {"file": "slice_probs.npy", "labels": ["any", "subdural"], "slice_indices": list(range(0, 20, 2))}
        write_json(cases / str(patient) / "summary.json", {"input": str(path), "n_slices": 20, "slice_probs": about})
        rows += [
            {"patient_id": patient, "nifti_path": path.name, "slice_index": k, "bleeds": labels[k]} for k in range(20)
        ]
    flags = ["--cases", str(cases), "--labels", "any=bleeds", "--no-brightness", "--errors", "0"]
    document = evaluate(rows, *flags)
    assert (document["n_rows"], document["n_patients"]) == (80, 8)
    assert document["warnings"] == [f"80 of 160 slices have no score in {cases} and are left out", NO_VALIDATION]
    scores = np.concatenate([np.load(cases / str(patient) / "slice_probs.npy")[:, 0] for patient in range(8)])
    truth = np.array([row["bleeds"] for row in rows])[::2]
    assert document["labels"]["any"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores))


@pytest.mark.parametrize("flags", ["--subgroups patient_id", "--prevalence 0.1", "--compare t.csv"])
def test_flags_that_need_scores_are_refused_without_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: str
) -> None:
    table = write_table(tmp_path / "t.csv", slices(scored=False))
    words = ["evaluate", "--table", str(table), "--labels", "any", "--output-dir", str(tmp_path / "out")]
    assert main([*words, *flags.split()]) == 5
    assert f"no scores, which {flags.split()[0]} needs" in capfd.readouterr().err


def test_a_volume_that_cannot_be_read_names_the_flag(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"nifti_path": "absent.nii.gz"} for row in slices()]
    words = ["evaluate", "--table", str(write_table(tmp_path / "t.csv", rows)), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 3
    assert "leave the brightness rule out with --no-brightness" in capfd.readouterr().err
    assert main([*words, "--no-brightness"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_any": "high"}, "p_any is 'high' in rows"),
        ({"any": 2}, "any is '2'"),
        ({"slice_index": 30, "n_slices": 30}, "slice_index outside 0 to n_slices - 1"),
        ({"slice_index": "3.5", "n_slices": 30}, "slice_index is '3.5'"),
    ],
)
def test_wrong_cells_are_refused_with_their_rows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    table = write_table(tmp_path / "t.csv", [row | change for row in slices()])
    assert main(["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out")]) == 5
    error = capfd.readouterr().err
    assert message in error
    assert "row" in error


def test_a_table_without_scores_names_the_flag(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", [{"patient_id": "a", "bleeds": 1}, {"patient_id": "b", "bleeds": 0}])
    words = ["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 5
    assert "name the labels with --labels NAME" in capfd.readouterr().err
    assert main([*words, "--labels", "bleeds"]) == 5
    assert "expected p_bleeds beside bleeds" in capfd.readouterr().err


def test_the_picture_shows_each_interval_and_band(evaluate, tmp_path: Path) -> None:
    evaluate(series(), "--subgroups", "site")
    with Image.open(io.BytesIO((tmp_path / "out" / "evaluation.png").read_bytes())) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0xD5, 0x5E, 0x00) in colours  # points and curves
    assert (68, 36, 12) in colours  # their band: 28 % of the curve's colour on the background


def test_the_same_table_gives_the_same_files(evaluate, tmp_path: Path) -> None:
    before = evaluate(series()), (tmp_path / "out" / "evaluation.png").read_bytes()
    after = evaluate(series()), (tmp_path / "out" / "evaluation.png").read_bytes()
    for document, _ in (before, after):
        del document["exposure"]  # counts evaluations
    assert before == after


@pytest.mark.shared_data
def test_position_alone_does_not_rank_matched_slices_of_real_patients(shared_data_dir: Path, tmp_path: Path) -> None:
    table = shared_data_dir / "phe_sich" / "slice_labels.csv"
    if not table.is_file():
        pytest.skip("no slice labels beside the checkout")
    words = ["evaluate", "--table", str(table), "--labels", "haemorrhage", "--no-brightness"]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    found = document["slices"]["labels"]["haemorrhage"]["mid_stack"]
    assert 0.5 <= found["position_matched_auroc"]["value"] <= 0.58
    assert found["auroc"]["value"] > 0.9


@pytest.mark.parametrize("change", [{"site": "B"}, {"p_any": 0.2}, {}])
def test_a_slice_listed_twice_is_refused_with_its_rows(tmp_path: Path, change, capfd) -> None:
    rows = slices()
    table = write_table(tmp_path / "t.csv", [{"site": "A", **row} for row in [*rows, rows[3] | change]])
    words = ["evaluate", "--table", str(table), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 5
    assert "slice (patient_id, slice_index, n_slices) is listed more than once, in rows 5, " in capfd.readouterr().err
    with_series = [{"series_uid": "1", **row} for row in rows] + [{"series_uid": "2", **rows[3]}]
    write_table(table, with_series)  # as the message advises
    assert main(words) == 0


def test_a_series_listed_twice_is_refused_and_two_series_of_a_patient_are_not(tmp_path: Path, capfd) -> None:
    rows = [{"series_uid": f"1.{k}", **row} for k, row in enumerate(series())]
    words = ["evaluate", "--table", str(tmp_path / "t.csv"), "--output-dir", str(tmp_path / "out")]
    write_table(tmp_path / "t.csv", rows)
    assert main(words) == 0
    write_table(tmp_path / "t.csv", [*rows, rows[0]])
    assert main(words) == 5
    assert "the same series (series_uid) is listed more than once" in capfd.readouterr().err


def test_evaluate_calibrates_on_validation_and_reports_both(evaluate, tmp_path: Path) -> None:
    def confident(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"p_any": 1 / (1 + (1 / row["p_any"] - 1) ** 4)} for row in rows]

    validation = write_table(tmp_path / "val.csv", confident(series(400, seed=1, start=500)))
    document = evaluate(confident(series(400)), "--validation", str(validation), "--prevalence", "0.1")
    after = document["calibrated"]["labels"]["any"]
    assert after["ece"] < 0.8 * document["calibration"]["any"]["ece"]
    assert after["brier"]["value"] < document["calibration"]["any"]["brier"]["value"]
    assert after["at_prevalence"]["prevalence"] == 0.1


def test_evaluate_takes_the_calibrated_probabilities_of_predict(evaluate) -> None:
    document = evaluate(series(p_calibrated_any=0.4))
    found = document["calibrated"]["labels"]["any"]
    truth, _ = columns(series(), "any")
    assert found["ece"] == pytest.approx(abs(0.4 - truth.mean()))
    assert "subdural" not in document["calibrated"]["labels"]
