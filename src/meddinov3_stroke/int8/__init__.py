"""Making an int8 backbone on some volumes and measuring it on others."""

from meddinov3_stroke.int8.measurement import MeasuredVolume, auroc_change, measure
from meddinov3_stroke.int8.quantizing import calibration_slices, keep_graph, quantized_graph, trial_backbone
from meddinov3_stroke.int8.volumes import (
    CalibrationVolume,
    hold_out,
    refuse_copies,
    volumes_of_paths,
    volumes_of_table,
)

__all__ = [
    "CalibrationVolume",
    "MeasuredVolume",
    "auroc_change",
    "calibration_slices",
    "hold_out",
    "keep_graph",
    "measure",
    "quantized_graph",
    "refuse_copies",
    "trial_backbone",
    "volumes_of_paths",
    "volumes_of_table",
]
