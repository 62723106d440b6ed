"""Light heads on frozen embeddings: data, training, checkpoints, application."""

from meddinov3_stroke.heads.applying import check_backbone, predict_logits
from meddinov3_stroke.heads.architectures import LabelCalibration, build_head
from meddinov3_stroke.heads.checkpoint import (
    HeadCheckpoint,
    TrainingDistribution,
    identity_from_document,
    load_checkpoint,
)
from meddinov3_stroke.heads.data import (
    EmbeddingOrigin,
    HeadContext,
    check_head_data,
    check_train_and_val,
    embedding_matrix,
    load_head_data,
    read_array,
    read_origin,
    same_origin,
)
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.heads.saving import save_checkpoint

__all__ = [
    "ARCHITECTURES",
    "EmbeddingOrigin",
    "HeadCheckpoint",
    "HeadContext",
    "LabelCalibration",
    "TrainingDistribution",
    "build_head",
    "check_backbone",
    "check_head_data",
    "check_train_and_val",
    "embedding_matrix",
    "identity_from_document",
    "load_checkpoint",
    "load_head_data",
    "predict_logits",
    "read_array",
    "read_origin",
    "same_origin",
    "save_checkpoint",
]
