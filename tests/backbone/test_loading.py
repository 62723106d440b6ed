"""From a weights file to a backbone: what is learned of it once, and int8 that has to show its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddinov3_stroke.backbone import Backbone, VisionTransformer, graph_source, load_backbone, save_backbone
from meddinov3_stroke.backbone.engines.openvino_graph import openvino_graph, read_graph, save_graph
from meddinov3_stroke.backbone.folding import FoldedTransformer
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.lazy_backbone import LazyBackbone
from meddinov3_stroke.models import (
    Calibration,
    calibration_folder,
    plan_backbone,
    write_calibration,
    write_graph,
)

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]

SIDE = 32


def load(path: Path, **changes: Any) -> Backbone:
    return load_backbone(path, **({"engine": "torch", "precision": "fp32", "device": "cpu"} | changes))


def pixels(n: int = 2, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(n, 1, side, side)).astype(np.float32)


def only_record(path: Path) -> Path:
    """The one record kept beside a weights file."""
    (record,) = (path.parent / "engine_cache" / "records").iterdir()
    return record


def test_facts_are_on_record_under_the_digest_of_the_file(published_checkpoint: Publish) -> None:
    path = published_checkpoint()
    identity = load(path).identity
    plan = plan_backbone(path, engine="torch", precision="fp32", device="cpu")
    assert only_record(path).name == f"{plan.file_sha256}.json"
    assert json.loads(only_record(path).read_text())["weights_sha256"] == identity.weights_sha256
    assert plan.known_identity() == identity == load(path).identity


def test_other_bytes_under_the_same_name_are_read_anew(published_checkpoint: Publish) -> None:
    path = published_checkpoint()
    first = load(path).identity
    assert load(published_checkpoint(seed=1)).identity.weights_sha256 != first.weights_sha256
    assert len(list((path.parent / "engine_cache" / "records").iterdir())) == 2


def test_a_damaged_record_is_said_and_the_weights_are_read(
    published_checkpoint: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    path = published_checkpoint()
    identity = load(path).identity
    only_record(path).write_text(only_record(path).read_text().replace(identity.weights_sha256, "0" * 64))
    assert load(path).identity == identity
    assert caplog.text.count("is damaged or unreadable") == 1
    load(path)
    assert caplog.text.count("is damaged or unreadable") == 1


def test_a_pth_and_our_safetensors_of_the_same_weights_share_their_digest(
    published_checkpoint: Publish, small_vit: MakeVit, tmp_path: Path
) -> None:
    digest = save_backbone(small_vit(), tmp_path / "own.safetensors", "own")
    ours, published = load(tmp_path / "own.safetensors"), load(published_checkpoint())
    assert ours.identity.weights_sha256 == published.identity.weights_sha256 == digest
    assert np.array_equal(ours.class_tokens(pixels()), published.class_tokens(pixels()))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_weights_that_change_between_opening_and_loading_are_refused(
    published_checkpoint: Publish, engine: str
) -> None:
    path = published_checkpoint()
    load(path)
    plan = plan_backbone(path, engine=engine, precision="fp32", device="cpu")
    identity = plan.known_identity()
    assert identity is not None
    published_checkpoint(seed=1)
    with pytest.raises(WeightsMismatch, match=r"model\.pth was changed since it was opened"):
        LazyBackbone(plan, identity).class_tokens(pixels())


@pytest.fixture(scope="module")
def graph_of_other_weights(small_vit: MakeVit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .xml of a plain graph of 32 pixels."""
    path = tmp_path_factory.mktemp("graph") / "graph.xml"
    save_graph(openvino_graph(FoldedTransformer(small_vit(seed=9)), SIDE, "cls"), path)
    return path


@pytest.fixture
def calibrated(published_checkpoint: Publish, graph_of_other_weights: Path) -> Callable[..., Path]:
    """Writes weights with an "int8" graph of 32 pixels beside them, which is the plain graph of other weights: its
    tokens show that it is the one that ran. Keywords replace fields of the record.
    """

    def make(**changes: Any) -> Path:
        path = published_checkpoint()
        weights = load(path).identity.weights_sha256
        folder = calibration_folder(path.parent / "engine_cache", weights)
        digest = write_graph(folder, lambda xml: save_graph(read_graph(graph_of_other_weights), xml))
        record: dict[str, Any] = {
            "weights_sha256": weights,
            "resize": SIDE,
            "graph_sha256": digest,
            "cls_cosine_min": 0.9995,
            "cls_cosine_mean": 0.9997,
            "n_calibration_volumes": 2,
            "n_calibration_slices": 20,
            "n_check_volumes": 2,
            "n_check_slices": 20,
            "calibration_inputs_sha256": ("11" * 32,),
            "check_inputs_sha256": ("22" * 32,),
            "settings": {},
        }
        write_calibration(folder, Calibration(**(record | changes)))
        return path

    return make


def int8(path: Path, **changes: Any) -> Backbone:
    return load(path, engine="auto", precision="int8", **changes)


def graph_folder(path: Path) -> Path:
    """Where the calibrated graph lies."""
    (folder,) = (path.parent / "engine_cache" / "int8").iterdir()
    return folder


def test_int8_runs_the_calibrated_graph_and_says_what_it_keeps(calibrated: Callable[..., Path]) -> None:
    path = calibrated()
    backbone = int8(path)
    other = load(path).class_tokens(pixels())
    assert backbone.class_tokens(pixels()).shape == other.shape
    assert np.abs(backbone.class_tokens(pixels()) - other).max() > 0.1
    assert (backbone.identity.engine, backbone.identity.precision) == ("openvino", "int8")
    assert backbone.identity.calibration_sha256 is not None
    assert backbone.warnings == (
        "int8 backbone: CLS cosine to fp32 at least 0.99950, mean 0.99970, on 20 held-out slices",
    )


def test_int8_at_another_size_is_a_usage_error(calibrated: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--resize 64: the int8 calibration was made at 32"):
        int8(calibrated()).class_tokens(pixels(side=64))


def test_a_low_cosine_is_refused_unless_it_is_accepted_and_then_said(calibrated: Callable[..., Path]) -> None:
    path = calibrated(cls_cosine_min=0.98)
    with pytest.raises(WeightsError, match="--accept-int8"):
        int8(path)
    backbone = int8(path, accept_int8=True)
    assert backbone.class_tokens(pixels()).shape == (2, 128)
    assert "accepted by hand" in backbone.warnings[0]


def test_a_damaged_int8_graph_is_an_error_and_not_made_anew(
    calibrated: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = calibrated()
    monkeypatch.setattr(graph_source, "openvino_graph", lambda *given: pytest.fail("converted"))
    binary = graph_folder(path) / "graph.bin"
    binary.write_bytes(binary.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(WeightsError, match="calibrate again"):
        int8(path).class_tokens(pixels())


def test_a_sound_int8_graph_that_is_not_the_records_is_an_error(calibrated: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="damaged, gone or another one; calibrate again"):
        int8(calibrated(graph_sha256="00" * 32)).class_tokens(pixels())


def test_without_a_calibration_int8_names_the_command(published_checkpoint: Publish) -> None:
    with pytest.raises(WeightsError, match="run meddinov3-stroke calibrate"):
        int8(published_checkpoint())
