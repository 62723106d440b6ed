"""The parts of a transformer block, under the names of the published state dict."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.rope import rotate_patches

Rope = tuple[Tensor, Tensor]
"""Sines and cosines of the patch grid, each [patch, head_dim]."""


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

    def forward(self, x: Float[Tensor, "n token dim"], rope: Rope) -> Float[Tensor, "n token dim"]:
        """Attended and projected tokens."""
        q, k, v = self.queries_keys_values(x, rope)
        attended = functional.scaled_dot_product_attention(q, k, v)
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

    def forward(self, x: Float[Tensor, "n token dim"], rope: Rope) -> Float[Tensor, "n token dim"]:
        """The next tokens of the stream."""
        rate = self.drop_path_rate if self.training else 0.0
        x = x + drop_path(self.ls1(self.attn(self.norm1(x), rope)), rate)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), rate)


def drop_path(residual: Float[Tensor, "n token dim"], rate: float) -> Float[Tensor, "n token dim"]:
    """`residual` with whole samples zeroed at `rate`, the others scaled to keep the mean (arXiv 1603.09382)."""
    if rate <= 0.0:
        return residual
    kept = torch.rand(residual.shape[0], 1, 1, device=residual.device) >= rate
    return residual * (kept / (1.0 - rate)).to(residual.dtype)
