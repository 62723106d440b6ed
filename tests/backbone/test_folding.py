"""The folded transformer against the plain one: each saving is algebra alone.

Compared in float64, where two orders of the same sums differ by 1e-15 and the roundings of the rotation, whichever its
dtype, fall on the same side. So a tolerance of 1e-10 leaves no room for anything that is not the same algebra.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from meddinov3_stroke.backbone import VisionTransformer
from meddinov3_stroke.backbone.fidelity import cosines
from meddinov3_stroke.backbone.folding import FoldedTransformer, plain_linear, scaled_linear
from meddinov3_stroke.backbone.layers import KeyMaskedLinear, LayerScale
from meddinov3_stroke.backbone.rope import angles_of_all_tokens, rotate_patches

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


def plain_tokens(vit: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class and patch tokens of the plain module, which sees the channel three times."""
    features = vit.forward_features(pixels.expand(-1, 3, -1, -1))
    cls, patches = features["x_norm_clstoken"], features["x_norm_patchtokens"]
    assert cls is not None
    assert patches is not None
    return cls, patches


def folded_tokens(folded: FoldedTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    return folded.class_and_patch_tokens(pixels, folded.rope_embed(folded.grid(pixels)))


def class_tokens(folded: FoldedTransformer, pixels: Tensor) -> Tensor:
    return folded.class_tokens(pixels, folded.rope_embed(folded.grid(pixels)))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def random_linear(n_in: int = 6, n_out: int = 9, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(n_in, n_out, bias=bias).double()


@settings(max_examples=16)
@given(architecture=ARCHITECTURES, n_rows=st.integers(16, 60), n_columns=st.integers(16, 60))
@torch.inference_mode()
def test_any_architecture_folds_into_one_with_the_same_tokens(
    small_vit: MakeVit, architecture: dict[str, object], n_rows: int, n_columns: int
) -> None:
    vit, pixels = small_vit(**architecture).double(), channel(n_rows, n_columns)
    expected_cls, expected_patches = plain_tokens(vit, pixels)
    folded = FoldedTransformer(vit)
    cls, patches = folded_tokens(folded, pixels)
    assert difference(cls, expected_cls) < TOLERANCE
    assert difference(patches, expected_patches) < TOLERANCE
    assert difference(class_tokens(folded, pixels), expected_cls) < TOLERANCE


@torch.inference_mode()
def test_one_channel_with_the_summed_kernel_gives_the_patches_of_three_equal_channels(small_vit: MakeVit) -> None:
    vit, pixels = small_vit(depth=0).double(), channel(50, 70)
    expected = plain_tokens(vit, pixels)[1]
    assert difference(folded_tokens(FoldedTransformer(vit), pixels)[1], expected) < TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_layer_takes_the_scale_that_follows_it_into_its_weights(bias: bool) -> None:
    layer, scale = random_linear(bias=bias), LayerScale(9, 1.0).double()
    scale.gamma.data.uniform_(-2.0, 2.0)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert difference(scaled_linear(layer, scale)(x), scale(layer(x))) < TOLERANCE


def test_a_layer_without_a_scale_stays_itself() -> None:
    layer = random_linear()
    assert scaled_linear(layer, nn.Identity()) is layer
    assert plain_linear(layer) is layer


@torch.inference_mode()
def test_a_masked_bias_becomes_the_bias_it_amounts_to() -> None:
    torch.manual_seed(2)
    masked, x = KeyMaskedLinear(6, 9).double(), torch.randn(4, 6, dtype=torch.float64)
    plain = plain_linear(masked)
    assert type(plain) is nn.Linear
    assert masked.bias.data[3:6].abs().min() > 0
    assert torch.equal(plain(x), masked(x))


@pytest.mark.parametrize("rope_dtype", ["bf16", "fp32"])
@torch.inference_mode()
def test_the_class_token_alone_is_that_of_the_whole_last_block(small_vit: MakeVit, rope_dtype: str) -> None:
    folded = FoldedTransformer(small_vit(depth=1, pos_embed_rope_dtype=rope_dtype).double())
    pixels = channel()
    assert difference(class_tokens(folded, pixels), folded_tokens(folded, pixels)[0]) < TOLERANCE


@torch.inference_mode()
def test_the_last_block_works_for_the_class_token_alone(small_vit: MakeVit) -> None:
    folded, pixels = FoldedTransformer(small_vit(depth=3).double()), channel()
    seen: list[int] = []
    for block in folded.blocks:
        for layer in (block.proj, block.fc1, block.fc2):
            layer.register_forward_hook(lambda layer, given, out: seen.append(given[0].shape[1]))
    class_tokens(folded, pixels)
    n_tokens = 1 + 4 + 16
    assert seen == [n_tokens] * 6 + [1] * 3


@torch.inference_mode()
def test_float32_with_a_bf16_rotation_stays_with_the_plain_module(small_vit: MakeVit) -> None:
    vit, pixels = small_vit(), channel(n=8).float()
    expected_cls, expected_patches = plain_tokens(vit, pixels)
    folded = FoldedTransformer(vit)
    cls, patches = folded_tokens(folded, pixels)
    for found, expected in (
        (cls, expected_cls),
        (class_tokens(folded, pixels), expected_cls),
        (patches.flatten(0, 1), expected_patches.flatten(0, 1)),
    ):
        assert cosines(found.numpy(), expected.numpy()).min() > 1 - 1e-6


@torch.inference_mode()
def test_folding_leaves_the_plain_module_as_it_was(small_vit: MakeVit) -> None:
    vit = small_vit(qkv_bias=True)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    FoldedTransformer(vit)
    after = vit.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@settings(max_examples=25)
@given(
    n_prefix=st.integers(0, 6),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dtype=st.sampled_from(["bf16", "fp32"]),
    seed=st.integers(0, 1000),
)
@torch.inference_mode()
def test_angles_that_cover_every_token_rotate_as_those_of_the_patches_do(
    small_vit: MakeVit, n_prefix: int, grid: tuple[int, int], dtype: str, seed: int
) -> None:
    rope = small_vit(depth=0, pos_embed_rope_dtype=dtype).rope_embed(grid)
    x = torch.randn(2, 2, n_prefix + grid[0] * grid[1], 64, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(rotate_patches(x, *angles_of_all_tokens(*rope, n_prefix)), rotate_patches(x, *rope))
