"""The vision transformer of MedDINOv3 (DINOv3 family): published parameter and tensor names, own code.

Token order is CLS, storage tokens, patches (row-major). Written from the published shapes and arithmetic of
`ricklisz/MedDINOv3` (arXiv 2509.02379) and compared with transformers' `DINOv3ViTModel` by tests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.backbone.architecture import NORM_EPS, ROPE_BASE, Architecture, rope_periods, rope_tables
from meddinov3_stroke.errors import UsageError

Image = Float[Tensor, "n channel row col"]
Tokens = Float[Tensor, "n token dim"]
Heads = Float[Tensor, "n head token head_dim"]
Masks = Bool[Tensor, "n patch"]
Angles = Float[Tensor, "*n patch head_dim"]
Rope = tuple[Angles, Angles]
"""Sines and cosines of the patch grid, or [n, 1, patch, head_dim] of some patches of each slice."""

TORCH_ROPE_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Arithmetic of the rotation by its published name."""

INIT_STD = 0.02
"""Standard deviation of fresh tokens and linear weights (truncated normal, as in ViT and DINOv2)."""


def rotate_patches(x: Heads, sin: Angles, cos: Angles) -> Heads:
    """Queries or keys with the patches rotated and the prefix tokens as they are, in the dtype of `x`.

    All tokens, prefix included, pass through the dtype of `sin`; there every product and the sum is rounded by itself.
    """
    n_prefix = x.shape[-2] - sin.shape[-2]
    rounded = x.to(sin.dtype)
    prefix, patches = rounded[..., :n_prefix, :], rounded[..., n_prefix:, :]
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, rotated), dim=-2).to(x.dtype)


class RopePositionEmbedding(nn.Module):
    """Holds the periods under their published name and gives the sines and cosines of a patch grid."""

    periods: Tensor

    def __init__(self, shape: Architecture, device: str | None) -> None:
        super().__init__()
        self.rope_dtype, self.dtype = shape.rope_dtype, TORCH_ROPE_DTYPES[shape.rope_dtype]
        self.exact_periods = rope_periods(shape.embed_dim // shape.num_heads, shape.rope_base)
        self.register_buffer("periods", torch.tensor(self.exact_periods, dtype=self.dtype, device=device))

    def forward(self, grid: tuple[int, int]) -> Rope:
        """(sin, cos), each [rows*columns, head_dim] in this embedding's dtype, whatever the module was cast to."""
        is_exact = self.dtype is torch.float32  # a file's periods are rounded to bf16: 1.9e-3 in the tokens
        periods = self.exact_periods if is_exact else self.periods.float().cpu().numpy()
        tables = rope_tables(grid, periods, self.rope_dtype)
        sin, cos = (torch.tensor(table, dtype=self.dtype, device=self.periods.device) for table in tables)
        return sin, cos


class KeyMaskedLinear(nn.Linear):
    """The q|k|v projection whose key bias is held at zero by a stored mask (Meta's own hub weights)."""

    bias_mask: Tensor

    def __init__(self, dim: int, device: str | None) -> None:
        super().__init__(dim, 3 * dim, device=device)
        self.register_buffer("bias_mask", torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(dim).to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias * mask."""
        return functional.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, dim: int, init: float, device: str | None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x * gamma."""
        return x * self.gamma


class SelfAttention(nn.Module):
    """Multi-head attention over all tokens, with the patches' queries and keys rotated."""

    def __init__(self, shape: Architecture, device: str | None) -> None:
        super().__init__()
        self.num_heads, dim = shape.num_heads, shape.embed_dim
        bias, masked = shape.qkv_bias, shape.mask_k_bias
        self.qkv = KeyMaskedLinear(dim, device) if masked else nn.Linear(dim, 3 * dim, bias, device)
        self.proj = nn.Linear(dim, dim, shape.proj_bias, device)

    def forward(self, x: Tokens, rope: Rope, n_out: int | None = None) -> Float[Tensor, "n out dim"]:
        """The first `n_out` tokens (default: all), attended to all tokens and projected."""
        q, k, v = self.queries_keys_values(x, rope)
        attended = functional.scaled_dot_product_attention(q[:, :, :n_out], k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))  # [n, heads, t, d] -> [n, t, heads*d]
        return out

    def queries_keys_values(self, x: Tokens, rope: Rope) -> tuple[Heads, Heads, Heads]:
        """The patches' queries and keys are rotated."""
        parts = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [n, t, 3, heads, d] -> 3 x [n, heads, t, d]
        return rotate_patches(q, *rope), rotate_patches(k, *rope), v


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel (where LayerScale is on) and added to the stream."""

    def __init__(self, shape: Architecture, layerscale: float | None, drop: float, device: str | None) -> None:
        super().__init__()
        dim, hidden, eps = shape.embed_dim, shape.ffn_dim, NORM_EPS[shape.norm_layer]
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps, device=device) for _ in range(2))
        self.ls1, self.ls2 = (
            nn.Identity() if layerscale is None else LayerScale(dim, layerscale, device) for _ in range(2)
        )
        self.attn = SelfAttention(shape, device)
        fc1, fc2 = (nn.Linear(n, m, shape.ffn_bias, device) for n, m in ((dim, hidden), (hidden, dim)))
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(), fc2=fc2))
        self.drop_path_rate = drop

    def forward(self, x: Tokens, rope: Rope, n_out: int | None = None) -> Float[Tensor, "n out dim"]:
        """The next tokens of the stream, or the first `n_out` of them alone."""
        rate = self.drop_path_rate if self.training else 0.0
        x = x[:, :n_out] + drop_path(self.ls1(self.attn(self.norm1(x), rope, n_out)), rate)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), rate)


def drop_path(residual: Tokens, rate: float) -> Tokens:
    """`residual` with whole samples zeroed at `rate`, the others scaled to keep the mean (arXiv 1603.09382)."""
    if rate <= 0.0:
        return residual
    kept = torch.rand(residual.shape[0], 1, 1, device=residual.device) >= rate
    return residual * (kept / (1.0 - rate)).to(residual.dtype)


class VisionTransformer(nn.Module):
    """Image to tokens; the image may have any size of at least one patch, and the grid is its floor."""

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        in_chans: int = 3,
        ffn_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        mask_k_bias: bool = False,
        n_storage_tokens: int = 0,
        layerscale_init: float | None = None,
        drop_path_rate: float = 0.0,
        norm_layer: str = "layernorm",
        pos_embed_rope_base: float = ROPE_BASE,
        pos_embed_rope_dtype: str = "bf16",
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.architecture = shape = Architecture(
            embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_size=patch_size, in_chans=in_chans,
            ffn_dim=round(embed_dim * ffn_ratio), n_storage_tokens=n_storage_tokens, qkv_bias=qkv_bias,
            mask_k_bias=qkv_bias and mask_k_bias, proj_bias=proj_bias, ffn_bias=ffn_bias,
            layerscale=layerscale_init is not None, norm_layer=norm_layer,
            rope_base=pos_embed_rope_base, rope_dtype=pos_embed_rope_dtype,
        )  # fmt: skip
        if problem := shape.problem():
            raise UsageError(f"transformer: {problem}")
        self.embed_dim = self.num_features = embed_dim
        self.n_blocks, self.num_heads, self.patch_size = depth, num_heads, patch_size
        self.n_storage_tokens, self.in_chans = n_storage_tokens, in_chans
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, device=device))
        if n_storage_tokens > 0:
            self.storage_tokens = nn.Parameter(torch.empty(1, n_storage_tokens, embed_dim, device=device))
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim, device=device))
        proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, device=device)
        self.patch_embed = nn.Sequential(OrderedDict(proj=proj))
        self.rope_embed = RopePositionEmbedding(shape, device)
        self.blocks = nn.ModuleList(Block(shape, layerscale_init, drop_path_rate, device) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, NORM_EPS[norm_layer], device=device)
        self.init_weights()

    def init_weights(self) -> None:
        """Fill tokens and linear layers from torch's generator; all other parts filled themselves when made."""
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        nn.init.zeros_(self.mask_token)
        if self.n_storage_tokens > 0:
            nn.init.trunc_normal_(self.storage_tokens, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def patch_grid(self, x: Image) -> tuple[int, int]:
        """(rows, columns) of the patches of an image."""
        return x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size

    def embed(
        self, x: Image, masks: Masks | None = None, projection: Callable[[Tensor], Tensor] | None = None
    ) -> Tokens:
        """The tokens that enter the first block; `projection` of the patches may be one of other channels."""
        patches = (projection or self.patch_embed)(x).flatten(2).transpose(1, 2)  # [n, d, h, w] -> [n, h*w, d]
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token, patches)
        prefix = [self.cls_token] + ([self.storage_tokens] if self.n_storage_tokens > 0 else [])
        expanded = [token.expand(len(x), -1, -1) for token in prefix]
        # Under autocast the patches are bf16 and the prefix float32: the cat promotes, the stream stays float32.
        return torch.cat([*expanded, patches], dim=1)

    def forward_features(self, x: Image, masks: Masks | None = None) -> dict[str, Tensor | None]:
        """The tokens by name: `x_norm_clstoken` [n, d], `x_storage_tokens` [n, s, d], `x_norm_patchtokens` [n, h*w, d]
        (all after the final norm), `x_prenorm` [n, 1+s+h*w, d] (before it), and `masks` as given.
        """
        *_, tokens = self._after_blocks(x, masks)
        cls, storage, patches = self._split(self.norm(tokens))
        named = {"x_norm_clstoken": cls, "x_storage_tokens": storage, "x_norm_patchtokens": patches}
        return {**named, "x_prenorm": tokens, "masks": masks}

    def forward(
        self, x: Image, is_training: bool = False, masks: Masks | None = None
    ) -> Tensor | dict[str, Tensor | None] | None:
        """The CLS token [n, d] after the final norm; with `is_training` the dictionary of `forward_features`."""
        features = self.forward_features(x, masks)
        return features if is_training else features["x_norm_clstoken"]

    def get_intermediate_layers(
        self,
        x: Image,
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """Patch tokens after the last `n` blocks, or after the blocks listed in `n`, in block order.

        Each is [n, h*w, d], or [n, d, h, w] with `reshape`; with a `return_…` flag it is a tuple of patches, then CLS
        [n, d], then storage tokens [n, s, d]. `norm` applies the final norm. Raises UsageError for blocks that do not
        exist.
        """
        depth = self.n_blocks
        wanted = list(range(depth - n, depth)) if isinstance(n, int) else sorted(set(n))
        if not wanted or wanted[0] < 0 or wanted[-1] >= depth:
            raise UsageError(
                f"intermediate layers: found n={n!r}, expected 1 to {depth}, or blocks from 0 to {depth - 1}"
            )
        layers: list[Tensor | tuple[Tensor, ...]] = []
        for index, tokens in enumerate(self._after_blocks(x)):
            if index not in wanted:
                continue
            cls, storage, patches = self._split(self.norm(tokens) if norm else tokens)
            if reshape:
                patches = patches.mT.reshape(len(x), -1, *self.patch_grid(x))  # [n, h*w, d] -> [n, d, h, w]
            extras = ((cls,) if return_class_token else ()) + ((storage,) if return_extra_tokens else ())
            layers.append((patches, *extras) if extras else patches)
        return tuple(layers)

    def get_attention_maps(self, x: Image, block: int = -1) -> Float[Tensor, "n head token token"]:
        """Attention weights of one block (negative: from the end); rows are queries and sum to 1.

        Raises UsageError for a block that does not exist.
        """
        if not -self.n_blocks <= block < self.n_blocks:
            raise UsageError(f"attention maps: found block {block}, expected -{self.n_blocks} to {self.n_blocks - 1}")
        tokens, rope = self.prepare_tokens(x)
        blocks: list[Any] = list(self.blocks)
        for earlier in blocks[: block % self.n_blocks]:
            tokens = earlier(tokens, rope)
        q, k, _ = blocks[block].attn.queries_keys_values(blocks[block].norm1(tokens), rope)
        weights: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        return weights

    def prepare_tokens(self, x: Image, masks: Masks | None = None) -> tuple[Tokens, Rope]:
        """The tokens that enter the first block, and the sines and cosines of their grid."""
        return self.embed(x, masks), self.rope_embed(self.patch_grid(x))

    def _after_blocks(self, x: Tensor, masks: Tensor | None = None) -> Iterator[Tensor]:
        tokens, rope = self.prepare_tokens(x, masks)
        for block in self.blocks:
            tokens = block(tokens, rope)
            yield tokens

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first_patch = 1 + self.n_storage_tokens
        return tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]


def vit_base(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """A ViT-B: 12 blocks, 768 wide, 12 heads; `kwargs` are `VisionTransformer`'s, under their published names."""
    return VisionTransformer(embed_dim=768, depth=12, num_heads=12, patch_size=patch_size, ffn_ratio=4.0, **kwargs)
