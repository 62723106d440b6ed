"""Our transformer and transformers' DINOv3 on the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn


def by_recipe(vit: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which every part matters: LayerScale U(0.1, 0.6), norm weights 1 + 0.2 N, norm biases
    0.02 N, block matrices times 1.5. (With the published start of LayerScale, 1e-5, a net without blocks passes.)
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in vit.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            tensor.data = 0.1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        elif "norm" in name:
            tensor.data = 1 + 0.2 * noise if name.endswith("weight") else 0.02 * noise
        elif name.startswith("blocks") and tensor.ndim == 2:
            tensor.data = tensor.data * 1.5
        elif name.endswith(("token", "tokens", "bias")):
            tensor.data = 0.02 * noise
    return vit.eval()


def to_transformers(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our names and the joint q|k|v projection as transformers spells them."""
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"][None],
        "embeddings.register_tokens": state["storage_tokens"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": state["patch_embed.proj.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    same = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}
    same |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"model.layer.{i}."
        for letter, part in zip("qkv", state[f"{ours}attn.qkv.weight"].chunk(3), strict=True):
            renamed[f"{theirs}attention.{letter}_proj.weight"] = part
        for own, other in same.items():
            for kind in ("weight", "bias"):
                renamed[f"{theirs}{other}.{kind}"] = state[f"{ours}{own}.{kind}"]
        for k in (1, 2):
            renamed[f"{theirs}layer_scale{k}.lambda1"] = state[f"{ours}ls{k}.gamma"]
    return renamed


@pytest.fixture(scope="session")
def randomised() -> Callable[..., nn.Module]:
    """The recipe, as a function of a module and a seed."""
    return by_recipe


@pytest.fixture(scope="session")
def dinov3_with() -> Callable[[nn.Module], nn.Module]:
    """Makes transformers' `DINOv3ViTModel` with the weights of one of our modules."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    def make(vit: nn.Module) -> nn.Module:
        config = DINOv3ViTConfig(
            patch_size=16,
            hidden_size=vit.embed_dim,
            intermediate_size=4 * vit.embed_dim,
            num_hidden_layers=vit.n_blocks,
            num_attention_heads=vit.num_heads,
            layer_norm_eps=1e-6,
            query_bias=False,
            key_bias=False,
            value_bias=False,
            num_register_tokens=4,
        )
        with torch.device("meta"):
            model = DINOv3ViTModel(config)
        model.load_state_dict(to_transformers(vit.state_dict(), vit.n_blocks), strict=True, assign=True)
        rope = type(model.rope_embeddings)(config)  # its frequencies are no state: made anew off the meta device
        model.rope_embeddings = rope
        return model.eval()

    return make
