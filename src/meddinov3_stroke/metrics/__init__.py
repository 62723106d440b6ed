"""How good probabilities are: ranking figures, losses, thresholds, each with its interval by patient. numpy only."""

from meddinov3_stroke.metrics.calibration import LEAST_PATIENTS, N_REFITS, calibrate, choose_calibrator, fit_calibrator
from meddinov3_stroke.metrics.comparison import compare, delong
from meddinov3_stroke.metrics.evaluation import (
    NO_PATIENTS,
    about_rows,
    confident_errors,
    evaluate,
    evaluate_calibrated,
    evaluate_slices,
    patients_of,
    without_probabilities,
)
from meddinov3_stroke.metrics.intervals import Interval, Patients, bootstrap_macro_auroc
from meddinov3_stroke.metrics.losses import binary_cross_entropy, weighted_log_loss
from meddinov3_stroke.metrics.position import MatchedPairs, cross_validated_scores, mid_stack
from meddinov3_stroke.metrics.ranking import (
    AurocReport,
    auroc_report,
    undefined_reason,
    weighted_auroc,
    weighted_average_precision,
)
from meddinov3_stroke.metrics.thresholds import (
    DEFAULT_THRESHOLD,
    operating_points,
    promised_rates,
    sensitivity_thresholds,
    threshold_report,
    validation_thresholds,
    youden_thresholds,
)
from meddinov3_stroke.types import Calibrator

__all__ = [
    "DEFAULT_THRESHOLD",
    "LEAST_PATIENTS",
    "NO_PATIENTS",
    "N_REFITS",
    "AurocReport",
    "Calibrator",
    "Interval",
    "MatchedPairs",
    "Patients",
    "about_rows",
    "auroc_report",
    "binary_cross_entropy",
    "bootstrap_macro_auroc",
    "calibrate",
    "choose_calibrator",
    "compare",
    "confident_errors",
    "cross_validated_scores",
    "delong",
    "evaluate",
    "evaluate_calibrated",
    "evaluate_slices",
    "fit_calibrator",
    "mid_stack",
    "operating_points",
    "patients_of",
    "promised_rates",
    "sensitivity_thresholds",
    "threshold_report",
    "undefined_reason",
    "validation_thresholds",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_log_loss",
    "without_probabilities",
    "youden_thresholds",
]
