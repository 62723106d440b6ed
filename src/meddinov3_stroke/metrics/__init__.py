"""Quality of probabilities: AUROC, thresholds, losses, intervals. numpy alone."""

from meddinov3_stroke.metrics.auroc import AurocReport, auroc_report, undefined_reason, weighted_auroc
from meddinov3_stroke.metrics.bootstrap import Interval, bootstrap_macro_auroc
from meddinov3_stroke.metrics.loss import binary_cross_entropy, weighted_log_loss
from meddinov3_stroke.metrics.thresholds import DEFAULT_THRESHOLD, operating_points, threshold_report, youden_thresholds

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
