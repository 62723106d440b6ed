"""Training of a head: whole arrays in memory, AdamW, weighted binary cross-entropy, one seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8
from torch import Tensor, nn

from meddinov3_stroke.errors import NonFiniteLoss, UsageError
from meddinov3_stroke.heads.mlp import build_head
from meddinov3_stroke.heads.prediction import head_logits
from meddinov3_stroke.runtime.seeds import seed_everything
from meddinov3_stroke.types import HeadData, HeadOptions

LARGEST_LR = 1e3
"""Adam moves each weight by about this much in a step; more than this is a slip of the pen."""


@dataclass(frozen=True, eq=False)
class EpochResult:
    """State after an epoch; `head` goes on changing when the next epoch is asked for."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's rows, with dropout and with weights that change underway."""
    val_loss: float
    """Of the same weighted loss on the validation rows."""
    val_logits: Float32[np.ndarray, "n label"]
    head: nn.Module


def check_options(options: HeadOptions) -> None:
    """Nothing, where every option is in its range.

    Raises:
        UsageError: an option out of range; names it.
    """
    _require(options.epochs >= 1, f"--epochs {options.epochs}", "at least 1")
    _require(options.batch_size >= 1, f"--batch-size {options.batch_size}", "at least 1")
    _require(0 < options.lr <= LARGEST_LR, f"--lr {options.lr}", f"a positive number, at most {LARGEST_LR:g}")
    _require(0 <= options.weight_decay < math.inf, f"--weight-decay {options.weight_decay}", "0 or more")
    _require(0 <= options.dropout < 1, f"--dropout {options.dropout}", "a number in [0, 1)")
    _require(options.patience >= 0, f"--patience {options.patience}", "0 (off) or more")
    _require(0 <= options.seed < 2**63, f"--seed {options.seed}", "a whole number from 0")


def positive_weights(labels: Int8[np.ndarray, "n label"], cap: float) -> Float64[np.ndarray, " label"]:
    """Negatives for each positive, per label, at most `cap`; every label needs a positive."""
    n_positive = labels.sum(axis=0, dtype=np.int64)
    return np.asarray(np.minimum((len(labels) - n_positive) / n_positive, cap))


def train_epochs(
    train: HeadData,
    val: HeadData,
    options: HeadOptions,
    pos_weight: Float64[np.ndarray, " label"],
    device: torch.device | str = "cpu",
) -> Iterator[EpochResult]:
    """Yields after each epoch; the same seed and data give bit-identical weights on a CPU.

    Raises:
        NonFiniteLoss: a NaN or infinite loss; names epoch and batch.
    """
    seed_everything(options.seed)
    dim, n_labels = train.embeddings.shape[1], train.labels.shape[1]
    head = build_head(dim, options.hidden_dim, n_labels, options.dropout).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    loss_function = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, dtype=torch.float32, device=device))
    order = torch.Generator().manual_seed(options.seed)
    rows, targets = _on_device(train, device)
    val_targets = torch.tensor(val.labels, dtype=torch.float32, device=device)
    for epoch in range(1, options.epochs + 1):
        batches = torch.split(torch.randperm(len(rows), generator=order).to(device), options.batch_size)
        with one_thread():
            train_loss = _train_once(head, optimizer, loss_function, rows, targets, batches, epoch)
            head.eval()
            logits = head_logits(head, val.embeddings)
            val_loss = float(loss_function(torch.tensor(logits, device=device), val_targets))
        _require_finite(val_loss, f"validation of epoch {epoch}", options.lr)
        yield EpochResult(epoch, train_loss, val_loss, logits, head)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one CPU thread: a head's matrices are too small to share, above all on a busy machine, and sums in one
    order make the result independent of the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_once(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: nn.Module,
    rows: Tensor,
    targets: Tensor,
    batches: tuple[Tensor, ...],
    epoch: int,
) -> float:
    head.train()
    total = 0.0
    for number, batch in enumerate(batches, start=1):
        loss = loss_function(head(rows[batch]), targets[batch])
        value = float(loss.detach())
        _require_finite(value, f"epoch {epoch}, batch {number} of {len(batches)}", optimizer.param_groups[0]["lr"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += value * len(batch)
    return total / len(rows)


def _on_device(data: HeadData, device: torch.device | str) -> tuple[Tensor, Tensor]:
    return torch.tensor(data.embeddings, device=device), torch.tensor(data.labels, dtype=torch.float32, device=device)


def _require_finite(loss: float, where: str, lr: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLoss(
            f"loss is {loss} in {where}; training stopped and the last good checkpoint stays; "
            f"found --lr {lr:g}: try a smaller one, and look for extreme values in the embeddings"
        )


def _require(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise UsageError(f"{found}: expected {expected}")
