from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke import predictor as predictor_module
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import (
    CheckpointError,
    CorruptInput,
    MissingInput,
    MissingWeights,
    NonFiniteEmbedding,
    Outcome,
    UsageError,
)
from meddinov3_stroke.explain import DEMO_NOTICE, patch_similarity
from meddinov3_stroke.features import pool_slices
from meddinov3_stroke.predictor import Case, FailedCase, ICHPredictor, contradictions
from meddinov3_stroke.types import LABELS, SliceSelection, Threshold


@pytest.fixture(scope="module")
def backbone(random_weights: Callable[..., Path]) -> Backbone:
    return load_backbone(random_weights(), engine="torch", precision="fp32", device="cpu")


@pytest.fixture
def load(backbone: Backbone, random_head: Callable[..., Path]) -> Callable[..., ICHPredictor]:
    """A predictor with a random head of a pool mode; `head` holds replaced fields of its checkpoint."""

    def make(pool_mode: str = "mean", head: dict[str, Any] | None = None, **options: Any) -> ICHPredictor:
        return ICHPredictor.load(random_head(backbone, pool_mode, **(head or {})), backbone=backbone, **options)

    return make


def linear_head(predictor: ICHPredictor, rows: np.ndarray) -> np.ndarray:
    """Probabilities of the linear head, from its weights alone."""
    state = predictor.heads.members[0].state_dict
    weight, bias = (next(v for k, v in state.items() if k.endswith(name)) for name in ("weight", "bias"))
    return 1 / (1 + np.exp(-(rows.astype(np.float64) @ weight.T + bias)))


def content(case: Case) -> dict[str, Any]:
    """What a case says, without the time it took."""
    return {
        "probabilities": case.probabilities,
        "decisions": case.decisions,
        "top_slices": case.top_slices,
        "similarity": case.findings.similarity.tobytes(),
        "slices": None if case.findings.slice_probabilities is None else case.findings.slice_probabilities.tobytes(),
        "warnings": case.warnings,
    }


@pytest.mark.parametrize("mode", ["mean", "max", "mean_max"])
def test_the_case_is_the_head_on_the_pooled_slices(load, backbone, head_nifti, mode) -> None:
    predictor, path = load(mode), head_nifti()
    pooled = pool_slices(backbone.embed(read_volume(path).hu, resize=64).cls, mode)
    case = predictor(path)
    np.testing.assert_allclose(list(case.probabilities.values()), linear_head(predictor, pooled[None])[0], atol=1e-5)
    assert tuple(case.probabilities) == LABELS


def test_a_head_of_slices_gives_the_maximum_over_slices(load, backbone, head_nifti) -> None:
    predictor, path = load("slice"), head_nifti()
    rows = linear_head(predictor, backbone.embed(read_volume(path).hu, resize=64).cls)
    np.testing.assert_allclose(list(predictor(path).probabilities.values()), rows.max(axis=0), atol=1e-5)


@pytest.mark.parametrize("mode", ["slice", "mean", "max", "unknown"])
def test_slice_probabilities_are_the_head_on_each_slice(load, backbone, head_nifti, mode) -> None:
    predictor, path = load(mode), head_nifti()
    rows = linear_head(predictor, backbone.embed(read_volume(path).hu, resize=64).cls)
    np.testing.assert_allclose(predictor(path).findings.slice_probabilities, rows, atol=1e-5)


def test_a_head_of_mean_max_has_no_slice_probabilities(load, head_nifti) -> None:
    assert load("mean_max")(head_nifti()).findings.slice_probabilities is None


def test_a_head_of_mean_max_ranks_slices_pooled_alone(load, backbone, head_nifti) -> None:
    predictor, path = load("mean_max", top_k=8), head_nifti()
    cls = backbone.embed(read_volume(path).hu, resize=64).cls
    alone = np.stack([pool_slices(row[None], "mean_max") for row in cls])
    expected = linear_head(predictor, alone)[:, 0]
    case = predictor(path)
    np.testing.assert_allclose([one.score for one in case.top_slices], np.sort(expected)[::-1], atol=1e-5)
    assert "pooled alone" in case.findings.ranking


def test_an_unknown_head_is_taken_for_mean_with_a_warning(load, head_nifti) -> None:
    path = head_nifti()
    case = load("unknown")(path)
    assert case.probabilities == load("mean")(path).probabilities
    assert "the head is applied as if trained on mean-pooled volumes" in case.warnings


def test_an_unknown_head_of_double_width_is_taken_for_mean_max(load, head_nifti) -> None:
    path = head_nifti()
    assert load("unknown", head={"width": 2})(path).probabilities == load("mean_max")(path).probabilities


@pytest.mark.parametrize(("shift", "expected"), [(0.0, True), (-1e-9, True), (1e-9, False)])
def test_a_label_is_positive_from_its_threshold_on(load, head_nifti, shift, expected) -> None:
    path = head_nifti()
    probabilities = load()(path).probabilities
    thresholds = {label: Threshold(value + shift, "validation") for label, value in probabilities.items()}
    case = load(head={"thresholds": thresholds})(path)
    assert set(case.decisions.values()) == {expected}
    assert case.thresholds == thresholds


def test_top_slices_are_the_highest_scores_in_order(load, head_nifti) -> None:
    case = load("slice", top_k=3)(head_nifti())
    scores = case.findings.slice_probabilities[:, 0]
    assert [one.slice_index for one in case.top_slices] == np.argsort(-scores, kind="stable")[:3].tolist()
    assert [one.score for one in case.top_slices] == sorted(scores.tolist(), reverse=True)[:3]


def test_a_top_slice_is_named_by_its_place_in_the_volume_not_among_the_chosen(load, head_nifti) -> None:
    path = head_nifti()
    case = load("slice", selection=SliceSelection(stride=3), top_k=8)(path)
    assert sorted(one.slice_index for one in case.top_slices) == [0, 3, 6]
    for one in case.top_slices:
        assert one.position_mm == tuple(read_volume(path).slice_positions_mm[one.slice_index])


def test_without_any_the_score_is_the_highest_label(load, head_nifti) -> None:
    case = load("slice", head={"labels": ("class_0", "class_1")})(head_nifti())
    assert case.top_slices[0].score == case.findings.slice_probabilities.max()


def test_the_map_is_the_similarity_to_the_reference_patch(load, backbone, head_nifti) -> None:
    path = head_nifti()
    case = load(top_k=2)(path)
    for one, found in zip(case.top_slices, case.findings.similarity, strict=True):
        tokens = backbone.embed(read_volume(path).hu[[one.slice_index]], resize=64, patches=True)
        expected = patch_similarity(tokens.patches[0], (4, 4), one.reference_patch)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_reference_patch_lies_inside_the_head(load, head_nifti) -> None:
    corners = {(0, 0), (0, 3), (3, 0), (3, 3)}
    assert corners.isdisjoint(one.reference_patch for one in load(top_k=8)(head_nifti()).top_slices)


def test_the_same_case_twice_is_the_same(load, head_nifti) -> None:
    predictor, path = load(), head_nifti()
    assert content(predictor(path)) == content(predictor(path))


def test_the_order_of_cases_changes_nothing(load, head_nifti) -> None:
    predictor = load()
    paths = [head_nifti(f"{seed}.nii.gz", seed, n_rows) for seed, n_rows in ((0, 64), (1, 48), (2, 64))]
    forward = [content(case) for case in predictor.map(paths)]
    backward = [content(case) for case in predictor.map(reversed(paths))]
    assert forward == backward[::-1]
    assert forward[0] != forward[2]


def test_a_bad_case_is_recorded_and_stops_nothing(load, head_nifti, tmp_path) -> None:
    good = head_nifti()
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(good.read_bytes()[:-20])
    found = list(load().map([good, torn, tmp_path / "missing.nii.gz", str(good)]))
    assert [case.status for case in found] == ["done", "rejected", "rejected", "done"]
    assert [case.code for case in found if isinstance(case, FailedCase)] == [CorruptInput.code, MissingInput.code]
    assert "torn.nii.gz" in found[1].message


def test_a_single_slice_is_refused(load, tmp_path, head_nifti) -> None:
    import nibabel as nib

    image = nib.load(head_nifti())
    nib.save(image.slicer[:, :, 2:3], tmp_path / "one.nii.gz")
    [case] = load().map([tmp_path / "one.nii.gz"])
    assert (case.status, case.code) == ("refused", "E-SCOPE")


def test_an_internal_error_on_one_case_is_recorded_and_logged(load, head_nifti, monkeypatch, caplog) -> None:
    monkeypatch.setattr(predictor_module, "rank", lambda scores, top_k: 1 / 0)
    monkeypatch.setattr(logging.getLogger("meddinov3_stroke"), "propagate", True)
    [case] = load().map([head_nifti()])
    assert (case.status, case.code) == ("failed", "E-BUG")
    assert "ZeroDivisionError" in caplog.text


def test_an_embedding_that_is_no_number_names_the_file(load, head_nifti, monkeypatch) -> None:
    predictor, path = load(), head_nifti()
    monkeypatch.setattr(
        predictor.extractor.backbone, "class_tokens", lambda pixels: np.full((len(pixels), 64), np.nan, np.float32)
    )
    with pytest.raises(NonFiniteEmbedding, match=r"case\.nii\.gz: backbone"):
        predictor(path)
    assert [case.status for case in predictor.map([path])] == ["failed"]


def test_the_resize_is_the_heads_own(load) -> None:
    assert load(head={"resize": 96}).extractor.resize == 96


def test_another_resize_than_the_heads_is_refused(load) -> None:
    with pytest.raises(CheckpointError, match="resize: expected 64, found 128"):
        load(resize=128)


def test_a_head_that_does_not_say_its_resize_takes_the_usual_one_with_a_warning(load) -> None:
    predictor = load(head={"resize": None})
    assert predictor.extractor.resize == 224
    assert "the checkpoint does not state the --resize of its training" in predictor.warnings


def test_other_weights_than_the_heads_are_refused(backbone, random_head, random_weights) -> None:
    with pytest.raises(CheckpointError, match="weights_sha256"):
        ICHPredictor.load(random_head(backbone), backbone=random_weights(seed=1), device="cpu")


def test_missing_weights_are_named(backbone, random_head, tmp_path) -> None:
    with pytest.raises(MissingWeights, match=r"nothing\.pth"):
        ICHPredictor.load(random_head(backbone), backbone=tmp_path / "nothing.pth", device="cpu")


def test_a_backbone_by_path_is_the_loaded_one(load, backbone, random_head, random_weights, head_nifti) -> None:
    path = head_nifti()
    by_path = ICHPredictor.load(
        str(random_head(backbone)), backbone=str(random_weights()), device="cpu", engine="torch", precision="fp32"
    )
    assert content(by_path(path)) == content(load()(path))


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_a_usage_error(load, top_k) -> None:
    with pytest.raises(UsageError, match="--top-k"):
        load(top_k=top_k)


def test_more_top_slices_than_there_are_slices_are_all_of_them(load, head_nifti) -> None:
    assert len(load(top_k=50)(head_nifti()).top_slices) == 8


def test_a_head_of_another_precision_is_used_with_a_warning(backbone, random_head, random_weights) -> None:
    other = load_backbone(random_weights(), device="cpu", precision="bf16")
    predictor = ICHPredictor.load(random_head(other), backbone=backbone)
    assert any("precision" in warning for warning in predictor.warnings)


def test_the_demonstration_backbone_is_named_with_every_case(backbone, random_head, head_nifti) -> None:
    demo = Backbone(replace(backbone.identity, name="demo"), "cpu", lambda: backbone._engine)
    assert DEMO_NOTICE in ICHPredictor.load(random_head(demo), backbone=demo)(head_nifti()).warnings


def test_no_other_backbone_is_called_a_demonstration(load, head_nifti) -> None:
    assert load()(head_nifti()).warnings == ()


@pytest.mark.parametrize(
    ("decisions", "n_warnings"),
    [
        ({"any": False, "subdural": True}, 1),
        ({"any": True, "subdural": True}, 0),
        ({"any": False, "subdural": False}, 0),
        ({"class_0": True}, 0),
    ],
)
def test_a_type_above_its_threshold_while_any_is_below_brings_a_warning(decisions, n_warnings) -> None:
    assert len(contradictions(decisions)) == n_warnings


def test_a_case_goes_by_its_file_name_without_the_ending(load, head_nifti) -> None:
    assert load()(head_nifti("病例_1.nii.gz")).name == "病例_1"
    assert FailedCase(Path("a/b.NII"), Outcome("failed", "E", "why")).name == "b"


def test_a_failed_case_saves_why(load, tmp_path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(b"no NIfTI"))
    [case] = load().map([tmp_path / "bad.nii.gz"])
    case.save(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], summary["code"], summary["message"]) == (case.status, case.code, case.message)
    assert summary["schema_version"] == 1


def test_a_given_threshold_replaces_those_of_the_checkpoint_with_a_warning(load, head_nifti) -> None:
    path = head_nifti()
    probabilities = load()(path).probabilities
    given = sorted(probabilities.values())[3]
    case = load(threshold=given)(path)
    assert {one.value for one in case.thresholds.values()} == {given}
    assert {one.origin for one in case.thresholds.values()} == {"given by --threshold"}
    assert case.decisions == {label: value >= given for label, value in probabilities.items()}
    assert any("replaces the checkpoint's thresholds" in warning for warning in case.warnings)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_a_usage_error(load, threshold) -> None:
    with pytest.raises(UsageError, match="--threshold"):
        load(threshold=threshold)


def test_the_map_of_a_given_slice_and_patch_is_that_of_the_backbone(load, backbone, head_nifti) -> None:
    path = head_nifti()
    case = load(sim_slice=6, sim_patch="1,3")(path)
    tokens = backbone.embed(read_volume(path).hu[[6]], resize=64, patches=True)
    expected = patch_similarity(tokens.patches[0], (4, 4), (1, 3))
    np.testing.assert_allclose(case.findings.similarity, expected[None], atol=1e-5)
    assert [(one.slice_index, one.reference_patch) for one in case.findings.map_slices] == [(6, (1, 3))]
    assert [one.slice_index for one in case.top_slices] == [one.slice_index for one in load()(path).top_slices]


def test_a_given_patch_is_the_reference_of_every_suspicious_slice(load, head_nifti) -> None:
    case = load(sim_patch="center", top_k=3)(head_nifti())
    assert [one.reference_patch for one in case.top_slices] == [(2, 2)] * 3
    assert case.findings.reference_rule == "given by --sim-patch center"


@pytest.mark.parametrize(
    "flags", [{"sim_slice": 8}, {"sim_slice": -2}, {"sim_patch": "4,0"}, {"sim_patch": "x"}], ids=str
)
def test_a_slice_or_patch_that_does_not_exist_is_a_usage_error(load, head_nifti, flags) -> None:
    with pytest.raises(UsageError, match="--sim-"):
        load(**flags)(head_nifti())


def test_a_slice_that_does_not_exist_costs_no_forward_pass(load, head_nifti, monkeypatch) -> None:
    predictor, passes = load(sim_slice=8), []
    monkeypatch.setattr(type(predictor.extractor.backbone), "class_tokens", lambda backbone, pixels: passes.append(1))
    with pytest.raises(UsageError, match="--sim-slice 8"):
        predictor(head_nifti())
    assert passes == []


def test_the_map_of_an_embedded_slice_shows_the_probabilities_of_that_slice(load, head_nifti) -> None:
    found = load(sim_slice=6)(head_nifti()).findings
    (shown,) = found.map_slices
    row = found.slice_probabilities[list(found.embeddings.slice_indices).index(6)]
    assert list(shown.probabilities.values()) == row.tolist()


def test_a_volume_in_memory_has_the_findings_of_its_file(load, head_nifti) -> None:
    path, predictor = head_nifti(), load()
    in_memory, from_file = predictor.judge(read_volume(path)), predictor(path)
    assert in_memory.probabilities == pytest.approx(from_file.probabilities, abs=1e-6)
    assert [one.slice_index for one in in_memory.top_slices] == [one.slice_index for one in from_file.top_slices]


@pytest.mark.parametrize("flags", [{"batch": 0}, {"top_k": 0}, {"threshold": 2.0}], ids=str)
def test_a_wrong_flag_is_found_before_the_head_is_read(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ICHPredictor.load(tmp_path / "not there.pt", backbone="demo", **flags)


def test_an_internal_error_says_so(load, head_nifti, monkeypatch) -> None:
    monkeypatch.setattr(predictor_module, "rank", lambda scores, top_k: 1 / 0)
    [case] = load().map([head_nifti()])
    assert case.outcome == Outcome("failed", "E-BUG", "internal error: ZeroDivisionError: division by zero")


def test_the_head_stands_with_its_digest_in_the_findings(load, head_nifti) -> None:
    predictor = load()
    head = predictor(head_nifti()).findings.head
    assert head["sha256"] == predictor.heads.sha256 != ""
    assert head["applied_as"] == "mean"


def test_the_promised_names_are_importable_from_the_package() -> None:
    import meddinov3_stroke

    assert meddinov3_stroke.ICHPredictor is ICHPredictor


def test_good_and_failed_cases_answer_the_same_questions(load, head_nifti, tmp_path) -> None:
    good, bad = load().map([head_nifti(), tmp_path / "none.nii"])
    assert (good.status, good.code, good.message) == ("done", "", "")
    assert tuple(good.probabilities) == LABELS
    assert (bad.status, bad.code) == ("rejected", "E-INPUT-MISSING")
    assert "none.nii" in bad.message
    assert bad.probabilities is None


def test_every_repr_is_one_short_line(load, backbone, head_nifti, tmp_path) -> None:
    path, predictor = head_nifti(), load()
    case, failed = predictor.map([path, tmp_path / "none.nii"])
    labels = ", ".join(f"{label} {probability:.3f}" for label, probability in case.probabilities.items())
    findings, engine = f"CaseFindings({labels}, 0 warnings)", "Backbone('model.pth', torch fp32 on cpu)"
    assert repr(case.findings) == findings
    assert repr(case) == f"Case({str(path)!r}, done, {findings})"
    assert repr(failed) == f"FailedCase({str(tmp_path / 'none.nii')!r}, rejected, E-INPUT-MISSING)"
    assert repr(backbone) == engine
    assert repr(predictor) == f"ICHPredictor({engine}, head of 6 labels on mean features)"
    assert repr(read_volume(path)) == f"Volume({str(path)!r}, 8 x 64 x 64 voxels of 5 x 3 x 3 mm)"


TIMED = """
import json, sys, time
start = time.perf_counter()
{statement}
slow = [name for name in ("torch", "openvino", "pandas", "scipy", "tyro", "pydicom", "PIL") if name in sys.modules]
print(json.dumps([time.perf_counter() - start, slow]))
"""


def test_the_predictor_is_imported_in_a_few_times_the_time_of_numpy() -> None:
    def timed(statement: str) -> tuple[float, list[str]]:
        runs = [
            subprocess.run(
                [sys.executable, "-c", TIMED.format(statement=statement)], capture_output=True, check=True, timeout=60
            )
            for _ in range(3)
        ]
        return min(tuple(json.loads(run.stdout)) for run in runs)

    numpy_s, _ = timed("import numpy")
    ours_s, slow = timed("from meddinov3_stroke import ICHPredictor")
    assert slow == []
    assert ours_s < 8 * numpy_s  # 3 times on a quiet machine: half a second
