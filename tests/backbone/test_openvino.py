"""OpenVINO as the engine: its answers, its graphs on disk, and what it leaves alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddinov3_stroke.backbone import Backbone, TorchEngine, VisionTransformer, graph_source, load_backbone
from meddinov3_stroke.backbone.engines.openvino_engine import OpenVINOEngine, plain_precision
from meddinov3_stroke.backbone.engines.openvino_graph import View, openvino_graph, read_graph, save_graph
from meddinov3_stroke.backbone.fidelity import cosines
from meddinov3_stroke.backbone.folding import FoldedTransformer

MakeVit = Callable[..., VisionTransformer]
Publish = Callable[..., Path]
GraphOf = Callable[[int, View], object]

N_SLICES = 8
PROBE_TELEMETRY = """
import sys
import torch
from meddinov3_stroke.backbone.engines.openvino_graph import import_openvino
doubled = torch.jit.trace(lambda x: x * 2, torch.zeros(1, 1))
print(import_openvino().convert_model(doubled, input=[-1, 1]).get_friendly_name())
"""


def pixels(n: int = N_SLICES, side: int = 64) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, 1, side, side)).astype(np.float32)


@pytest.fixture(scope="module")
def graph_of(small_vit: MakeVit, tmp_path_factory: pytest.TempPathFactory) -> GraphOf:
    """Gives the graphs of the small ViT, each converted once in this module."""
    folder = tmp_path_factory.mktemp("graphs")

    def read(side: int, view: View) -> object:
        path = folder / f"{view}-{side}.xml"
        if not path.is_file():
            save_graph(openvino_graph(FoldedTransformer(small_vit()), side, view), path)
        return read_graph(path)

    return read


@pytest.fixture
def conversions(graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(side, view) of each graph that loading converts; the small ViT's, ready-made, are given out instead."""
    made: list[tuple[int, str]] = []

    def convert(folded: FoldedTransformer, side: int, view: View) -> object:
        made.append((side, view))
        return graph_of(side, view)

    monkeypatch.setattr(graph_source, "openvino_graph", convert)
    return made


def load(path: Path) -> Backbone:
    return load_backbone(path, engine="openvino", precision="fp32", device="cpu")


def only_graph(path: Path) -> Path:
    """The folder of the one graph kept beside a weights file."""
    (folder,) = (path.parent / "engine_cache" / "graphs").iterdir()
    return folder


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_class_and_patch_tokens_keep_to_torch_in_fp32(graph_of: GraphOf, small_vit: MakeVit) -> None:
    found_cls, found_patches = OpenVINOEngine(graph_of, "fp32").class_and_patch_tokens(pixels())
    cls, patches = TorchEngine(small_vit(), "cpu", "fp32").class_and_patch_tokens(pixels())
    assert (found_cls.dtype, found_patches.dtype) == (np.float32, np.float32)
    assert found_patches.shape == patches.shape == (N_SLICES, 16, 128)
    assert cosines(found_cls, cls).min() >= 0.9999
    assert cosines(found_patches.reshape(-1, 128), patches.reshape(-1, 128)).min() >= 0.9999


@pytest.mark.parametrize("side", [64, 32])
def test_class_tokens_keep_to_torch_in_fp32_at_any_size(graph_of: GraphOf, small_vit: MakeVit, side: int) -> None:
    found = OpenVINOEngine(graph_of, "fp32").class_tokens(pixels(side=side))
    assert cosines(found, TorchEngine(small_vit(), "cpu", "fp32").class_tokens(pixels(side=side))).min() >= 0.9999


def test_one_engine_takes_sizes_and_views_in_turn(graph_of: GraphOf) -> None:
    asked: list[tuple[int, str]] = []

    def counted(side: int, view: View) -> object:
        asked.append((side, view))
        return graph_of(side, view)

    engine = OpenVINOEngine(counted, "fp32")
    first = engine.class_tokens(pixels(side=32))
    cls, _ = engine.class_and_patch_tokens(pixels())
    assert np.array_equal(engine.class_tokens(pixels(side=32)), first)
    assert cosines(engine.class_tokens(pixels()), cls).min() >= 0.9999
    assert asked == [(32, "cls"), (64, "patches"), (64, "cls")]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine_and_lone_tokens(request: pytest.FixtureRequest, graph_of: GraphOf) -> tuple[OpenVINOEngine, np.ndarray]:
    """An engine, and the class token of each slice when it is alone in its pass."""
    engine = OpenVINOEngine(graph_of, request.param)
    return engine, np.concatenate([engine.class_tokens(each[None]) for each in pixels()])


@settings(max_examples=25)
@given(picked=st.sampled_from([1, 2, 3, 5, 8]).flatmap(lambda n: st.permutations(range(N_SLICES)).map(lambda p: p[:n])))
def test_a_slice_has_the_same_bits_in_any_batch_and_order(
    engine_and_lone_tokens: tuple[OpenVINOEngine, np.ndarray], picked: list[int]
) -> None:
    engine, alone = engine_and_lone_tokens
    assert engine.independent_rows
    assert np.array_equal(engine.class_tokens(pixels()[picked]), alone[picked])


def test_answers_outlive_the_next_pass(graph_of: GraphOf) -> None:
    engine = OpenVINOEngine(graph_of, "fp32")
    first = engine.class_tokens(pixels())
    kept = first.copy()
    engine.class_tokens(pixels()[::-1])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("flag", ["avx512_bf16", None])
@pytest.mark.parametrize(("precision", "with_flag", "without"), [("fp32", "fp32", "fp32"), ("int8", "bf16", "fp32")])
def test_what_int8_leaves_unquantized_runs_in_the_best_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, precision: str, with_flag: str, without: str
) -> None:
    monkeypatch.setattr("meddinov3_stroke.backbone.engines.openvino_engine.bf16_flag", lambda: flag)
    assert plain_precision(precision) == (with_flag if flag else without)


def test_threads_and_precision_are_those_asked_for(graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = OpenVINOEngine(graph_of, "fp32")
    compiled = engine._request(64, "cls").get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_a_graph_is_kept_at_its_first_use_and_read_at_the_second(
    published_checkpoint: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published_checkpoint()
    first = load(path).class_tokens(pixels(side=32))
    monkeypatch.setattr(graph_source, "openvino_graph", lambda *given: pytest.fail("converted again"))
    assert np.array_equal(load(path).class_tokens(pixels(side=32)), first)


def test_a_kept_graph_spares_reading_the_weights(
    published_checkpoint: Publish, conversions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published_checkpoint()
    first = load(path).class_tokens(pixels())
    monkeypatch.setattr(graph_source, "load_weights", lambda path: pytest.fail("the weights were read again"))
    assert np.array_equal(load(path).class_tokens(pixels()), first)


@pytest.mark.parametrize("name", ["graph.bin", "graph.xml", "manifest.json"])
def test_a_damaged_graph_is_noticed_said_and_made_anew(
    published_checkpoint: Publish, conversions: list[object], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = published_checkpoint()
    first = load(path).class_tokens(pixels())
    damaged = only_graph(path) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert np.array_equal(load(path).class_tokens(pixels()), first)
    assert len(conversions) == 2
    assert len(warned(caplog)) == 1
    assert str(only_graph(path)) in warned(caplog)[0]
    load(path).class_tokens(pixels())
    assert len(conversions) == 2


@pytest.mark.parametrize(("name", "n_warnings"), [("graph.bin", 1), ("manifest.json", 0)])
def test_a_graph_that_lacks_a_file_is_made_anew(
    published_checkpoint: Publish,
    conversions: list[object],
    caplog: pytest.LogCaptureFixture,
    name: str,
    n_warnings: int,
) -> None:
    path = published_checkpoint()
    first = load(path).class_tokens(pixels())
    (only_graph(path) / name).unlink()
    assert np.array_equal(load(path).class_tokens(pixels()), first)
    assert len(conversions) == 2
    assert len(warned(caplog)) == n_warnings


def test_a_folder_that_cannot_be_written_is_said_and_gone_without(
    published_checkpoint: Publish, conversions: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    path = published_checkpoint()
    (path.parent / "engine_cache").write_text("a file where the folder should be")
    expected = OpenVINOEngine(lambda side, view: graph_source.openvino_graph(None, side, view), "fp32").class_tokens(
        pixels()
    )
    assert np.array_equal(load(path).class_tokens(pixels()), expected)
    assert any("the graph will be converted again next time" in line for line in warned(caplog))


def test_a_graph_that_cannot_be_written_is_said_and_gone_without(
    published_checkpoint: Publish,
    conversions: list[object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = published_checkpoint()

    def no_space(graph: object, path: Path) -> None:
        save_graph(graph, Path("/proc/none/graph.xml"))  # OpenVINO's own error, as on a full disk

    monkeypatch.setattr(graph_source, "save_graph", no_space)
    assert load(path).class_tokens(pixels()).shape == (N_SLICES, 128)
    assert any("the graph will be converted again next time" in line for line in warned(caplog))


def test_each_size_and_view_is_a_graph_of_its_own(published_checkpoint: Publish, conversions: list[object]) -> None:
    path, hu = published_checkpoint(), np.zeros((1, 8, 8), dtype=np.float32)
    for _ in range(2):
        backbone = load(path)
        backbone.embed(hu, resize=64)
        backbone.embed(hu, resize=64, patches=True)
        backbone.embed(hu, resize=32)
    assert conversions == [(64, "cls"), (64, "patches"), (32, "cls")]
    assert len(list((path.parent / "engine_cache" / "graphs").iterdir())) == 3


def test_no_telemetry_is_written_under_home(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE_TELEMETRY],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("*")) == []
