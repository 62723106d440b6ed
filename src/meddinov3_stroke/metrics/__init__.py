"""How good probabilities are: AUROC with intervals, losses, thresholds."""

from meddinov3_stroke.metrics.discrimination import (
    AurocReport,
    Interval,
    auroc_report,
    binary_cross_entropy,
    bootstrap_macro_auroc,
    undefined_reason,
    weighted_auroc,
    weighted_log_loss,
)
from meddinov3_stroke.metrics.thresholds import (
    DEFAULT_THRESHOLD,
    operating_points,
    threshold_report,
    youden_thresholds,
)

__all__ = [
    "DEFAULT_THRESHOLD",
    "AurocReport",
    "Interval",
    "auroc_report",
    "binary_cross_entropy",
    "bootstrap_macro_auroc",
    "operating_points",
    "threshold_report",
    "undefined_reason",
    "weighted_auroc",
    "weighted_log_loss",
    "youden_thresholds",
]
