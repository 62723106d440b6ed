"""The frozen backbone: architecture, weights, preprocessing, engines, identity."""

from meddinov3_stroke.backbone.architecture import Architecture
from meddinov3_stroke.backbone.backbone import Backbone
from meddinov3_stroke.backbone.convert import Conversion, convert_weights
from meddinov3_stroke.backbone.engines import Engine, TorchEngine
from meddinov3_stroke.backbone.graph_source import GraphSource
from meddinov3_stroke.backbone.loader import load_backbone, load_planned
from meddinov3_stroke.backbone.preprocessing import PREPROCESSING, prepare_channel, prepare_slices
from meddinov3_stroke.backbone.vit import VisionTransformer, vit_base
from meddinov3_stroke.backbone.weight_file import (
    Weights,
    load_weights,
    save_backbone,
    save_safetensors,
    weights_sha256,
)

__all__ = [
    "PREPROCESSING",
    "Architecture",
    "Backbone",
    "Conversion",
    "Engine",
    "GraphSource",
    "TorchEngine",
    "VisionTransformer",
    "Weights",
    "convert_weights",
    "load_backbone",
    "load_planned",
    "load_weights",
    "prepare_channel",
    "prepare_slices",
    "save_backbone",
    "save_safetensors",
    "vit_base",
    "weights_sha256",
]
