"""Small made-up embeddings, labels and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch

from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.heads import HeadCheckpoint, build_head
from meddinov3_stroke.types import BackboneIdentity, HeadData, Preprocessing, Threshold


@pytest.fixture
def identity() -> BackboneIdentity:
    preprocessing = Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "made-up-1")
    return BackboneIdentity("tiny", "ab" * 32, 8, 16, "bf16", preprocessing, "torch", "fp32")


@pytest.fixture
def options() -> HeadConfig:
    return HeadConfig(
        epochs=3, batch_size=16, lr=1e-2, weight_decay=1e-2, hidden_dim=12, dropout=0.2, seed=3, patience=0
    )


@pytest.fixture
def separable() -> Callable[[int, int], HeadData]:
    """(rows, seed) -> 8 columns, 3 labels, each the sign of one column with a gap about zero."""

    def make(n_rows: int, seed: int) -> HeadData:
        embeddings = np.random.default_rng(seed).normal(size=(n_rows, 8)).astype(np.float32)
        embeddings += np.sign(embeddings)
        return HeadData(embeddings, (embeddings[:, :3] > 0).astype(np.int8))

    return make


@pytest.fixture
def checkpoint(identity: BackboneIdentity) -> HeadCheckpoint:
    torch.manual_seed(0)
    labels = ("class_0", "class_1", "class_2")
    return HeadCheckpoint(
        state_dict={name: tensor.numpy() for name, tensor in build_head(8, 12, 3, 0.2).state_dict().items()},
        labels=labels,
        input_dim=8,
        arch="mlp",
        params={"hidden_dim": 12, "dropout": 0.2},
        pool_mode="mean",
        resize=224,
        backbone=asdict(identity),
        thresholds={label: Threshold(0.25, "validation Youden (3 positive of 9)") for label in labels},
        pos_weight=dict.fromkeys(labels, 2.0),
        seed=3,
        epoch=2,
        metric_name="val_macro_auroc",
        best_metric=0.75,
    )
