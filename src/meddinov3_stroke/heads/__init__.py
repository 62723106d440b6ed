"""Light heads on frozen embeddings: build, train, save, load, use."""

from meddinov3_stroke.heads.checkpoint import HeadCheckpoint, load_checkpoint, save_checkpoint
from meddinov3_stroke.heads.compatibility import check_backbone, identity_from_document
from meddinov3_stroke.heads.data import (
    EmbeddingOrigin,
    check_head_data,
    check_train_and_val,
    embedding_matrix,
    load_head_data,
    read_array,
    read_origin,
    same_origin,
)
from meddinov3_stroke.heads.mlp import MLPHead, build_head
from meddinov3_stroke.heads.prediction import check_columns, predict_logits
from meddinov3_stroke.heads.selection import BestEpoch
from meddinov3_stroke.heads.training import EpochResult, check_options, positive_weights, train_epochs

__all__ = [
    "BestEpoch",
    "EmbeddingOrigin",
    "EpochResult",
    "HeadCheckpoint",
    "MLPHead",
    "build_head",
    "check_backbone",
    "check_columns",
    "check_head_data",
    "check_options",
    "check_train_and_val",
    "embedding_matrix",
    "identity_from_document",
    "load_checkpoint",
    "load_head_data",
    "positive_weights",
    "predict_logits",
    "read_array",
    "read_origin",
    "same_origin",
    "save_checkpoint",
    "train_epochs",
]
