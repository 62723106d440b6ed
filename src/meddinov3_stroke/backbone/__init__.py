"""The frozen backbone: architecture, weights, preprocessing, engines, identity."""

from meddinov3_stroke.backbone.preprocessing import PREPROCESSING, prepare_slices
from meddinov3_stroke.backbone.vit import VisionTransformer, vit_base

__all__ = ["PREPROCESSING", "VisionTransformer", "prepare_slices", "vit_base"]
