"""The head, its AUROC and its data checks under the name users import; the package itself does not use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meddinov3_stroke.heads import (
    HeadCheckpoint,
    build_head,
    check_backbone,
    check_head_data,
    load_checkpoint,
    load_head_data,
    predict_logits,
    save_checkpoint,
)
from meddinov3_stroke.metrics import AurocReport, auroc_report, bootstrap_macro_auroc, youden_thresholds
from meddinov3_stroke.types import HeadData

if TYPE_CHECKING:
    from meddinov3_stroke.heads.training import MLPHead

__all__ = [
    "AurocReport",
    "HeadCheckpoint",
    "HeadData",
    "MLPHead",
    "auroc_report",
    "bootstrap_macro_auroc",
    "build_head",
    "check_backbone",
    "check_head_data",
    "load_checkpoint",
    "load_head_data",
    "predict_logits",
    "save_checkpoint",
    "youden_thresholds",
]


def __getattr__(name: str) -> Any:
    if name == "MLPHead":  # the only name here that needs torch
        from meddinov3_stroke.heads.training import MLPHead

        return MLPHead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
