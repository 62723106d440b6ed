"""The same transformer with less to do: savings that are algebra alone, each held equal to the plain module by a test.

- The three input channels are equal, so one channel with the summed kernel gives the same tokens.
- LayerScale multiplies the output of a linear layer, so it goes into that layer's weights.
- A masked q|k|v bias is a plain bias once it is masked.
- Where only the class token is wanted, the last block needs its query, projection and MLP for that token alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.layers import KeyMaskedLinear, LayerScale, Rope
from meddinov3_stroke.backbone.rope import rotate_patches
from meddinov3_stroke.backbone.vit import VisionTransformer


class FoldedBlock(nn.Module):
    """A transformer block whose LayerScale is in the weights of its projections."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.num_heads: int = block.attn.num_heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = plain_linear(block.attn.qkv)
        self.proj = scaled_linear(block.attn.proj, block.ls1)
        self.fc1 = block.mlp.fc1
        self.fc2 = scaled_linear(block.mlp.fc2, block.ls2)

    def forward(self, x: Float[Tensor, "n token dim"], rope: Rope) -> Float[Tensor, "n token dim"]:
        """The next tokens of the stream."""
        q, k, v = self._split_heads(self.qkv(self.norm1(x)), 3)
        x = x + self._attend(rotate_patches(q, *rope), rotate_patches(k, *rope), v)
        return x + self._mlp(x)

    def class_token(self, x: Float[Tensor, "n token dim"], rope: Rope) -> Float[Tensor, "n 1 dim"]:
        """The class token alone of `forward`; keys and values are still needed of every token."""
        normed, dim = self.norm1(x), x.shape[-1]
        (q,) = self._split_heads(self._part(normed[:, :1], slice(None, dim)), 1)
        k, v = self._split_heads(self._part(normed, slice(dim, None)), 2)
        q = q.to(rope[0].dtype).to(q.dtype)  # the class token is not rotated, but passes through the rotation's dtype
        cls = x[:, :1] + self._attend(q, rotate_patches(k, *rope), v)
        return cls + self._mlp(cls)

    def _part(self, x: Tensor, rows: slice) -> Tensor:
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        return functional.linear(x, self.qkv.weight[rows], bias)

    def _split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        n, n_tokens, _ = x.shape
        # [n, t, parts*heads*d] -> parts x [n, heads, t, d]
        return x.reshape(n, n_tokens, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))  # [n, heads, t, d] -> [n, t, heads*d]
        return out

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return out


class FoldedTransformer(nn.Module):
    """One-channel pixels to tokens after the final norm; holds the folded weights of a `VisionTransformer`.

    `rope` is the sines and cosines of the patch grid as `RopePositionEmbedding` gives them.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.patch_size, self.rope_embed = vit.patch_size, vit.rope_embed
        prefix = [vit.cls_token] + ([vit.storage_tokens] if vit.n_storage_tokens > 0 else [])
        self.prefix = frozen(torch.cat(list(prefix), dim=1))
        projection = vit.patch_embed.proj
        self.patch_weight = frozen(projection.weight.sum(dim=1).flatten(1))  # [dim, 3, p, p] -> [dim, p*p]
        self.patch_bias = None if projection.bias is None else frozen(projection.bias)
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in vit.blocks)
        self.norm = vit.norm

    def class_tokens(self, pixels: Float[Tensor, "n 1 row col"], rope: Rope) -> Float[Tensor, "n dim"]:
        """The class token of each slice."""
        tokens = self._embed(pixels)
        *earlier, last = self._blocks()
        for block in earlier:
            tokens = block(tokens, rope)
        cls: Tensor = self.norm(last.class_token(tokens, rope))
        return cls[:, 0]

    def class_and_patch_tokens(
        self, pixels: Float[Tensor, "n 1 row col"], rope: Rope
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n patch dim"]]:
        """The class token and the patch tokens, row-major, of each slice."""
        tokens = self._embed(pixels)
        for block in self._blocks():
            tokens = block(tokens, rope)
        normed = self.norm(tokens)
        return normed[:, 0], normed[:, self.prefix.shape[1] :]

    def grid(self, pixels: Float[Tensor, "n 1 row col"]) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def _embed(self, pixels: Tensor) -> Tensor:
        """Prefix and patch tokens; the patches are cut by reshaping, so that their projection is one matrix product."""
        (h, w), p, n = self.grid(pixels), self.patch_size, pixels.shape[0]
        cut = pixels[:, 0, : h * p, : w * p].reshape(n, h, p, w, p)
        patches = cut.transpose(2, 3).reshape(n, h * w, p * p)  # [n, h, p, w, p] -> [n, h*w, p*p]
        projected = functional.linear(patches, self.patch_weight, self.patch_bias)
        # Under autocast the patches are bf16 and the prefix float32: the cat promotes, the stream stays float32.
        return torch.cat([self.prefix.expand(n, -1, -1), projected], dim=1)

    def _blocks(self) -> Iterable[Any]:
        return list(self.blocks)


def plain_linear(layer: nn.Linear) -> nn.Linear:
    """The layer, a masked bias replaced by the bias it amounts to."""
    if not isinstance(layer, KeyMaskedLinear):
        return layer
    return linear_of(layer.weight, layer.bias * layer.bias_mask.to(layer.bias.dtype))


def scaled_linear(layer: nn.Linear, scale: nn.Module) -> nn.Linear:
    """The layer followed by a `LayerScale`, as one layer; the layer itself where there is no scale."""
    if not isinstance(scale, LayerScale):
        return layer
    bias = None if layer.bias is None else layer.bias * scale.gamma
    return linear_of(layer.weight * scale.gamma[:, None], bias)


def linear_of(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> nn.Linear:
    """A frozen linear layer that holds exactly these tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = frozen(weight)
    if bias is not None:
        layer.bias = frozen(bias)
    return layer


def frozen(tensor: Tensor) -> nn.Parameter:
    """The tensor as a parameter that is not trained."""
    return nn.Parameter(tensor.detach(), requires_grad=False)
