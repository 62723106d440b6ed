"""Small random backbones and the files they come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from meddinov3_stroke.backbone import Backbone, VisionTransformer, load_backbone

SMALL = {
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "n_storage_tokens": 4,
    "qkv_bias": False,
    "mask_k_bias": True,
    "layerscale_init": 0.3,
}


def randomise(vit: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Values that let every part matter: LayerScale far from 0, norms far from 1 (LayerScale 1e-5 proves nothing)."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in vit.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            value = 0.1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        elif "norm" in name:
            value = 1 + 0.2 * noise if name.endswith("weight") else 0.02 * noise
        else:
            value = tensor.detach() * 1.5 if "blocks" in name and tensor.ndim == 2 else 0.05 * noise
        tensor.data.copy_(value)
    return vit.eval()


@pytest.fixture(scope="session")
def small_vit() -> Callable[..., VisionTransformer]:
    """Makes a random ViT of 128 channels and two blocks; keywords change its architecture, `seed` its values."""

    def make(seed: int = 0, **changes: Any) -> VisionTransformer:
        torch.manual_seed(seed)
        return randomise(VisionTransformer(**(SMALL | changes)), seed)

    return make


@pytest.fixture
def published_checkpoint(tmp_path: Path, small_vit: Callable[..., VisionTransformer]) -> Callable[..., Path]:
    """Writes a file in the published layout: a teacher with `backbone.` names among the training heads."""

    def write(name: str = "model.pth", extra: dict[str, Any] | None = None, **changes: Any) -> Path:
        state = {f"backbone.{key}": value for key, value in small_vit(**changes).state_dict().items()}
        heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "backbone.ibot_head.weight": torch.ones(3)}
        path = tmp_path / name
        torch.save({"teacher": state | heads, "iteration": 7} | (extra or {}), path)
        return path

    return write


@pytest.fixture
def small_backbone(published_checkpoint: Callable[..., Path]) -> Backbone:
    """A loaded random backbone on the CPU in fp32."""
    return load_backbone(published_checkpoint(), engine="torch", precision="fp32", device="cpu")
