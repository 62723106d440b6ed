"""Class tokens, patch tokens and block outputs of one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from meddinov3_stroke.backbone import Backbone, VisionTransformer, load_backbone
from meddinov3_stroke.backbone.architecture import evenly_spaced
from meddinov3_stroke.errors import UsageError

ENGINES = ("openvino", "torch")


def pixels(n: int = 3, channels: int = 1, side: int = 64) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, channels, side, side)).astype(np.float32)


@pytest.fixture
def load(published_checkpoint: Callable[..., Any]) -> Callable[..., Backbone]:
    def make(engine: str, precision: str = "fp32", **architecture: Any) -> Backbone:
        path = published_checkpoint(**architecture)
        return load_backbone(path, engine=engine, precision=precision, device="cpu")

    return make


@pytest.mark.parametrize(("depth", "blocks"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3))])
def test_blocks_are_the_ends_of_four_equal_parts(depth: int, blocks: tuple[int, ...]) -> None:
    assert evenly_spaced(depth) == blocks


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_pass_gives_the_bits_of_separate_ones(load: Any, engine: str, precision: str, channels: int) -> None:
    backbone, given = load(engine, precision), pixels(channels=channels)
    cls, patches, _ = backbone.features(given)
    assert np.array_equal(cls, backbone.class_tokens(given))
    assert np.array_equal(patches, backbone.tokens(given)[1])
    assert backbone._shares_bits == {(*given.shape, 0): True}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("depth", [2, 8])
def test_block_outputs_are_those_of_the_published_module(load: Any, small_vit: Any, engine: str, depth: int) -> None:
    vit, given = small_vit(depth=depth), pixels()
    *_, blocks = load(engine, depth=depth).features(given)
    layers = {
        k: vit.eval().get_intermediate_layers(torch.tensor(given).expand(-1, 3, -1, -1), n=[k], return_class_token=True)
        for k in evenly_spaced(depth)
    }
    expected = np.concatenate([layers[k][0][1].detach().numpy() for k in evenly_spaced(depth)], axis=1)
    assert np.abs(blocks - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("engine", ENGINES)
def test_three_channels_are_those_of_the_published_module(load: Any, small_vit: Any, engine: str) -> None:
    vit: VisionTransformer = small_vit().eval()
    given = pixels(channels=3)
    expected = vit.forward_features(torch.tensor(given))["x_norm_clstoken"].detach().numpy()
    found = load(engine).class_tokens(given)
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()
    equal = load(engine).class_tokens(given[:, :1])
    assert np.abs(equal - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("engine", ENGINES)
def test_class_tokens_are_computed_apart_where_one_pass_gives_other_bits(load: Any, engine: str) -> None:
    backbone, given = load(engine), pixels()
    expected, inner = backbone.class_tokens(given), backbone._engine
    features = inner.features
    inner.features = lambda some: (features(some)[0] + np.float32(1e-6), *features(some)[1:])
    for _ in range(2):
        assert np.array_equal(backbone.features(given)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_runs_out_halves_the_pass(load: Any, engine: str) -> None:
    backbone, given = load(engine), pixels(4)
    features, sizes = backbone._engine.features, []

    def small(some: np.ndarray) -> Any:
        sizes.append(len(some))
        if len(some) > 2:
            raise MemoryError
        return features(some)

    backbone._engine.features = small
    assert [len(part) for part in backbone.features(given)] == [4, 4, 4]
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_three_channels_in_weights_of_one_are_refused(load: Any, engine: str) -> None:
    with pytest.raises(UsageError, match="3 different channels"):
        load(engine, in_chans=1).class_tokens(pixels(channels=3))
