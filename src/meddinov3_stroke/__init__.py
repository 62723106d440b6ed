"""Probabilities of intracranial haemorrhage and its five types from a non-contrast head CT. Research use only.

`ICHPredictor`, `load_backbone` and `read_volume` are imported when first asked for, so that importing the package
needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meddinov3_stroke.backbone import load_backbone
    from meddinov3_stroke.ct import read_volume
    from meddinov3_stroke.predictor import ICHPredictor

__all__ = ["ICHPredictor", "__version__", "load_backbone", "read_volume"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    import importlib

    rooms = {"ICHPredictor": "predictor", "load_backbone": "backbone", "read_volume": "ct"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{rooms[name]}"), name)
