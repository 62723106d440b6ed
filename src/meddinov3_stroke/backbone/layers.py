"""The parts of a transformer block in torch, under the names of the published state dict."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.architecture import ROPE_BASE
from meddinov3_stroke.errors import UsageError

Rope = tuple[Tensor, Tensor]
"""Sines and cosines of the patch grid, each [patch, head_dim]."""

TORCH_ROPE_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Arithmetic of the rotation by its published name."""


def rope_periods(
    head_dim: int, base: float = ROPE_BASE, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " period"]:
    """The head_dim/4 periods of the angles, computed in float32 and rounded once to `dtype`."""
    exponents = torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4)
    return (base**exponents).to(dtype)


def patch_coordinates(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " n"]:
    """Centres of `n` patches along one axis in (-1, 1); each of the three operations is rounded to `dtype`."""
    centres = torch.arange(0.5, n, dtype=dtype, device=device)
    return centres / n * 2.0 - 1.0


def rope_angles(
    grid: tuple[int, int], periods: Float[Tensor, " period"], dtype: torch.dtype
) -> Float[Tensor, "patch head_dim"]:
    """Angles of every patch, row-major: row angles, then column angles, and that block twice; all in `dtype`."""
    periods = periods.to(dtype)
    rows, columns = (patch_coordinates(n, dtype, periods.device) for n in grid)
    # The order of the roundings matters: 2*pi*(c/period) differs by 1.7e-3 in the tokens.
    row_angles = (2.0 * math.pi * rows)[:, None] / periods
    column_angles = (2.0 * math.pi * columns)[:, None] / periods
    n_rows, n_columns = grid
    by_row = row_angles[:, None, :].expand(n_rows, n_columns, -1)
    by_column = column_angles[None, :, :].expand(n_rows, n_columns, -1)
    block = torch.cat((by_row, by_column), dim=-1).flatten(0, 1)  # [h, w, d/2] -> [h*w, d/2]
    return block.repeat(1, 2)


def rotate_half(x: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
    """[-x2, x1] of the two halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_patches(
    x: Float[Tensor, "n head token head_dim"],
    sin: Float[Tensor, "patch head_dim"],
    cos: Float[Tensor, "patch head_dim"],
) -> Float[Tensor, "n head token head_dim"]:
    """Queries or keys with the patches rotated and the prefix tokens as they are, in the dtype of `x`.

    All tokens, prefix included, pass through the dtype of `sin`; there every product and the sum is rounded by itself.
    """
    n_prefix = x.shape[-2] - sin.shape[-2]
    rounded = x.to(sin.dtype)
    prefix, patches = rounded[..., :n_prefix, :], rounded[..., n_prefix:, :]
    rotated = patches * cos + rotate_half(patches) * sin
    return torch.cat((prefix, rotated), dim=-2).to(x.dtype)


class RopePositionEmbedding(nn.Module):
    """Holds the periods under their published name and gives the sines and cosines of a patch grid."""

    periods: Tensor

    def __init__(self, head_dim: int, base: float = ROPE_BASE, dtype: str = "bf16", device: str | None = None) -> None:
        super().__init__()
        if dtype not in TORCH_ROPE_DTYPES:
            raise UsageError(f"RoPE dtype: found {dtype!r}, expected one of {', '.join(TORCH_ROPE_DTYPES)}")
        if head_dim % 4:
            raise UsageError(f"RoPE: found heads of {head_dim}, expected a multiple of 4; change num_heads")
        self.head_dim, self.base, self.dtype = head_dim, base, TORCH_ROPE_DTYPES[dtype]
        self.register_buffer("periods", rope_periods(head_dim, base, self.dtype).to(device))

    def forward(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(sin, cos), each [rows*columns, head_dim] in this embedding's dtype, whatever the module was cast to."""
        periods = self.periods
        if self.dtype is torch.float32:  # a file's periods are rounded to bf16: 1.9e-3 in the tokens
            periods = rope_periods(self.head_dim, self.base).to(periods.device)
        angles = rope_angles(grid, periods, self.dtype)
        return angles.sin(), angles.cos()


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to one token; pixels that fill no whole patch are left out."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, device: str | None = None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, device=device)

    def forward(self, x: Float[Tensor, "n channel row col"]) -> Float[Tensor, "n dim h w"]:
        """Patch tokens on their grid."""
        out: Tensor = self.proj(x)
        return out


class KeyMaskedLinear(nn.Linear):
    """The q|k|v projection whose key bias is held at zero by a stored mask (Meta's own hub weights)."""

    bias_mask: Tensor

    def __init__(self, in_features: int, out_features: int, device: str | None = None) -> None:
        super().__init__(in_features, out_features, device=device)
        third = out_features // 3
        mask = torch.ones(out_features)
        mask[third : 2 * third] = 0.0
        self.register_buffer("bias_mask", mask.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias * mask."""
        return functional.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, dim: int, init: float, device: str | None = None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x * gamma."""
        return x * self.gamma


def _layer_scale(dim: int, init: float | None, device: str | None) -> nn.Module:
    return nn.Identity() if init is None else LayerScale(dim, init, device)


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True, device: str | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias, device=device)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Token-wise; the shape stays."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention over all tokens, with the patches' queries and keys rotated."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        mask_k_bias: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        masked = qkv_bias and mask_k_bias  # without a bias there is nothing to mask
        self.qkv: nn.Linear = (
            KeyMaskedLinear(dim, 3 * dim, device=device)
            if masked
            else nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device)
        )
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device)

    def queries_keys_values(self, x: Float[Tensor, "n token dim"], rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (rotated) and v, each [n, head, token, head_dim]."""
        n, n_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, n_tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [n, t, 3, heads, d] -> 3 x [n, heads, t, d]
        return rotate_patches(q, *rope), rotate_patches(k, *rope), v

    def weights(self, x: Float[Tensor, "n token dim"], rope: Rope) -> Float[Tensor, "n head token token"]:
        """Attention weights: rows are queries and sum to 1."""
        q, k, _ = self.queries_keys_values(x, rope)
        scale = float(q.shape[-1]) ** -0.5
        weights: Tensor = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        return weights

    def forward(
        self, x: Float[Tensor, "n token dim"], rope: Rope, n_out: int | None = None
    ) -> Float[Tensor, "n out dim"]:
        """The first `n_out` tokens (default: all), attended to all tokens and projected."""
        q, k, v = self.queries_keys_values(x, rope)
        attended = functional.scaled_dot_product_attention(q[:, :, :n_out], k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))  # [n, heads, t, d] -> [n, t, heads*d]
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel (where LayerScale is on) and added to the stream."""

    def __init__(
        self,
        dim: int,
        attention: SelfAttention,
        mlp: Mlp,
        norm_eps: float,
        layerscale_init: float | None = None,
        drop_path_rate: float = 0.0,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, device=device)
        self.attn = attention
        self.ls1 = _layer_scale(dim, layerscale_init, device)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, device=device)
        self.mlp = mlp
        self.ls2 = _layer_scale(dim, layerscale_init, device)
        self.drop_path_rate = drop_path_rate

    def forward(
        self, x: Float[Tensor, "n token dim"], rope: Rope, n_out: int | None = None
    ) -> Float[Tensor, "n out dim"]:
        """The next tokens of the stream, or the first `n_out` of them alone."""
        rate = self.drop_path_rate if self.training else 0.0
        x = x[:, :n_out] + drop_path(self.ls1(self.attn(self.norm1(x), rope, n_out)), rate)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), rate)


def drop_path(residual: Float[Tensor, "n token dim"], rate: float) -> Float[Tensor, "n token dim"]:
    """`residual` with whole samples zeroed at `rate`, the others scaled to keep the mean (arXiv 1603.09382)."""
    if rate <= 0.0:
        return residual
    kept = torch.rand(residual.shape[0], 1, 1, device=residual.device) >= rate
    return residual * (kept / (1.0 - rate)).to(residual.dtype)
