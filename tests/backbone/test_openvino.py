"""OpenVINO as the engine: its answers against torch, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddinov3_stroke.backbone import TorchEngine, VisionTransformer, Weights, load_weights
from meddinov3_stroke.backbone.architecture import rope_periods, rope_tables, round_bf16
from meddinov3_stroke.backbone.loading import WeightsFile, cosines
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph, plain_precision
from meddinov3_stroke.backbone.weights import build_module, canonical_state

MakeVit = Callable[..., VisionTransformer]
GraphOf = Callable[[int], object]

N_SLICES = 8
LEAST_COSINE = 0.9999
MOST_DIFFERENCE = 2.5e-3
"""Relative to the largest token; a bf16 rotation in float32 (FACTS 1) accounts for it."""

PROBE = """
import sys
from importlib.abc import MetaPathFinder

class NoTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"no module named {name}", name=name)

sys.meta_path.insert(0, NoTorch())
import numpy as np
from meddinov3_stroke import load_backbone
backbone = load_backbone(sys.argv[1], device="cpu")
tokens = backbone.embed(np.zeros((2, 40, 40), np.float32), resize=32, patches=True)
print(tokens.cls.shape, tokens.patches.shape, "torch" in sys.modules)
"""


def pixels(n: int = N_SLICES, side: int = 64) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, 1, side, side)).astype(np.float32)


def weights_of(vit: VisionTransformer) -> Weights:
    architecture = vit.architecture
    return Weights(canonical_state(vit.state_dict(), architecture), architecture, ())


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def graph_of(small_vit: MakeVit) -> GraphOf:
    """Gives the graphs of the small ViT."""
    return lambda side: build_graph(weights_of(small_vit()), side)


@pytest.mark.parametrize("side", [32, 64, 100, 224])
def test_class_and_patch_tokens_keep_to_torch_in_fp32_at_any_size(
    graph_of: GraphOf, small_vit: MakeVit, side: int
) -> None:
    engine, reference = OpenVINOEngine(graph_of, "fp32"), TorchEngine(small_vit(), "cpu", "fp32")
    given = pixels(side=side)
    found, expected = engine.tokens(given), reference.tokens(given)
    alone = engine.class_tokens(given)
    assert {array.dtype for array in (*found, alone)} == {np.dtype(np.float32)}
    assert found[1].shape == (N_SLICES, (side // 16) ** 2, 128)
    for ours, torchs in ((found[0], expected[0]), (alone, expected[0]), (found[1], expected[1])):
        assert cosines(ours.reshape(-1, 128), torchs.reshape(-1, 128)).min() >= LEAST_COSINE
        assert difference(ours, torchs) <= MOST_DIFFERENCE


@pytest.mark.parametrize(
    "changes",
    [
        {"n_storage_tokens": 0},
        {"layerscale_init": None},
        {"patch_size": 8, "in_chans": 1},
        {"qkv_bias": True, "mask_k_bias": False},
        {"ffn_ratio": 3.0, "ffn_bias": False, "proj_bias": False},
        {"qkv_bias": True, "mask_k_bias": True, "norm_layer": "layernormbf16"},
        {"depth": 1, "num_heads": 4},
    ],
    ids=str,
)
def test_every_architecture_keeps_to_torch(small_vit: MakeVit, changes: dict[str, object]) -> None:
    """With a float32 rotation nothing is left that engines may round differently."""
    vit = small_vit(**changes, pos_embed_rope_dtype="fp32")
    found = OpenVINOEngine(lambda side: build_graph(weights_of(vit), side), "fp32").tokens(pixels(side=48))
    for ours, torchs in zip(found, TorchEngine(vit, "cpu", "fp32").tokens(pixels(side=48)), strict=True):
        assert difference(ours, torchs) <= 1e-5


def test_the_demo_backbone_keeps_to_torch() -> None:
    weights = load_weights(WeightsFile.find("demo").path)
    engine = OpenVINOEngine(lambda side: build_graph(weights, side), "fp32")
    reference = TorchEngine(build_module(weights), "cpu", "fp32")
    given = pixels(4, side=224)
    for ours, torchs in zip(engine.tokens(given), reference.tokens(given), strict=True):
        assert cosines(ours.reshape(-1, 128), torchs.reshape(-1, 128)).min() >= LEAST_COSINE
        assert difference(ours, torchs) <= 2 * MOST_DIFFERENCE  # 4.4e-3, as a traced graph of it has


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (32, 20)], ids=str)
def test_the_tables_of_the_rotation_are_torchs(small_vit: MakeVit, grid: tuple[int, int], dtype: str) -> None:
    for ours, torchs in zip(rope_tables(grid, rope_periods(64), dtype), torch_tables(grid, dtype), strict=True):
        np.testing.assert_allclose(ours, torchs, rtol=0, atol=0 if dtype == "bf16" else 2e-7)
    rope = small_vit(depth=1, pos_embed_rope_dtype=dtype).rope_embed
    for ours, of_module in zip(rope_tables(grid, rope_periods(64), dtype), rope(grid), strict=True):
        assert np.array_equal(ours, of_module.float().numpy())


def torch_tables(grid: tuple[int, int], name: str) -> list[np.ndarray]:
    """(sines, cosines) by the published operations in torch, each in the dtype of the rotation."""
    import torch

    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    periods = (100.0 ** (torch.arange(16, dtype=torch.float32) / 16)).to(dtype)
    rows, columns = (
        (2.0 * np.pi * (torch.arange(0.5, n, dtype=dtype) / n * 2.0 - 1.0))[:, None] / periods for n in grid
    )
    block = torch.cat((rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)), dim=1).repeat(1, 2)
    return [block.sin().float().numpy(), block.cos().float().numpy()]


@pytest.mark.parametrize("head_dim", [32, 48, 64, 80, 96, 128])
def test_periods_have_the_bits_of_torchs(head_dim: int) -> None:
    import torch

    exponents = torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4)
    assert np.array_equal(rope_periods(head_dim), (100.0**exponents).numpy())


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_rounding_to_bf16_is_torchs(values: list[float]) -> None:
    import torch

    array = np.array(values, dtype=np.float32)
    assert np.array_equal(round_bf16(array), torch.from_numpy(array).to(torch.bfloat16).float().numpy())


def test_one_engine_takes_sizes_and_views_in_turn_and_compiles_a_graph_a_size(graph_of: GraphOf) -> None:
    asked: list[int] = []

    def counted(side: int) -> object:
        asked.append(side)
        return graph_of(side)

    engine = OpenVINOEngine(counted, "fp32")
    first = engine.class_tokens(pixels(side=32))
    cls, _ = engine.tokens(pixels())
    assert np.array_equal(engine.class_tokens(pixels(side=32)), first)
    assert difference(engine.class_tokens(pixels()), cls) < 1e-5
    assert asked == [32, 64]


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
    monkeypatch.setattr("meddinov3_stroke.backbone.openvino_engine.bf16_flag", lambda: flag)
    assert plain_precision(precision) == (with_flag if flag else without)


def test_threads_and_precision_are_those_asked_for(graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    compiled = OpenVINOEngine(graph_of, "fp32")._compiled(graph_of(64))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@pytest.mark.parametrize("source", ["demo", "published"])
def test_a_backbone_embeds_where_torch_cannot_be_imported(
    source: str, random_weights: Callable[..., Path], tmp_path: Path
) -> None:
    """Nor is anything written under the home folder: OpenVINO's telemetry would be."""
    weights = "demo" if source == "demo" else str(random_weights())
    result = subprocess.run(
        [sys.executable, "-c", PROBE, weights],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    dim = 128 if source == "demo" else 64
    assert result.stdout.strip() == f"(2, {dim}) (2, 4, {dim}) False"
    assert list(tmp_path.rglob("*")) == []
