"""The frozen backbone: architecture, weights, preprocessing, engines, identity.

What needs torch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from meddinov3_stroke.backbone.architecture import Architecture
from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.loading import load_backbone
from meddinov3_stroke.backbone.preprocessing import PREPROCESSING, prepare_channel, prepare_slices
from meddinov3_stroke.backbone.weights import (
    Conversion,
    Weights,
    build_module,
    convert_weights,
    load_weights,
    save_backbone,
    save_safetensors,
    weights_sha256,
)

if TYPE_CHECKING:
    from meddinov3_stroke.backbone.engines.torch import TorchEngine
    from meddinov3_stroke.backbone.vit import VisionTransformer, vit_base

__all__ = [
    "PREPROCESSING",
    "Architecture",
    "Backbone",
    "Conversion",
    "TorchEngine",
    "VisionTransformer",
    "Weights",
    "build_module",
    "convert_weights",
    "load_backbone",
    "load_weights",
    "prepare_channel",
    "prepare_slices",
    "save_backbone",
    "save_safetensors",
    "vit_base",
    "weights_sha256",
]

_NEEDS_TORCH = {"TorchEngine": "engines.torch", "VisionTransformer": "vit", "vit_base": "vit"}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
