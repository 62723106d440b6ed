"""What runs the transformer: one protocol, torch and OpenVINO behind it."""

from meddinov3_stroke.backbone.engines.protocol import Engine
from meddinov3_stroke.backbone.engines.torch_engine import TorchEngine

__all__ = ["Engine", "TorchEngine"]
