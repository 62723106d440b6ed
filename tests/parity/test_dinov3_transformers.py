"""Our transformer against transformers' `DINOv3ViTModel`, an implementation that is not ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from meddinov3_stroke.backbone import VisionTransformer, vit_base
from meddinov3_stroke.backbone import vit as layers

TOLERANCE = 1e-5
SIZES = [(224, 224), (320, 320), (224, 320), (230, 250)]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def tokens(vit: VisionTransformer, x: Tensor) -> Tensor:
    features = vit.forward_features(x)
    named = ("x_norm_patchtokens", "x_storage_tokens", "x_norm_clstoken")
    patches, storage, cls = (features[name] for name in named)
    return torch.cat((cls[:, None], storage, patches), dim=1)


@pytest.fixture(scope="module")
def small(randomised) -> VisionTransformer:
    torch.manual_seed(1)
    vit = VisionTransformer(
        embed_dim=192,
        depth=3,
        num_heads=3,
        n_storage_tokens=4,
        qkv_bias=False,
        layerscale_init=1.0,
        pos_embed_rope_dtype="fp32",
    )
    return randomised(vit)


@pytest.fixture(scope="module")
def oracle(dinov3_with, small: VisionTransformer) -> nn.Module:
    return dinov3_with(small)


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_tokens_equal_those_of_transformers(small: VisionTransformer, oracle: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    assert relative_difference(tokens(small, x), oracle(x).last_hidden_state) <= TOLERANCE


@torch.inference_mode()
def test_a_rotation_in_the_other_direction_breaks_the_parity(
    small: VisionTransformer, oracle: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    rotate = layers.rotate_patches
    monkeypatch.setattr(layers, "rotate_patches", lambda x, sin, cos: rotate(x, -sin, cos))
    # Both q and k turned the other way still see a distance, mirrored: the difference is in the tokens.
    assert relative_difference(tokens(small, x), oracle(x).last_hidden_state) > 100 * TOLERANCE


@torch.inference_mode()
def test_a_network_without_its_blocks_is_told_apart(small: VisionTransformer, oracle: nn.Module) -> None:
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    bare = small.norm(small.embed(x))
    assert relative_difference(bare, oracle(x).last_hidden_state) > 0.1


@torch.inference_mode()
def test_masked_patches_equal_those_of_transformers(small: VisionTransformer, oracle: nn.Module) -> None:
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    masks = torch.rand(2, 24, generator=torch.Generator().manual_seed(4)) < 0.5
    expected = oracle(x, bool_masked_pos=masks).last_hidden_state[:, 5:]
    assert relative_difference(small.forward_features(x, masks)["x_norm_patchtokens"], expected) <= TOLERANCE


@torch.inference_mode()
def test_intermediate_layers_equal_those_of_transformers(small: VisionTransformer, oracle: nn.Module) -> None:
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    states = oracle(x, output_hidden_states=True).hidden_states
    for index, layer in enumerate(small.get_intermediate_layers(x, n=[0, 1, 2], norm=False)):
        assert relative_difference(layer, states[index + 1][:, 5:]) <= TOLERANCE


@torch.inference_mode()
def test_a_whole_vit_base_equals_transformers(randomised, dinov3_with) -> None:
    vit = vit_base(
        layerscale_init=1e-5, n_storage_tokens=4, qkv_bias=False, mask_k_bias=True, pos_embed_rope_dtype="fp32"
    )
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    randomised(vit)
    assert relative_difference(tokens(vit, x), dinov3_with(vit)(x).last_hidden_state) <= TOLERANCE
