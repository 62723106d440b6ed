"""A head's answer for rows of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding
from meddinov3_stroke.heads.checkpoint import HeadCheckpoint
from meddinov3_stroke.types import HeadOutput

ROWS_PER_BATCH = 16384
"""Rows sent through the head at a time; bounds memory."""


def predict_logits(
    head: HeadCheckpoint | nn.Module,
    embeddings: Float32[np.ndarray, "n dim"],
    labels: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> HeadOutput:
    """Logits [n, label] of the rows.

    A checkpoint computes on `device`; a bare module where its weights are and in the mode it is in, and `labels` name
    its outputs.

    Raises:
        CheckpointError: the embedding's size or the labels are not the checkpoint's; lists expected and found.
        NonFiniteEmbedding: a row gives NaN or infinity.
    """
    if isinstance(head, HeadCheckpoint):
        labels = head.labels if labels is None else labels
        check_columns(head, embeddings.shape[1], labels)
        head = head.head().to(device)
    if labels is None:
        raise CheckpointError("a bare head does not name its labels; found none, expected one name for each output")
    logits = head_logits(head, embeddings)
    bad = np.nonzero(~np.isfinite(logits).all(axis=1))[0]
    if bad.size:
        raise NonFiniteEmbedding(f"the head gives NaN or infinity for {bad.size} of {len(logits)} rows, first {bad[0]}")
    return HeadOutput(logits, tuple(labels))


def head_logits(head: nn.Module, embeddings: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n label"]:
    """Logits of the rows, without gradients, `ROWS_PER_BATCH` at a time."""
    device = next(head.parameters()).device
    with torch.no_grad():
        parts = [
            head(torch.tensor(embeddings[start : start + ROWS_PER_BATCH], device=device)).cpu().numpy()
            for start in range(0, max(len(embeddings), 1), ROWS_PER_BATCH)
        ]
    return np.concatenate(parts)


def check_columns(checkpoint: HeadCheckpoint, input_dim: int, labels: Sequence[str]) -> None:
    """Nothing, where embeddings of `input_dim` columns and these labels are what the checkpoint was trained on.

    Raises:
        CheckpointError: they are not; lists expected and found.
    """
    if input_dim != checkpoint.input_dim:
        raise CheckpointError(
            f"embeddings of {input_dim} columns do not fit the head; expected {checkpoint.input_dim} "
            f"(pool mode {checkpoint.pool_mode}), found {input_dim}; use the embeddings' own head"
        )
    if tuple(labels) != checkpoint.labels:
        raise CheckpointError(
            f"the head's labels differ; expected {', '.join(checkpoint.labels)}; found {', '.join(labels)}; "
            "use labels of the same names in the same order"
        )
