"""The vision transformer of MedDINOv3 (DINOv3 family): published parameter and tensor names, own code.

Tokens stand in the order CLS, storage tokens, patches (row-major). Written from the published shapes and arithmetic of
`ricklisz/MedDINOv3` (arXiv 2509.02379) and held to transformers' `DINOv3ViTModel` by tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from meddinov3_stroke.backbone.architecture import NORM_EPS, ROPE_BASE
from meddinov3_stroke.backbone.layers import Block, Mlp, PatchEmbed, Rope, RopePositionEmbedding, SelfAttention
from meddinov3_stroke.errors import UsageError

INIT_STD = 0.02
"""Standard deviation of fresh tokens and linear weights (truncated normal, as in ViT and DINOv2)."""


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
        norm_eps = _check_architecture(embed_dim, num_heads, norm_layer)
        self.embed_dim = self.num_features = embed_dim
        self.n_blocks, self.num_heads, self.patch_size = depth, num_heads, patch_size
        self.n_storage_tokens, self.pos_embed_rope_dtype = n_storage_tokens, pos_embed_rope_dtype
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, device=device))
        if n_storage_tokens > 0:
            self.storage_tokens = nn.Parameter(torch.empty(1, n_storage_tokens, embed_dim, device=device))
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim, device=device))
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, device)
        head_dim = embed_dim // num_heads
        self.rope_embed = RopePositionEmbedding(head_dim, pos_embed_rope_base, pos_embed_rope_dtype, device)

        def block() -> Block:
            attention = SelfAttention(embed_dim, num_heads, qkv_bias, proj_bias, mask_k_bias, device)
            mlp = Mlp(embed_dim, round(embed_dim * ffn_ratio), ffn_bias, device)
            return Block(embed_dim, attention, mlp, norm_eps, layerscale_init, drop_path_rate, device)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps, device=device)
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

    def patch_grid(self, x: Float[Tensor, "n channel row col"]) -> tuple[int, int]:
        """(rows, columns) of the patches of an image."""
        return x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size

    def embed(
        self, x: Float[Tensor, "n channel row col"], masks: Bool[Tensor, "n patch"] | None = None
    ) -> Float[Tensor, "n token dim"]:
        """The tokens that enter the first block."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)  # [n, d, h, w] -> [n, h*w, d]
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token, patches)
        prefix = [self.cls_token] + ([self.storage_tokens] if self.n_storage_tokens > 0 else [])
        expanded = [token.expand(len(x), -1, -1) for token in prefix]
        # Under autocast the patches are bf16 and the prefix float32: the cat promotes, the stream stays float32.
        return torch.cat([*expanded, patches], dim=1)

    def prepare_tokens(
        self, x: Float[Tensor, "n channel row col"], masks: Bool[Tensor, "n patch"] | None = None
    ) -> tuple[Float[Tensor, "n token dim"], Rope]:
        """The tokens that enter the first block, and the sines and cosines of their grid."""
        return self.embed(x, masks), self.rope_embed(self.patch_grid(x))

    def forward_features(
        self, x: Float[Tensor, "n channel row col"], masks: Bool[Tensor, "n patch"] | None = None
    ) -> dict[str, Tensor | None]:
        """The tokens by name: `x_norm_clstoken` [n, d], `x_storage_tokens` [n, s, d], `x_norm_patchtokens` [n, h*w, d]
        (all after the final norm), `x_prenorm` [n, 1+s+h*w, d] (before it), and `masks` as given.
        """
        tokens, rope = self.prepare_tokens(x, masks)
        for block in self.blocks:
            tokens = block(tokens, rope)
        normed = self.norm(tokens)
        cls, storage, patches = self._split(normed)
        return {
            "x_norm_clstoken": cls,
            "x_storage_tokens": storage,
            "x_norm_patchtokens": patches,
            "x_prenorm": tokens,
            "masks": masks,
        }

    def forward(
        self,
        x: Float[Tensor, "n channel row col"],
        is_training: bool = False,
        masks: Bool[Tensor, "n patch"] | None = None,
    ) -> Tensor | dict[str, Tensor | None]:
        """The CLS token [n, d] after the final norm; with `is_training` the dictionary of `forward_features`."""
        features = self.forward_features(x, masks)
        return features if is_training else _present(features["x_norm_clstoken"])

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "n channel row col"],
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """Patch tokens after the last `n` blocks, or after the blocks listed in `n`, in block order.

        Each is [n, h*w, d], or [n, d, h, w] with `reshape`; with a `return_…` flag it is a tuple of patches, then CLS
        [n, d], then storage tokens [n, s, d]. `norm` applies the final norm.

        Raises:
            UsageError: `n` names blocks that are not there.
        """
        wanted = _block_indices(n, self.n_blocks)
        grid = self.patch_grid(x)
        layers: list[Tensor | tuple[Tensor, ...]] = []
        for tokens in self._after_blocks(x, wanted):
            cls, storage, patches = self._split(self.norm(tokens) if norm else tokens)
            if reshape:
                patches = patches.transpose(1, 2).reshape(len(x), -1, *grid)  # [n, h*w, d] -> [n, d, h, w]
            extras = ((cls,) if return_class_token else ()) + ((storage,) if return_extra_tokens else ())
            layers.append((patches, *extras) if extras else patches)
        return tuple(layers)

    def get_attention_maps(
        self, x: Float[Tensor, "n channel row col"], block: int = -1
    ) -> Float[Tensor, "n head token token"]:
        """Attention weights of one block (negative counts from the end); rows are queries and sum to 1.

        Raises:
            UsageError: there is no such block.
        """
        if not -self.n_blocks <= block < self.n_blocks:
            raise UsageError(f"attention maps: found block {block}, expected -{self.n_blocks} to {self.n_blocks - 1}")
        tokens, rope = self.prepare_tokens(x)
        blocks: list[Any] = list(self.blocks)
        for earlier in blocks[: block % self.n_blocks]:
            tokens = earlier(tokens, rope)
        weights: Tensor = blocks[block].attn.weights(blocks[block].norm1(tokens), rope)
        return weights

    def _after_blocks(self, x: Tensor, wanted: Sequence[int]) -> Iterator[Tensor]:
        tokens, rope = self.prepare_tokens(x)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, rope)
            if index in wanted:
                yield tokens

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first_patch = 1 + self.n_storage_tokens
        return tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]


def vit_base(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """A ViT-B: 12 blocks, 768 wide, 12 heads; `kwargs` are `VisionTransformer`'s, under their published names."""
    return VisionTransformer(embed_dim=768, depth=12, num_heads=12, patch_size=patch_size, ffn_ratio=4.0, **kwargs)


def _check_architecture(embed_dim: int, num_heads: int, norm_layer: str) -> float:
    if embed_dim % num_heads:
        raise UsageError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}; change one of them")
    if norm_layer not in NORM_EPS:
        raise UsageError(f"norm_layer: found {norm_layer!r}, expected one of {', '.join(NORM_EPS)}")
    return NORM_EPS[norm_layer]


def _block_indices(n: int | Sequence[int], depth: int) -> list[int]:
    wanted = list(range(depth - n, depth)) if isinstance(n, int) else sorted(set(n))
    if not wanted or wanted[0] < 0 or wanted[-1] >= depth:
        raise UsageError(f"intermediate layers: found n={n!r}, expected 1 to {depth}, or blocks from 0 to {depth - 1}")
    return wanted


def _present(value: Tensor | None) -> Tensor:
    assert value is not None  # forward_features always fills it
    return value
