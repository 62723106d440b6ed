"""Savings that are algebra alone: folded weights give the tokens of the plain ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meddinov3_stroke.backbone import TorchEngine, VisionTransformer, Weights
from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.backbone.weights import build_module, canonical_state, fold

MakeVit = Callable[..., VisionTransformer]

TOLERANCE = 1e-10

ARCHITECTURES = st.fixed_dictionaries(
    {
        "embed_dim": st.just(64),
        "num_heads": st.sampled_from([1, 2]),
        "depth": st.integers(1, 2),
        "n_storage_tokens": st.sampled_from([0, 1, 4]),
        "layerscale_init": st.sampled_from([None, 0.3]),
        "qkv_bias": st.booleans(),
        "mask_k_bias": st.booleans(),
        "proj_bias": st.booleans(),
        "ffn_bias": st.booleans(),
        "norm_layer": st.sampled_from(["layernorm", "layernormbf16"]),
        "pos_embed_rope_dtype": st.sampled_from(["bf16", "fp32"]),
    }
)


def channel(n_rows: int = 64, n_columns: int = 64, n: int = 2, seed: int = 5) -> Tensor:
    """One-channel pixels in float64."""
    return torch.randn(n, 1, n_rows, n_columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(vit: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class and patch tokens of a module, which sees the channel as often as it has channels."""
    features = vit.forward_features(pixels.expand(-1, vit.patch_embed.proj.in_channels, -1, -1))
    cls, patches = features["x_norm_clstoken"], features["x_norm_patchtokens"]
    assert cls is not None
    assert patches is not None
    return cls, patches


def folded(vit: VisionTransformer) -> VisionTransformer:
    """A module of the folded weights, in float64."""
    state = {name: np.asarray(tensor.double()) for name, tensor in vit.state_dict().items()}
    weights = fold(Weights(state, vit.architecture, ()))
    module = weights.architecture.build("cpu").double()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.state.items()}, strict=True)
    return module.eval()


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@settings(max_examples=16)
@given(architecture=ARCHITECTURES, n_rows=st.integers(16, 60), n_columns=st.integers(16, 60))
@torch.inference_mode()
def test_any_architecture_folds_into_one_with_the_same_tokens(
    small_vit: MakeVit, architecture: dict[str, object], n_rows: int, n_columns: int
) -> None:
    vit, pixels = small_vit(**architecture), channel(n_rows, n_columns)
    for found, expected in zip(tokens(folded(vit), pixels), tokens(vit.double(), pixels), strict=True):
        assert difference(found, expected) < TOLERANCE


def test_folded_weights_have_one_channel_no_layer_scale_and_no_mask(small_vit: MakeVit) -> None:
    vit = folded(small_vit(qkv_bias=True))
    names = vit.state_dict().keys()
    assert vit.patch_embed.proj.in_channels == 1
    assert not any("gamma" in name or "bias_mask" in name for name in names)
    assert "blocks.0.attn.qkv.bias" in names


def test_a_masked_bias_becomes_the_bias_it_amounts_to(small_vit: MakeVit) -> None:
    vit = small_vit(qkv_bias=True)
    masked = vit.blocks[0].attn.qkv
    assert masked.bias.data[128:256].abs().min() > 0
    assert torch.equal(folded(vit).blocks[0].attn.qkv.bias, (masked.bias * masked.bias_mask).double())


@pytest.mark.parametrize("rope_dtype", ["bf16", "fp32"])
@torch.inference_mode()
def test_the_class_token_alone_is_that_of_the_whole_last_block(small_vit: MakeVit, rope_dtype: str) -> None:
    vit = small_vit(depth=1, pos_embed_rope_dtype=rope_dtype).double()
    x = channel().expand(-1, 3, -1, -1)
    stream, rope = vit.embed(x), vit.rope_embed(vit.patch_grid(x))
    assert difference(vit.blocks[0](stream, rope, 1), vit.blocks[0](stream, rope)[:, :1]) < TOLERANCE


def test_the_last_block_works_for_the_class_token_alone(small_vit: MakeVit) -> None:
    vit = small_vit(depth=3)
    seen: list[int] = []
    for block in vit.blocks:
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.register_forward_hook(lambda layer, given, out: seen.append(given[0].shape[1]))
    TorchEngine(vit, "cpu", "fp32").class_tokens(channel().float().numpy())
    n_tokens = 1 + 4 + 16
    assert seen == [n_tokens] * 6 + [1] * 3


@torch.inference_mode()
def test_float32_with_a_bf16_rotation_stays_with_the_plain_module(small_vit: MakeVit) -> None:
    vit, pixels = small_vit(), channel(n=8).float()
    expected_cls, expected_patches = tokens(vit, pixels)
    architecture = vit.architecture
    weights = Weights(canonical_state(vit.state_dict(), architecture), architecture, ())
    engine = TorchEngine(build_module(fold(weights)), "cpu", "fp32")
    cls, patches = engine.tokens(pixels.numpy())
    for found, expected in (
        (cls, expected_cls),
        (engine.class_tokens(pixels.numpy()), expected_cls),
        (patches.reshape(-1, 128), expected_patches.flatten(0, 1)),
    ):
        assert cosines(found, expected.numpy()).min() > 1 - 1e-6


def test_folding_leaves_the_weights_as_they_were(small_vit: MakeVit) -> None:
    vit = small_vit(qkv_bias=True)
    architecture = vit.architecture
    weights = Weights(canonical_state(vit.state_dict(), architecture), architecture, ())
    before = {name: array.copy() for name, array in weights.state.items()}
    fold(weights)
    assert before.keys() == weights.state.keys()
    assert all(np.array_equal(before[name], weights.state[name]) for name in before)


@settings(max_examples=25)
@given(changes=ARCHITECTURES)
def test_the_shapes_of_an_architecture_are_those_of_its_module(small_vit: MakeVit, changes: dict[str, object]) -> None:
    vit = small_vit(**changes)
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    assert vit.architecture.shapes() == expected
