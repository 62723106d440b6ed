"""Training of a head in memory: autograd, AdamW, weighted binary cross-entropy, one seed. Needs torch."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8
from torch import Tensor, nn
from torch.optim.adamw import adamw

from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import NonFiniteLoss, UsageError
from meddinov3_stroke.heads.applying import LEAST_ROWS, ROWS_PER_BATCH
from meddinov3_stroke.heads.checkpoint import TrainingDistribution
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.system.provenance import seed_everything
from meddinov3_stroke.types import HeadData

MOST_ROWS = 20_000
"""Training rows above which the distribution is fitted to evenly spaced ones."""

MAX_COMPONENTS, ROWS_PER_COMPONENT = 16, 8
N_FOLDS = 5
"""Consecutive parts of the training rows, each held out once; series of a patient are usually neighbours."""

LIMIT_QUANTILE, LIMIT_MARGIN = 0.999, 1.1
"""The limit is this quantile of the held-out distances (the largest, below 1,000 rows) times the margin."""

_LARGEST_LR = 1e3  # Adam moves each weight by about this much per step; a larger value is a typing error


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


@dataclass(frozen=True, eq=False)
class EpochResult:
    """State after an epoch; `head` changes when the next epoch is requested."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's rows, with dropout and with weights that change during the epoch
    val_loss: float | None  # the same weighted loss on the validation rows; None without validation
    val_logits: Float32[np.ndarray, "n label"] | None
    head: nn.Module


class BestEpoch:
    """The best epoch so far by `metric_name`: `val_macro_auroc` (the highest, then the lowest loss), `val_loss` (the
    lowest) or `last_epoch`, which takes every epoch and never becomes stale.

    Patience counts epochs since the metric improved; a lower loss at equal AUROC does not reset it.
    """

    def __init__(self, metric_name: str) -> None:
        self.metric_name, self.epoch = metric_name, 0
        self._best, self._waited = (-math.inf, -math.inf), 0

    def offer(self, epoch: int, macro_auroc: float | None, val_loss: float | None) -> bool:
        """Whether this epoch is the best so far."""
        if val_loss is not None:
            candidate = (-val_loss if macro_auroc is None else macro_auroc, -val_loss)
            self._waited = 0 if candidate[0] > self._best[0] else self._waited + 1
            if candidate <= self._best:
                return False
            self._best = candidate
        self.epoch = epoch
        return True

    def is_stale(self, patience: int) -> bool:
        """Whether `patience` epochs (0: never) have passed without improvement."""
        return 0 < patience <= self._waited


def check_config(config: HeadConfig) -> None:
    """Raise `UsageError`, naming the flag, for a value out of its range."""
    ranges = {
        "epochs": (config.epochs >= 1, "at least 1"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "lr": (0 < config.lr <= _LARGEST_LR, f"a positive number, at most {_LARGEST_LR:g}"),
        "weight_decay": (0 <= config.weight_decay < math.inf, "0 or more"),
        "dropout": (0 <= config.dropout < 1, "a number in [0, 1)"),
        "patience": (config.patience >= 0, "0 (off) or more"),
        "seed": (0 <= config.seed < 2**63, "an integer from 0"),
    }
    for name, (holds, expected) in ranges.items():
        if not holds:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected {expected}")


def positive_weights(labels: Int8[np.ndarray, "n label"], cap: float) -> Float64[np.ndarray, " label"]:
    """Negatives per positive for each label, at most `cap`; every label needs a positive."""
    n_positive = labels.sum(axis=0, dtype=np.int64)
    return np.asarray(np.minimum((len(labels) - n_positive) / n_positive, cap))


def train_epochs(
    train: HeadData,
    val: HeadData | None,
    config: HeadConfig,
    pos_weight: Float64[np.ndarray, " label"],
    device: torch.device | str = "cpu",
) -> Iterator[EpochResult]:
    """Yields after each epoch; the same seed and data give bit-identical weights on any number of CPU cores.

    Raises NonFiniteLoss for a NaN or infinite loss; names epoch and batch.
    """
    seed_everything(config.seed)
    dim, n_labels = train.embeddings.shape[1], train.labels.shape[1]
    make = ARCHITECTURES[config.arch].module
    if make is None or ARCHITECTURES[config.arch].takes != "rows":
        raise UsageError(f"head {config.arch}: this command trains mlp heads; use sweep")
    head = make(config.params, dim, n_labels).to(device)
    loss_function = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight, dtype=torch.float32, device=device))
    order = torch.Generator().manual_seed(config.seed)
    rows, targets = _tensors(train, device)
    held_out = None if val is None else _tensors(val, device)
    optimizer = _AdamW(head.parameters(), config)
    for epoch in range(1, config.epochs + 1):
        batches = torch.randperm(len(targets), generator=order).to(device).split(config.batch_size)  # type: ignore[no-untyped-call]
        with _one_thread():
            head.train()
            total = 0.0
            for number, batch in enumerate(batches, start=1):
                loss = loss_function(head(rows.index_select(0, batch)), targets.index_select(0, batch))
                value = float(loss.detach())
                _require_finite(value, f"epoch {epoch}, batch {number} of {len(batches)}", config.lr)
                optimizer.step(torch.autograd.grad(loss, optimizer.parameters))
                total += value * len(batch)
            head.eval()
            val_loss, logits = (None, None) if held_out is None else _validate(head, loss_function, *held_out)
        total_weight = sum(float(tensor.detach().sum()) for tensor in optimizer.parameters)
        _require_finite(total_weight, f"epoch {epoch}, after its last batch", config.lr, "sum of the weights")
        if val_loss is not None:
            _require_finite(val_loss, f"validation of epoch {epoch}", config.lr)
        yield EpochResult(epoch, total / len(targets), val_loss, logits, head)


def _tensors(data: HeadData, device: torch.device | str) -> tuple[Tensor, Tensor]:
    return torch.tensor(data.embeddings, device=device), torch.tensor(data.labels, dtype=torch.float32, device=device)


def _validate(
    head: nn.Module, loss_function: nn.BCEWithLogitsLoss, rows: Tensor, targets: Tensor
) -> tuple[float, Float32[np.ndarray, "n label"]]:
    with torch.no_grad():
        logits = torch.cat([head(part) for part in rows.split(ROWS_PER_BATCH)])  # type: ignore[no-untyped-call]
        return float(loss_function(logits, targets)), logits.cpu().numpy()


def fit_distribution(rows: Float32[np.ndarray, "n dim"]) -> TrainingDistribution | None:
    """The distribution of training rows; None below `LEAST_ROWS`, or if the rows do not vary."""
    if len(rows) < LEAST_ROWS or not np.ptp(rows, axis=0).any():
        return None
    rows = rows[:: -(-len(rows) // MOST_ROWS)]
    folds = np.array_split(np.arange(len(rows)), N_FOLDS)
    rank = min(MAX_COMPONENTS, len(rows) // ROWS_PER_COMPONENT, rows.shape[1] - 1)
    with _one_thread(), np.errstate(all="ignore"):  # what is not finite is no rule
        fitted = [_gaussian(np.delete(rows, fold, axis=0), rank).distances(rows[fold]) for fold in folds]
        limit = float(np.quantile(np.concatenate(fitted), LIMIT_QUANTILE, method="higher")) * LIMIT_MARGIN
        found = replace(_gaussian(rows, rank), limit=float(f"{limit:.6g}"))  # numpy's threads change the last digits
    return found if found.is_sound else None


def _gaussian(rows: Float32[np.ndarray, "n dim"], n_components: int) -> TrainingDistribution:
    mean = rows.mean(axis=0, dtype=np.float64)
    away = torch.from_numpy(rows - mean)
    n, width = away.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, components = torch.svd_lowrank(away, q=min(n_components + 8, width), niter=4)
    variances = np.square(singular.numpy()[:n_components]) / n
    total = float(away.square().sum() / n)
    residual = max((total - float(variances.sum())) / (width - n_components), 1e-6 * total / width)
    return TrainingDistribution(
        mean=mean.astype(np.float32),
        components=components.numpy()[:, :n_components].astype(np.float32),
        variances=np.maximum(variances, residual).astype(np.float32),
        residual_variance=residual,
        limit=math.inf,
        n_rows=n,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    # a fixed order of summation makes the result independent of the number of cores, and a second thread hardly helps
    # heads this small
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _AdamW:
    """`torch.optim.adamw`, the functional form of `torch.optim.AdamW`: constructing the class imports torch's compiler,
    which takes seconds."""

    def __init__(self, parameters: Iterable[Tensor], config: HeadConfig) -> None:
        self.parameters = list(parameters)
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.n_steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "eps": 1e-8}
        self.settings |= {"beta1": 0.9, "beta2": 0.999, "amsgrad": False, "fused": True}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the parameters in place, with the defaults of `torch.optim.AdamW`."""
        gradients, options = list(gradients), self.settings
        adamw(self.parameters, gradients, self.means, self.squares, [], self.n_steps, maximize=False, **options)


def _require_finite(value: float, where: str, lr: float, name: str = "loss") -> None:
    if not math.isfinite(value):
        raise NonFiniteLoss(
            f"{name} is {value} in {where}; training stopped and the last good checkpoint is kept; "
            f"found --lr {lr:g}: try a smaller one, and check the embeddings for extreme values"
        )
