"""Training of a head: whole arrays in memory, AdamW, weighted binary cross-entropy, one seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8, Int64
from torch import Tensor, nn
from torch.optim.adamw import adamw

from meddinov3_stroke.errors import NonFiniteLoss, UsageError
from meddinov3_stroke.heads.mlp import MLPHead, MLPPass, MLPWeights, build_head, normalised_rows, weighted_loss_gradient
from meddinov3_stroke.heads.prediction import ROWS_PER_BATCH, head_logits
from meddinov3_stroke.system.seeds import seed_everything
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
    """Yields after each epoch; the same seed and data give bit-identical weights on a CPU, however many its cores.

    The training rows are copied once, as float32; the caller's array is not modified.

    Raises:
        NonFiniteLoss: a NaN or infinite loss; names epoch and batch.
    """
    seed_everything(options.seed)
    dim, n_labels = train.embeddings.shape[1], train.labels.shape[1]
    head = build_head(dim, options.hidden_dim, n_labels, options.dropout).to(device)
    loss_function = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, dtype=torch.float32, device=device))
    order = torch.Generator().manual_seed(options.seed)
    targets, val_targets = (torch.tensor(d.labels, dtype=torch.float32, device=device) for d in (train, val))
    steps = _steps(head, train.embeddings, loss_function, options)
    for epoch in range(1, options.epochs + 1):
        batches = torch.split(torch.randperm(len(targets), generator=order).to(device), options.batch_size)
        with one_thread():
            head.train()
            train_loss = _train_once(steps, targets, batches, epoch)
            head.eval()
            logits = head_logits(head, val.embeddings)
            val_loss = float(loss_function(torch.tensor(logits, device=device), val_targets))
        _require_finite(val_loss, f"validation of epoch {epoch}", options.lr)
        yield EpochResult(epoch, train_loss, val_loss, logits, head)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one CPU thread: sums in one order make the result independent of the number of cores; a second thread
    saves a quarter of the time on a quiet machine and costs several times as much on a busy one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_once(steps: _LinearSteps | _MLPSteps, targets: Tensor, batches: Sequence[Tensor], epoch: int) -> float:
    total = 0.0
    for number, batch in enumerate(batches, start=1):
        loss = steps.loss(batch, targets.index_select(0, batch))
        value = float(loss.detach())
        _require_finite(value, f"epoch {epoch}, batch {number} of {len(batches)}", steps.adamw.options.lr)
        steps.descend(loss)
        total += value * len(batch)
    steps.update_head()
    return total / len(targets)


def _steps(
    head: nn.Module,
    embeddings: Float32[np.ndarray, "n dim"],
    loss_function: nn.BCEWithLogitsLoss,
    options: HeadOptions,
) -> _LinearSteps | _MLPSteps:
    if isinstance(head, MLPHead):
        return _MLPSteps(head, embeddings, loss_function, options)
    return _LinearSteps(head, embeddings, loss_function, options)


class _LinearSteps:
    """Steps of a head that is one linear layer, by torch's own gradients."""

    def __init__(
        self,
        head: nn.Module,
        embeddings: Float32[np.ndarray, "n dim"],
        loss_function: nn.BCEWithLogitsLoss,
        options: HeadOptions,
    ) -> None:
        self.head, self.loss_function = head, loss_function
        self.adamw = _AdamW(head.parameters(), options)
        self.rows = torch.tensor(embeddings, device=self.adamw.parameters[0].device)

    def loss(self, batch: Int64[Tensor, " n"], targets: Float32[Tensor, "n label"]) -> Tensor:
        """The mean loss of these rows."""
        loss: Tensor = self.loss_function(self.head(self.rows.index_select(0, batch)), targets)
        return loss

    def descend(self, loss: Tensor) -> None:
        """Step down from the loss that was given last."""
        self.adamw.step(torch.autograd.grad(loss, self.adamw.parameters))

    def update_head(self) -> None:
        """Nothing to do: the head's own weights are what moves."""


class _MLPSteps:
    """Steps of an MLP head on rows that are normalised once, by gradients in closed form.

    The normalised rows are the only copy of the embeddings; LayerNorm reads `ROWS_PER_BATCH` of them at a time.
    """

    def __init__(
        self,
        head: MLPHead,
        embeddings: Float32[np.ndarray, "n dim"],
        loss_function: nn.BCEWithLogitsLoss,
        options: HeadOptions,
    ) -> None:
        self.head, self.loss_function, self.keep = head, loss_function, 1 - options.dropout
        self.pos_weight = cast("Tensor", loss_function.pos_weight)
        self.weights = MLPWeights.of(head)
        self.gradients = self.weights.zeros()
        self.adamw = _AdamW([self.weights.flat], options)
        self.rows = torch.empty(embeddings.shape, device=self.weights.flat.device)
        for start in range(0, len(embeddings), ROWS_PER_BATCH):
            part = slice(start, start + ROWS_PER_BATCH)
            rows = torch.tensor(embeddings[part], device=self.rows.device)
            self.rows[part] = normalised_rows(rows, head.norm.eps)

    @torch.no_grad()
    def loss(self, batch: Int64[Tensor, " n"], targets: Float32[Tensor, "n label"]) -> Tensor:
        """The mean loss of these rows."""
        factors = self._dropout_factors(len(batch)) if self.keep < 1 else None
        self.targets, self.mlp = targets, MLPPass(self.weights, self.rows.index_select(0, batch), factors)
        loss: Tensor = self.loss_function(self.mlp.logits, targets)
        return loss

    @torch.no_grad()
    def descend(self, loss: Tensor) -> None:
        """Step down from the loss that was given last."""
        by_logits = weighted_loss_gradient(self.mlp.logits, self.targets, self.pos_weight)
        self.mlp.gradients_into(self.gradients, by_logits)
        self.adamw.step([self.gradients.flat])

    def update_head(self) -> None:
        """The head has the weights as they stand."""
        self.head.load_state_dict(self.weights.by_name())

    def _dropout_factors(self, n_rows: int) -> Float32[Tensor, "n hidden"]:
        draws = torch.rand(n_rows, len(self.weights.hidden_bias), device=self.rows.device)
        return draws.lt_(self.keep).div_(self.keep)


class _AdamW:
    """AdamW's state for a few tensors; torch's functional form, as its class imports torch's compiler, which takes
    seconds."""

    def __init__(self, parameters: Iterable[Tensor], options: HeadOptions) -> None:
        self.parameters, self.options = list(parameters), options
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.n_steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters, in place."""
        adamw(
            self.parameters,
            list(gradients),
            self.means,
            self.squares,
            [],
            self.n_steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.options.lr,
            weight_decay=self.options.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _require_finite(loss: float, where: str, lr: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLoss(
            f"loss is {loss} in {where}; training stopped and the last good checkpoint stays; "
            f"found --lr {lr:g}: try a smaller one, and look for extreme values in the embeddings"
        )


def _require(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise UsageError(f"{found}: expected {expected}")
