"""The transformer's names, shapes and outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meddinov3_stroke.backbone import VisionTransformer, vit_base
from meddinov3_stroke.backbone.vit import drop_path
from meddinov3_stroke.errors import UsageError

MakeVit = Callable[..., VisionTransformer]

PUBLISHED_BLOCK = {
    "norm1.weight": (768,),
    "norm1.bias": (768,),
    "attn.qkv.weight": (2304, 768),
    "attn.proj.weight": (768, 768),
    "attn.proj.bias": (768,),
    "ls1.gamma": (768,),
    "norm2.weight": (768,),
    "norm2.bias": (768,),
    "mlp.fc1.weight": (3072, 768),
    "mlp.fc1.bias": (3072,),
    "mlp.fc2.weight": (768, 3072),
    "mlp.fc2.bias": (768,),
    "ls2.gamma": (768,),
}
PUBLISHED = {
    "cls_token": (1, 1, 768),
    "storage_tokens": (1, 4, 768),
    "mask_token": (1, 768),
    "patch_embed.proj.weight": (768, 3, 16, 16),
    "patch_embed.proj.bias": (768,),
    "rope_embed.periods": (16,),
    "norm.weight": (768,),
    "norm.bias": (768,),
} | {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in PUBLISHED_BLOCK.items()}


def image(*size: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(3))


def test_the_state_dict_has_the_164_published_names_and_shapes() -> None:
    vit = vit_base(
        drop_path_rate=0.2, layerscale_init=1e-5, n_storage_tokens=4, qkv_bias=False, mask_k_bias=True, device="meta"
    )
    state = vit.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == PUBLISHED
    assert len(state) == 164
    assert round(sum(p.numel() for p in vit.parameters()) / 1e6, 2) == 85.64


def test_periods_are_the_published_powers_rounded_once_to_bf16(small_vit: MakeVit) -> None:
    expected = torch.tensor([100.0 ** (2 * k / 32) for k in range(16)], dtype=torch.float64)
    periods = small_vit(pos_embed_rope_dtype="fp32").rope_embed.periods
    torch.testing.assert_close(periods.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(vit_base().rope_embed.periods, expected.float().to(torch.bfloat16))


@pytest.mark.parametrize("size", [(16, 16), (224, 224), (230, 250), (48, 96)], ids=str)
@torch.inference_mode()
def test_the_grid_is_the_floor_of_size_over_patch(small_vit: MakeVit, size: tuple[int, int]) -> None:
    features = small_vit().forward_features(image(*size))
    n_patches = (size[0] // 16) * (size[1] // 16)
    assert features["x_norm_clstoken"].shape == (2, 128)
    assert features["x_storage_tokens"].shape == (2, 4, 128)
    assert features["x_norm_patchtokens"].shape == (2, n_patches, 128)
    assert features["x_prenorm"].shape == (2, 5 + n_patches, 128)
    assert features["masks"] is None


@torch.inference_mode()
def test_the_named_tokens_are_the_normed_prenorm_tokens_in_order(small_vit: MakeVit) -> None:
    vit = small_vit()
    features = vit.forward_features(image(64, 96))
    normed = functional.layer_norm(features["x_prenorm"], (128,), vit.norm.weight, vit.norm.bias, 1e-6)
    named = [features["x_norm_clstoken"][:, None], features["x_storage_tokens"], features["x_norm_patchtokens"]]
    torch.testing.assert_close(torch.cat(named, dim=1), normed)


@torch.inference_mode()
def test_forward_gives_the_class_token_and_the_dictionary_when_training(small_vit: MakeVit) -> None:
    vit = small_vit()
    x = image(64, 64)
    features = vit(x, is_training=True)
    assert torch.equal(vit(x), features["x_norm_clstoken"])
    assert set(features) == {"x_norm_clstoken", "x_storage_tokens", "x_norm_patchtokens", "x_prenorm", "masks"}


@torch.inference_mode()
def test_the_last_intermediate_layer_is_the_patch_tokens(small_vit: MakeVit) -> None:
    vit = small_vit(depth=3)
    x = image(64, 96)
    features = vit.forward_features(x)
    ((patches, cls, storage),) = vit.get_intermediate_layers(x, return_class_token=True, return_extra_tokens=True)
    assert torch.equal(patches, features["x_norm_patchtokens"])
    assert torch.equal(cls, features["x_norm_clstoken"])
    assert torch.equal(storage, features["x_storage_tokens"])


@torch.inference_mode()
def test_intermediate_layers_come_in_block_order_and_on_their_grid(small_vit: MakeVit) -> None:
    vit = small_vit(depth=3)
    x = image(64, 96)
    flat = vit.get_intermediate_layers(x, n=[2, 0])
    maps = vit.get_intermediate_layers(x, n=[0, 2], reshape=True)
    assert [layer.shape for layer in maps] == [(2, 128, 4, 6)] * 2
    for tokens, grid in zip(flat, maps, strict=True):
        assert torch.equal(tokens[:, 1 * 6 + 5], grid[:, :, 1, 5])
    assert torch.equal(flat[1], vit.get_intermediate_layers(x, n=1)[0])
    assert len(vit.get_intermediate_layers(x, n=3)) == 3


@pytest.mark.parametrize("n", [0, 4, [3], [-1], []])
def test_blocks_that_are_not_there_are_refused(small_vit: MakeVit, n: int | list[int]) -> None:
    with pytest.raises(UsageError, match="blocks from 0 to 2"):
        small_vit(depth=3).get_intermediate_layers(image(32, 32), n=n)


@pytest.mark.parametrize("block", [0, 1, -1])
@torch.inference_mode()
def test_attention_maps_are_what_the_fused_attention_applies(small_vit: MakeVit, block: int) -> None:
    vit = small_vit()
    x = image(64, 96)
    weights = vit.get_attention_maps(x, block=block)
    tokens, rope = vit.prepare_tokens(x)
    for earlier in vit.blocks[: block % 2]:
        tokens = earlier(tokens, rope)
    attention, normed = vit.blocks[block].attn, vit.blocks[block].norm1(tokens)
    values = attention.queries_keys_values(normed, rope)[2]
    applied = attention.proj((weights @ values).transpose(1, 2).flatten(2))
    assert weights.shape == (2, 2, 29, 29)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 29))
    torch.testing.assert_close(applied, attention(normed, rope), rtol=1e-4, atol=1e-5)


def test_attention_maps_of_no_block_are_refused(small_vit: MakeVit) -> None:
    with pytest.raises(UsageError, match="found block 2, expected -2 to 1"):
        small_vit().get_attention_maps(image(32, 32), block=2)


@pytest.mark.parametrize("rope_dtype", ["bf16", "fp32"])
def test_every_parameter_but_the_mask_token_learns(small_vit: MakeVit, rope_dtype: str) -> None:
    vit = small_vit(pos_embed_rope_dtype=rope_dtype).train()
    vit.forward_features(image(64, 64))["x_prenorm"].square().sum().backward()
    idle = {name for name, p in vit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == {"mask_token", "norm.weight", "norm.bias"}


@torch.inference_mode()
def test_a_cast_of_the_module_leaves_the_rotation_as_it_is(small_vit: MakeVit) -> None:
    vit = small_vit()
    before = vit.rope_embed((5, 7))
    after = vit.double().float().rope_embed((5, 7))
    assert vit.rope_embed.periods.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@torch.inference_mode()
def test_fp32_rotation_ignores_periods_that_were_rounded(small_vit: MakeVit) -> None:
    vit = small_vit(pos_embed_rope_dtype="fp32")
    before = vit.rope_embed((5, 7))
    rounded = vit.rope_embed.periods.to(torch.bfloat16).float()
    vit.load_state_dict({"rope_embed.periods": rounded}, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(before, vit.rope_embed((5, 7)), strict=True))


@torch.inference_mode()
def test_a_masked_patch_does_not_see_its_pixels(small_vit: MakeVit) -> None:
    vit = small_vit()
    vit.mask_token.data.fill_(0.5)
    masks = torch.zeros(2, 4, dtype=torch.bool)
    masks[:, 2] = True
    x = image(32, 32)
    changed = x.clone()
    changed[:, :, 16:, :16] = 9.0
    masked = [vit.forward_features(each, masks)["x_prenorm"] for each in (x, changed)]
    assert torch.equal(*masked)
    assert not torch.equal(masked[0], vit.forward_features(x)["x_prenorm"])


@torch.inference_mode()
def test_a_masked_key_bias_has_no_effect_and_the_others_have(small_vit: MakeVit) -> None:
    vit = small_vit(qkv_bias=True, mask_k_bias=True)
    x = image(32, 32)
    before = vit(x)
    vit.blocks[0].attn.qkv.bias.data[128:256] += 5.0
    assert torch.equal(vit(x), before)
    vit.blocks[0].attn.qkv.bias.data[256:] += 5.0
    assert not torch.equal(vit(x), before)


def test_the_same_seed_initialises_the_same_weights_and_none_is_left_unset() -> None:
    def fresh() -> dict[str, Tensor]:
        torch.manual_seed(11)
        return VisionTransformer(
            embed_dim=64, depth=1, num_heads=1, n_storage_tokens=2, layerscale_init=0.1
        ).state_dict()

    first, second = fresh(), fresh()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.abs().max() < 1.01 for name, tensor in first.items() if name != "rope_embed.periods")
    assert 0.015 < first["blocks.0.mlp.fc1.weight"].std() < 0.025


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3), 0.2)
    assert set(dropped[:, 0, 0].tolist()) == {0.0, 1.25}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert abs(float(dropped.mean()) - 1.0) < 0.03


@torch.inference_mode()
def test_drop_path_is_silent_outside_training(small_vit: MakeVit) -> None:
    x = image(32, 32)
    assert torch.equal(small_vit(drop_path_rate=0.9)(x), small_vit()(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "do not divide into 3 heads"),
        ({"norm_layer": "rmsnorm"}, "expected one of layernorm, layernormbf16"),
        ({"pos_embed_rope_dtype": "fp16"}, "expected one of bf16, fp32"),
        ({"num_heads": 64}, "width divisible by 4"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VisionTransformer(**({"embed_dim": 128, "depth": 1, "num_heads": 2} | changes))
