"""The models folder: which file a name stands for, and what is kept beside it so that it need not be worked out twice.

Needs neither torch nor an engine.
"""

from meddinov3_stroke.models.calibration import (
    LEAST_INT8_COSINE,
    Calibration,
    calibration_folder,
    read_calibration,
    write_calibration,
)
from meddinov3_stroke.models.facts import LEAST_AUTO_COSINE, WeightsFacts, WeightsRecords
from meddinov3_stroke.models.graphs import GraphCache, graph_key, graph_sha256, verified_graph, write_graph
from meddinov3_stroke.models.plan import BackbonePlan, plan_backbone
from meddinov3_stroke.models.sources import REGISTERED, weights_path

__all__ = [
    "LEAST_AUTO_COSINE",
    "LEAST_INT8_COSINE",
    "REGISTERED",
    "BackbonePlan",
    "Calibration",
    "GraphCache",
    "WeightsFacts",
    "WeightsRecords",
    "calibration_folder",
    "graph_key",
    "graph_sha256",
    "plan_backbone",
    "read_calibration",
    "verified_graph",
    "weights_path",
    "write_calibration",
    "write_graph",
]
