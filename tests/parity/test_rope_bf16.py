"""The bf16 rotation against a reference that spells out every rounding, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meddinov3_stroke.backbone import VisionTransformer
from meddinov3_stroke.backbone import vit as layers

TOLERANCE = 1e-6
HEAD_DIM = 64
N_PREFIX = 5


def bf16(value: Tensor) -> Tensor:
    """Float32 values rounded to the nearest bf16: one rounding of one operation."""
    return value.float().to(torch.bfloat16).float()


def literal_angles(n_rows: int, n_columns: int, periods: Tensor) -> Tensor:
    """t = 2 pi c / period of each patch, each operation rounded by itself."""
    angles = torch.empty(n_rows * n_columns, HEAD_DIM)
    for i in range(n_rows):
        for j in range(n_columns):
            block = []
            for position, n in ((i, n_rows), (j, n_columns)):
                c = bf16(torch.tensor(position + 0.5))
                c = bf16(c / n)
                c = bf16(bf16(2.0 * c) - 1.0)
                t = bf16(2.0 * math.pi * c)
                block.append(bf16(t / periods.float()))
            angles[i * n_columns + j] = torch.cat((*block, *block))
    return angles


def literal_rotation(x: Tensor, angles: Tensor) -> Tensor:
    """Queries or keys [head, token, 64]: all rounded; the patches turned, two products and a sum, each rounded."""
    out = bf16(x)
    cos, sin = bf16(angles.cos()), bf16(angles.sin())
    for k in range(len(angles)):
        row = out[:, N_PREFIX + k].clone()
        half = torch.cat((-row[:, 32:], row[:, :32]), dim=-1)
        out[:, N_PREFIX + k] = bf16(bf16(row * cos[k]) + bf16(half * sin[k]))
    return out


def literal_tokens(vit: VisionTransformer, x: Tensor) -> Tensor:
    """All tokens of one image after the final norm, from the state dict alone.

    Float32 products use torch's own functions: a sum in another order would flip roundings of q and k, and the claim is
    about the rotation.
    """
    w = vit.state_dict()
    dim, heads = w["norm.weight"].numel(), w["norm.weight"].numel() // HEAD_DIM
    patches = functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    angles = literal_angles(patches.shape[2], patches.shape[3], w["rope_embed.periods"])
    x = torch.cat((w["cls_token"], w["storage_tokens"], patches.flatten(2).transpose(1, 2)), dim=1)
    for i in range(vit.n_blocks):
        p = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        y = functional.layer_norm(x, (dim,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        q, k, v = functional.linear(y, p["attn.qkv.weight"]).unflatten(-1, (3, heads, HEAD_DIM)).unbind(2)
        q, k = (literal_rotation(part[0].transpose(0, 1), angles)[None] for part in (q, k))
        attended = functional.scaled_dot_product_attention(q, k, v.transpose(1, 2)).transpose(1, 2).flatten(2)
        x = x + p["ls1.gamma"] * functional.linear(attended, p["attn.proj.weight"], p["attn.proj.bias"])
        y = functional.layer_norm(x, (dim,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        hidden = functional.gelu(functional.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + p["ls2.gamma"] * functional.linear(hidden, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return functional.layer_norm(x, (dim,), w["norm.weight"], w["norm.bias"], 1e-6)


@pytest.fixture(scope="module")
def vit(randomised) -> VisionTransformer:
    torch.manual_seed(2)
    vit = randomised(
        VisionTransformer(embed_dim=128, depth=2, num_heads=2, n_storage_tokens=4, qkv_bias=False, layerscale_init=1.0)
    )
    for block in vit.blocks:  # queries and keys as large as a ViT-B's: attention that is nearly flat hides the rotation
        block.attn.qkv.weight.data *= math.sqrt(768 / 128)
    return vit


def difference(vit: VisionTransformer, x: Tensor) -> float:
    found = vit.norm(vit.forward_features(x)["x_prenorm"])
    expected = literal_tokens(vit, x)
    return float((found - expected).abs().max() / expected.abs().max())


def image(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(224, 224), (320, 320), (224, 320), (230, 250)], ids=str)
@torch.inference_mode()
def test_tokens_equal_the_reference_with_every_rounding_spelt_out(
    vit: VisionTransformer, size: tuple[int, int]
) -> None:
    assert difference(vit, image(*size)) <= TOLERANCE


@pytest.mark.parametrize("reading", ["other sign", "fused rotation", "prefix in fp32", "2 pi (c / period)", "fp32"])
@torch.inference_mode()
def test_another_reading_of_the_rotation_is_told_apart(
    vit: VisionTransformer, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    misread(monkeypatch, reading)
    assert difference(vit, image(224, 224)) > 100 * TOLERANCE


def misread(monkeypatch: pytest.MonkeyPatch, reading: str) -> None:
    """Put a wrong rotation in the place of ours."""
    right, right_tables = layers.rotate_patches, layers.rope_tables

    def fused(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return right(x.to(torch.bfloat16).float(), sin.float(), cos.float()).to(torch.bfloat16).float()

    def prefix_in_fp32(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return torch.cat((x[..., :N_PREFIX, :], right(x[..., N_PREFIX:, :], sin, cos)), dim=-2)

    def other_tables(grid: tuple[int, int], periods: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        bf16_periods = torch.from_numpy(periods).to(torch.bfloat16)
        rows, columns = (
            (torch.arange(0.5, n, dtype=torch.bfloat16) / n * 2.0 - 1.0)[:, None] / bf16_periods for n in grid
        )
        by_row, by_column = rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)
        angles = (2.0 * math.pi * torch.cat((by_row, by_column), dim=1)).repeat(1, 2)
        return angles.sin().float().numpy(), angles.cos().float().numpy()

    def float_tables(grid: tuple[int, int], periods: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        return right_tables(grid, periods, "fp32")

    rotations = {
        "other sign": lambda x, sin, cos: right(x, -sin, cos),
        "fused rotation": fused,
        "prefix in fp32": prefix_in_fp32,
    }
    if reading in rotations:
        monkeypatch.setattr(layers, "rotate_patches", rotations[reading])
    else:
        monkeypatch.setattr(layers, "rope_tables", other_tables if reading.startswith("2") else float_tables)


@pytest.mark.parametrize("size", [(224, 224), (320, 320), (224, 320), (230, 250)], ids=str)
@torch.inference_mode()
def test_every_angle_is_rounded_as_spelt_out(vit: VisionTransformer, size: tuple[int, int]) -> None:
    grid = (size[0] // 16, size[1] // 16)
    sin, cos = vit.rope_embed(grid)
    angles = literal_angles(*grid, vit.rope_embed.periods)
    assert torch.equal(sin.float(), bf16(angles.sin()))
    assert torch.equal(cos.float(), bf16(angles.cos()))


@pytest.mark.parametrize("seed", [0, 1])
@torch.inference_mode()
def test_rotated_queries_are_those_spelt_out(vit: VisionTransformer, seed: int) -> None:
    q = torch.randn(1, 2, N_PREFIX + 15, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    rotated = layers.rotate_patches(q, *vit.rope_embed((3, 5)))
    assert rotated.dtype == torch.float32
    assert torch.equal(rotated[0], literal_rotation(q[0], literal_angles(3, 5, vit.rope_embed.periods)))
