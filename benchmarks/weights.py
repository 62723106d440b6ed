"""Random weights under which every part of the transformer matters, as the published file and as transformers' model.

With the published start of LayerScale, 1e-5, a net without blocks would pass every comparison of class tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddinov3_stroke.backbone import build_module, load_weights
from meddinov3_stroke.backbone.vit import VisionTransformer, vit_base

PUBLISHED: dict[str, Any] = {
    "layerscale_init": 1e-5,
    "n_storage_tokens": 4,
    "qkv_bias": False,
    "mask_k_bias": True,
}
"""How MedDINOv3's ViT-B/16 is built."""

SMALL: dict[str, Any] = {"embed_dim": 128, "depth": 3, "num_heads": 2}
"""The transformer of quick runs."""

SAME_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
"""Layers of a block, in the published file and in transformers."""


def write_published(path: Path, quick: bool) -> Path:
    """`path`, written in the layout of the published checkpoint with weights by the recipe."""
    vit = by_recipe(VisionTransformer(**SMALL, **PUBLISHED) if quick else vit_base(**PUBLISHED))
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}}, path)
    return path


def by_recipe(vit: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """The module refilled: LayerScale U(0.1, 0.6), norm weights 1 + 0.2 N, norm biases 0.02 N, block matrices times
    1.5.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in vit.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            tensor.data = 0.1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        elif "norm" in name:
            tensor.data = 1 + 0.2 * noise if name.endswith("weight") else 0.02 * noise
        elif name.startswith("blocks") and tensor.ndim == 2:
            tensor.data = 1.5 * 0.02 * noise
        elif name.endswith(("token", "tokens", "bias")):
            tensor.data = 0.02 * noise
    return vit.eval()


def transformers_model(path: Path) -> Any:
    """transformers' `DINOv3ViTModel` in fp32 with the weights of a checkpoint."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    vit = build_module(load_weights(path))
    config = DINOv3ViTConfig(
        patch_size=vit.patch_size,
        hidden_size=vit.embed_dim,
        intermediate_size=4 * vit.embed_dim,
        num_hidden_layers=vit.n_blocks,
        num_attention_heads=vit.num_heads,
        num_register_tokens=vit.n_storage_tokens,
        layer_norm_eps=1e-6,
        query_bias=False,
        key_bias=False,
        value_bias=False,
    )
    model = DINOv3ViTModel(config)
    model.load_state_dict(to_transformers(vit.state_dict(), vit.n_blocks), strict=True)
    return model.eval()


def to_transformers(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The published names and the joint q|k|v projection as transformers spells them."""
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"][None],
        "embeddings.register_tokens": state["storage_tokens"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": state["patch_embed.proj.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    for k in range(depth):
        renamed |= _block_to_transformers(state, f"blocks.{k}.", f"model.layer.{k}.")
    return renamed


def _block_to_transformers(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    q_k_v = state[f"{ours}attn.qkv.weight"].chunk(3)
    renamed = {f"{theirs}attention.{letter}_proj.weight": part for letter, part in zip("qkv", q_k_v, strict=True)}
    for own, other in SAME_NAMES.items():
        renamed |= {f"{theirs}{other}.{kind}": state[f"{ours}{own}.{kind}"] for kind in ("weight", "bias")}
    return renamed | {f"{theirs}layer_scale{k}.lambda1": state[f"{ours}ls{k}.gamma"] for k in (1, 2)}
