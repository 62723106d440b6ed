"""How good the probabilities are: AUROC, thresholds, losses, intervals. numpy and scikit-learn; no torch."""

from meddinov3_stroke.metrics.auroc import AurocReport, auroc_report, undefined_reason
from meddinov3_stroke.metrics.bootstrap import Interval, bootstrap_macro_auroc, weighted_auroc
from meddinov3_stroke.metrics.loss import binary_cross_entropy, weighted_log_loss
from meddinov3_stroke.metrics.thresholds import DEFAULT_THRESHOLD, operating_points, youden_thresholds

__all__ = [
    "DEFAULT_THRESHOLD",
    "AurocReport",
    "Interval",
    "auroc_report",
    "binary_cross_entropy",
    "bootstrap_macro_auroc",
    "operating_points",
    "undefined_reason",
    "weighted_auroc",
    "weighted_log_loss",
    "youden_thresholds",
]
