"""Training of a head: whole arrays in memory, autograd, AdamW, weighted binary cross-entropy, one seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from torch.optim.adamw import adamw

from meddinov3_stroke.config import ROWS_PER_BATCH, HeadConfig
from meddinov3_stroke.errors import NonFiniteLoss
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.system.seeds import seed_everything
from meddinov3_stroke.types import HeadData


@dataclass(frozen=True, eq=False)
class EpochResult:
    """State after an epoch; `head` goes on changing when the next epoch is asked for."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's rows, with dropout and with weights that change during the epoch."""
    val_loss: float | None
    """The same weighted loss on the validation rows; None without them."""
    val_logits: Float32[np.ndarray, "n label"] | None
    head: nn.Module


def train_epochs(
    train: HeadData,
    val: HeadData | None,
    options: HeadConfig,
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
    head = ARCHITECTURES[options.arch].build(dim, n_labels, asdict(options)).to(device)
    loss_function = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, dtype=torch.float32, device=device))
    optimizer = _AdamW(head, options)
    order = torch.Generator().manual_seed(options.seed)
    rows = torch.tensor(train.embeddings, device=device)
    targets = torch.tensor(train.labels, dtype=torch.float32, device=device)
    for epoch in range(1, options.epochs + 1):
        batches = torch.split(torch.randperm(len(targets), generator=order).to(device), options.batch_size)
        total = 0.0
        with _one_thread():
            head.train()
            for number, batch in enumerate(batches, start=1):
                loss = loss_function(head(rows.index_select(0, batch)), targets.index_select(0, batch))
                value = float(loss.detach())
                _require_finite(value, f"epoch {epoch}, batch {number} of {len(batches)}", options.lr)
                optimizer.step(torch.autograd.grad(loss, optimizer.parameters))
                total += value * len(batch)
            head.eval()
            val_loss, logits = _validate(head, val, loss_function, device)
        _require_finite(val_loss or 0.0, f"validation of epoch {epoch}", options.lr)
        yield EpochResult(epoch, total / len(targets), val_loss, logits, head)


def _validate(
    head: nn.Module, val: HeadData | None, loss_function: nn.Module, device: torch.device | str
) -> tuple[float | None, Float32[np.ndarray, "n label"] | None]:
    if val is None:
        return None, None
    with torch.no_grad():
        parts = np.array_split(val.embeddings, math.ceil(len(val.embeddings) / ROWS_PER_BATCH))
        logits = torch.cat([head(torch.tensor(part, device=device)) for part in parts])
        loss = loss_function(logits, torch.tensor(val.labels, dtype=torch.float32, device=device))
    return float(loss), logits.cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one CPU thread: sums in one order make the result independent of the number of cores; a second thread
    saves a quarter of the time on a quiet machine and costs several times as much on a busy one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _AdamW:
    """torch's AdamW in its functional form: the class `torch.optim.AdamW` imports torch's compiler, which takes
    seconds; tests hold both to the same weights."""

    def __init__(self, head: nn.Module, options: HeadConfig) -> None:
        self.parameters, self.options = list(head.parameters()), options
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


class BestEpoch:
    """The best epoch so far: highest macro AUROC and, at equal AUROC, lowest loss; lowest loss if there is no AUROC;
    the last epoch if there is no validation.

    Patience counts epochs since the metric itself improved; a lower loss at the same AUROC does not reset it.
    """

    def __init__(self, metric_name: str) -> None:
        self.metric_name = metric_name
        """`val_macro_auroc`, `val_loss` if no label has an AUROC on validation, `last_epoch` without validation."""
        self.epoch = 0
        self._best: tuple[float, float] | None = None
        self._waited = 0

    def metric_of(self, macro_auroc: float | None, val_loss: float | None) -> float | None:
        """The deciding figure of an epoch; None without validation."""
        return val_loss if macro_auroc is None else macro_auroc

    def offer(self, epoch: int, macro_auroc: float | None, val_loss: float | None) -> bool:
        """Whether this epoch is the best so far."""
        metric = self.metric_of(macro_auroc, val_loss)
        if metric is None or val_loss is None:
            self.epoch = epoch
            return True
        candidate = (-metric if self.metric_name == "val_loss" else metric, -val_loss)
        self._waited = 0 if self._best is None or candidate[0] > self._best[0] else self._waited + 1
        if self._best is not None and candidate <= self._best:
            return False
        self._best, self.epoch = candidate, epoch
        return True

    def is_stale(self, patience: int) -> bool:
        """Whether `patience` epochs (0: never) have passed without a better metric."""
        return 0 < patience <= self._waited
