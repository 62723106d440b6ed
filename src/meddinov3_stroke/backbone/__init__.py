"""The frozen backbone: architecture, weights, preprocessing, engines, identity.

What needs torch is imported when it is first asked for.
"""

from __future__ import annotations

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
from meddinov3_stroke.backbone.weights import needs_torch as __getattr__  # noqa: F401

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
