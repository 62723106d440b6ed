from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.explain import REFERENCE_RULE
from meddinov3_stroke.features import pool_slices
from meddinov3_stroke.predictor import Case, ICHPredictor
from meddinov3_stroke.report import case as case_report
from meddinov3_stroke.report import case_document, print_case, save_case
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import LABELS, Threshold


@pytest.fixture(scope="module")
def backbone(random_weights: Callable[..., Path]) -> Backbone:
    return load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu")


@pytest.fixture
def predict(
    backbone: Backbone, random_head: Callable[..., Path], head_nifti: Callable[..., Path]
) -> Callable[..., Case]:
    def make(pool_mode: str = "mean", **head: Any) -> Case:
        return ICHPredictor.load(random_head(backbone, pool_mode, **head), backbone=backbone, top_k=2)(head_nifti())

    return make


def test_the_document_holds_the_keys_readers_rely_on(predict) -> None:
    case = predict()
    document = case_document(case.findings)
    assert document["probabilities"] == case.probabilities
    assert document["decisions"] == case.decisions
    assert document["thresholds"] == dict.fromkeys(LABELS, 0.5)
    assert document["threshold_origins"] == dict.fromkeys(LABELS, "validation Youden (12 positive of 60)")
    assert document["ranking"] == case.findings.ranking
    assert document["reference_patch_rule"] == REFERENCE_RULE


def test_each_top_slice_holds_index_score_place_probabilities_and_reference(predict) -> None:
    case = predict()
    documents = case_document(case.findings)["top_slices"]
    for rank, (found, one) in enumerate(zip(documents, case.top_slices, strict=True), start=1):
        assert found == {
            "rank": rank,
            "slice_index": one.slice_index,
            "score": one.score,
            "p_any": one.probabilities["any"],
            "position_mm": list(one.position_mm),
            "probabilities": one.probabilities,
            "reference_patch": list(one.reference_patch),
            "sop_instance_uid": None,
            "frame_number": None,
            "instance_number": None,
        }


def test_the_document_says_where_everything_came_from(predict, backbone, tmp_path) -> None:
    document = case_document(predict().findings)
    assert document["disclaimer"] == "research use only, not for clinical diagnosis"
    assert document["input_sha256"] == sha256_of_file(tmp_path / "case.nii.gz")
    assert document["head_sha256"] == sha256_of_file(tmp_path / "best.pt")
    assert document["weights_sha256"] == backbone.identity.weights_sha256
    assert document["preprocessing_version"] == "meddinov3-1"
    assert (document["engine"], document["precision"], document["device"]) == ("torch", "fp32", "cpu")
    assert document["seeds"] == {"head_training": 42}
    assert {"schema_version", "package_versions", "warnings", "selection", "resize"} <= set(document)


def test_the_document_holds_the_keys_of_the_first_implementation(predict) -> None:
    case = predict()
    document = case_document(case.findings)
    assert document["predicted"] == {label: int(decided) for label, decided in case.decisions.items()}
    assert document["threshold"] == 0.5
    assert document["num_slices"] == 8
    assert document["lesion_slice_index"] == case.top_slices[0].slice_index
    assert "not a lesion map" in document["similarity"]["note"]


def test_thresholds_that_differ_have_no_single_value(predict) -> None:
    thresholds = {label: Threshold(0.1 * k, "validation") for k, label in enumerate(LABELS)}
    assert case_document(predict(thresholds=thresholds).findings)["threshold"] is None


@pytest.mark.parametrize(("mode", "width"), [("slice", 64), ("mean", 64), ("mean_max", 128)])
def test_the_arrays_of_the_first_implementation_are_the_embeddings_and_their_pool(
    predict, tmp_path, mode, width
) -> None:
    case = predict(mode)
    files = case.save(tmp_path / "out")
    found = {name: np.load(files[f"{name}.npy"]) for name in ("slice_embeddings", "volume_embedding", "slice_indices")}
    np.testing.assert_array_equal(found["slice_embeddings"], case.findings.embeddings.cls)
    np.testing.assert_array_equal(found["slice_indices"], np.arange(8))
    pooled = pool_slices(case.findings.embeddings.cls, "mean" if mode == "slice" else mode)
    np.testing.assert_array_equal(found["volume_embedding"], pooled)
    assert found["volume_embedding"].shape == (width,)


def test_time_and_memory_are_reported(predict) -> None:
    document = case_document(predict().findings)
    assert set(document["timings"]) == {"read_s", "embed_s", "explain_s"}
    assert sum(document["timings"].values()) == pytest.approx(document["elapsed_s"], abs=0.01)
    assert document["memory"]["cpu_peak_mib"] > 0
    assert document["memory"]["gpu_peak_mib"] is None


def test_a_head_of_slices_says_that_the_case_is_a_maximum(predict) -> None:
    assert "maximum over the embedded slices" in case_document(predict("slice").findings)["case_rule"]


def test_saving_writes_every_file_it_names(predict, tmp_path) -> None:
    files = predict().save(tmp_path / "out")
    expected = {"similarity_map.png", "similarity_map.npy", "slice_probs.npy", "summary.json"}
    expected |= {"slice_embeddings.npy", "volume_embedding.npy", "slice_indices.npy"}
    assert set(files) == expected == {path.name for path in (tmp_path / "out").iterdir()}
    assert set(json.loads(files["summary.json"].read_text())["files"]) == expected


def test_the_arrays_are_those_of_the_findings(predict, tmp_path) -> None:
    case = predict()
    files = case.save(tmp_path / "out")
    similarity, probabilities = np.load(files["similarity_map.npy"]), np.load(files["slice_probs.npy"])
    np.testing.assert_array_equal(similarity, case.findings.similarity)
    np.testing.assert_allclose(probabilities, case.findings.slice_probabilities, rtol=1e-6)
    assert (similarity.dtype, similarity.shape) == (np.float32, (2, 4, 4))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (8, 6))


def test_without_slice_probabilities_the_summary_says_why_and_no_file_is_left(predict, tmp_path) -> None:
    predict().save(tmp_path / "out")
    files = predict("mean_max").save(tmp_path / "out")
    assert not (tmp_path / "out" / "slice_probs.npy").exists()
    about = json.loads(files["summary.json"].read_text())["slice_probs"]
    assert about["file"] is None
    assert "mean_max" in about["reason"]


def test_the_summary_comes_last(predict, tmp_path, monkeypatch) -> None:
    def fail(path: Path, array: np.ndarray) -> None:
        raise StorageError("disk full")

    case = predict()
    monkeypatch.setattr(case_report, "write_npy", fail)
    with pytest.raises(StorageError):
        case.save(tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(predict, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        save_case(predict().findings, tmp_path / "file" / "out")


def printed(case: Case, files: dict[str, Path]) -> str:
    console = Console(file=io.StringIO(), width=120, soft_wrap=True)
    print_case(case.findings, files, console)
    return console.file.getvalue()


def test_the_terminal_shows_probabilities_decisions_slices_files_and_disclaimer(predict) -> None:
    case = predict()
    text = printed(case, {"summary.json": Path("outputs/ich_1/summary.json")})
    for label, probability in case.probabilities.items():
        line = next(line for line in text.splitlines() if f" {label} " in line and "tive" in line)
        assert f"{probability:.4f}" in line
        assert ("positive" in line) is case.decisions[label]
    for one in case.top_slices:
        assert f"{one.score:.4f}" in text
    assert "wrote outputs/ich_1/summary.json" in text
    assert text.splitlines()[-2] == "research use only, not for clinical diagnosis"


def last_line(case: Case, **changes: Any) -> str:
    files = {"summary.json": Path("outputs/ich_1/summary.json")}
    return printed(replace(case, findings=replace(case.findings, **changes)), files).splitlines()[-1]


def test_the_last_line_is_the_answer(predict) -> None:
    case = predict()
    decisions, found = dict.fromkeys(LABELS, True), dict.fromkeys(LABELS, 0.9126)
    thresholds = dict.fromkeys(LABELS, Threshold(0.3512, "given"))
    changes = {"decisions": decisions, "probabilities": found, "thresholds": thresholds}
    answer = "any 0.91 (threshold 0.35) positive"
    assert last_line(case, **changes) == f"{answer} · outputs/ich_1"
    assert last_line(case, **changes, warnings=("a",)) == f"{answer} · 1 warning · outputs/ich_1"
    demo = replace(case.findings.embeddings, backbone=replace(case.findings.embeddings.backbone, name="demo"))
    words = last_line(case, **changes, warnings=("a", "b"), embeddings=demo)
    assert words == f"{answer} · demonstration model · 2 warnings · outputs/ich_1"


def test_the_answer_never_shows_a_decision_against_its_figures(predict) -> None:
    case = predict()
    thresholds = dict.fromkeys(LABELS, Threshold(0.3512, "given"))
    decisions, found = dict.fromkeys(LABELS, False), dict.fromkeys(LABELS, 0.3508)
    words = last_line(case, decisions=decisions, probabilities=found, thresholds=thresholds)
    assert words.startswith("any 0.3508 (threshold 0.3512) negative · ")


def test_the_answer_names_a_positive_type_where_any_is_negative(predict) -> None:
    case = predict()
    decisions = dict.fromkeys(LABELS, False) | {"epidural": True}
    assert "negative, but epidural positive · " in last_line(case, decisions=decisions)


def test_warnings_are_repeated_after_the_tables(predict) -> None:
    case = predict()
    text = printed(replace(case, findings=replace(case.findings, warnings=("a [b] gap", "c"))), {})
    assert text.index("Suspicious slices") < text.index("warning: a [b] gap") < text.index("warning: c")


def test_names_that_look_like_markup_are_printed_as_they_are(predict) -> None:
    labels = ("any", "[red]x")
    thresholds = {label: Threshold(0.5, "default 0.5") for label in labels}
    case = predict(labels=labels, thresholds=thresholds)
    text = printed(replace(case, findings=replace(case.findings, ranking="by [bold]")), {"a": Path("[1]/a.json")})
    assert "[red]x" in text
    assert "by [bold]" in text
    assert "wrote [1]/a.json" in text
