"""Torch modules of the heads; imported only for training."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class MLPHead(nn.Sequential):
    """LayerNorm(D) -> Linear(D, hidden) -> GELU -> Dropout -> Linear(hidden, C); float32 [n, D] -> logits [n, C]."""

    def __init__(self, input_dim: int, hidden_dim: int, n_labels: int, dropout: float) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.LayerNorm(input_dim),
                hidden=nn.Linear(input_dim, hidden_dim),
                activation=nn.GELU(),
                dropout=nn.Dropout(dropout),
                output=nn.Linear(hidden_dim, n_labels),
            )
        )
