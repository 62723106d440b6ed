"""The head, its AUROC and its data checks in one module, for users; only `MLPHead` and training need torch."""

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
    from meddinov3_stroke.heads.modules import MLPHead

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
    if name == "MLPHead":  # the one name that needs torch at import
        from meddinov3_stroke.heads.modules import MLPHead

        return MLPHead
    raise AttributeError(name)
