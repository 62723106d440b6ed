"""Fitting any kind of head, many at a time: heads of one shape train together, by one batched product. Needs torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int8, Int64
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.config import POS_WEIGHT_CAP, HeadConfig
from meddinov3_stroke.errors import DatasetError, NonFiniteLoss
from meddinov3_stroke.heads.applying import apply_head
from meddinov3_stroke.heads.bags import position_inputs
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.heads.training import BestEpoch, check_config, positive_weights
from meddinov3_stroke.system.devices import available_cpus
from meddinov3_stroke.types import HeadData, HeadOutput

Score = Callable[[Int8[np.ndarray, "n label"], Float[np.ndarray, "n label"]], float | None]

MOST_TOGETHER = 32  # heads that train together; more gain nothing and take memory
SLICE_POS_WEIGHT_CAP = 10.0
ROWS_MEASURED = 5000  # slices whose mean and spread standardise the inputs of heads on slices and patches


@dataclass(frozen=True, eq=False)
class Fit:
    """One head to fit: on which rows, and which rows choose the epoch (None: the last one is kept)."""

    config: HeadConfig
    train: Int64[np.ndarray, " n"]
    val: Int64[np.ndarray, " m"] | None = None


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head in memory."""

    config: HeadConfig
    params: Mapping[str, Any]
    state: Mapping[str, np.ndarray]
    epoch: int  # whose tensors these are; 0 for heads that are fitted at once

    def outputs(self, data: HeadData, labels: tuple[str, ...]) -> HeadOutput:
        """What the head computes from the rows, in numpy."""
        return apply_head(self.config.arch, self.params, self.state, data, labels)


def fit_heads(fits: Sequence[Fit], data: HeadData, score: Score | None = None, device: str = "cpu") -> list[FittedHead]:
    """The fitted heads, in the order of `fits`; the same call gives the same heads.

    `score` judges logits of validation rows (higher is better); without it the last epoch is kept.

    A label that has no positive or no negative among the training rows of a fit is learned as it is there. Raises
    UsageError for a setting out of range, DatasetError where a head needs slices or patches that the data lack,
    NonFiniteLoss.
    """
    found: list[FittedHead | None] = [None] * len(fits)
    groups: dict[Any, list[int]] = defaultdict(list)
    for k, fit in enumerate(fits):
        check_config(fit.config)
        require_inputs(fit.config.arch, data)
        architecture = ARCHITECTURES[fit.config.arch]
        if architecture.fit is not None:
            rows = taken(data, fit.train)
            params, state = architecture.fit(fit.config.params, rows, _weights(rows.labels), fit.config.seed)
            found[k] = FittedHead(fit.config, params, state, 0)
        else:
            n_steps = -(-len(fit.train) // fit.config.batch_size)  # equal, so that none steps without rows
            groups[replace(fit.config, seed=0), n_steps].append(k)
    for (config, _), members in groups.items():
        most = 1 if config.arch == "gru" else MOST_TOGETHER  # torch cannot batch a recurrent layer over weights
        for start in range(0, len(members), most):
            some = members[start : start + most]
            for k, head in zip(some, _Group([fits[k] for k in some], data, score, device).train(), strict=True):
                found[k] = head
    return [head for head in found if head is not None]


def require_inputs(arch: str, data: HeadData) -> None:
    """Raise DatasetError unless the data are what a kind of head takes."""
    takes = ARCHITECTURES[arch].takes
    n_axes = {"rows": 2, "slices": 2, "patches": 3}[takes]
    if data.embeddings.ndim != n_axes or (data.starts is None) != (takes == "rows"):
        found = "one vector a case" if data.starts is None else f"slices of shape {data.embeddings.shape[1:]}"
        views = {"rows": "a pooled view", "slices": "a view of slices, such as cls", "patches": "a view of patches"}
        raise DatasetError(f"head {arch} takes {takes}; found {found}; give it {views[takes]}")


def taken(data: HeadData, rows: Int64[np.ndarray, " n"]) -> HeadData:
    """Some rows of the data, with their slices."""
    groups = None if data.groups is None else tuple(data.groups[k] for k in rows)
    pixels = None if data.pixels is None else tuple(data.pixels[k] for k in rows)
    labels = data.labels[rows]
    if data.starts is None:
        return replace(data, embeddings=data.embeddings[rows], labels=labels, groups=groups, pixels=pixels)
    slices = np.concatenate([np.arange(data.starts[k], data.starts[k + 1]) for k in rows])
    starts = np.cumsum([0, *(data.starts[rows + 1] - data.starts[rows])])
    about = {"slice_labels": data.slice_labels, "positions_mm": data.positions_mm}
    chosen: dict[str, Any] = {name: None if one is None else one[slices] for name, one in about.items()}
    return replace(
        data, embeddings=data.embeddings[slices], labels=labels, groups=groups, pixels=pixels, starts=starts, **chosen
    )


def _weights(labels: np.ndarray, cap: float = POS_WEIGHT_CAP) -> Float64[np.ndarray, " label"]:
    """Negatives per positive, at most the cap; 1 for a label without positives."""
    has_positive = labels.any(axis=0)
    return np.where(has_positive, positive_weights(np.where(has_positive, labels, 1), cap), 1.0)


def _slice_weights(labels: Int8[np.ndarray, "slice label"]) -> Float64[np.ndarray, " label"]:
    positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return np.asarray(np.clip(negative / np.maximum(positive, 1), 1, SLICE_POS_WEIGHT_CAP))


class _Group:
    """Heads of one shape: their weights are stacked, their batches differ."""

    def __init__(self, fits: Sequence[Fit], data: HeadData, score: Score | None, device: str) -> None:
        self.fits, self.data, self.device, self.config = fits, data, device, fits[0].config
        self.score = score
        architecture = ARCHITECTURES[self.config.arch]
        assert architecture.module is not None
        self.has_slices = architecture.takes != "rows"
        dim, n_labels = data.embeddings.shape[-1], data.labels.shape[1]
        modules = []
        for fit in fits:
            torch.manual_seed(fit.config.seed)
            modules.append(architecture.module(fit.config.params, dim, n_labels).to(device))
        self.base = modules[0]
        self.weights, _ = torch.func.stack_module_state(modules) if len(modules) > 1 else (dict(_own(modules[0])), {})
        self.embeddings = torch.from_numpy(np.ascontiguousarray(data.embeddings))
        self.scale = None if data.scale is None else torch.from_numpy(data.scale)
        labels = data.labels.astype(np.float32)
        self.labels = torch.from_numpy(labels)
        per_head = [_weights(data.labels[fit.train]) for fit in fits]
        self.pos_weight = torch.tensor(np.stack(per_head), dtype=torch.float32, device=device)
        if self.has_slices:
            self._prepare_slices()

    def _prepare_slices(self) -> None:
        data = self.data
        assert data.starts is not None
        means, spreads = zip(*(_standard(taken(data, fit.train)) for fit in self.fits), strict=True)
        self.mean, self.spread = np.stack(means), np.stack(spreads)
        n, n_labels = len(data.embeddings), data.labels.shape[1]
        unknown = np.full((n, n_labels), -1, dtype=np.int8)
        self.slice_labels = torch.from_numpy(unknown if data.slice_labels is None else data.slice_labels)
        positions = np.zeros(n, dtype=np.float32) if data.positions_mm is None else data.positions_mm
        self.positions = torch.from_numpy(position_inputs(positions))
        of_training = [taken(data, fit.train).slice_labels for fit in self.fits]
        ratios = np.stack([np.ones(n_labels) if one is None else _slice_weights(one) for one in of_training])
        self.slice_weight = torch.tensor(ratios, dtype=torch.float32, device=self.device)[:, None, None]

    def train(self) -> list[FittedHead]:
        """The heads, each at its best epoch by validation, or the last."""
        parameters = [one.detach().clone().requires_grad_() for one in self.weights.values()]
        self.weights = dict(zip(self.weights, parameters, strict=True))
        optimizer = torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay)
        order = [torch.Generator().manual_seed(fit.config.seed) for fit in self.fits]
        best = [BestEpoch("last_epoch" if self._is_last(fit) else "val_macro_auroc") for fit in self.fits]
        kept: list[dict[str, np.ndarray]] = [{} for _ in self.fits]
        threads = torch.get_num_threads()
        torch.set_num_threads(available_cpus())
        torch.manual_seed(self.config.seed)
        try:
            for epoch in range(1, self.config.epochs + 1):
                self.base.train()
                for rows, weight in self._batches(order):
                    optimizer.zero_grad(set_to_none=True)
                    loss = self._loss(rows, weight)
                    if not bool(torch.isfinite(loss)):
                        raise NonFiniteLoss(
                            f"loss is {float(loss.detach())} in epoch {epoch} of {len(self.fits)} heads of kind "
                            f"{self.config.arch}; found --lr {self.config.lr:g}: try a smaller one"
                        )
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                for k, fit in enumerate(self.fits):
                    if self._is_last(fit) and epoch < self.config.epochs:
                        continue
                    state = self._state(k)
                    is_best = best[k].offer(epoch, *((None, None) if self._is_last(fit) else self._judged(state, fit)))
                    kept[k] = state if is_best else kept[k]
        finally:
            torch.set_num_threads(threads)
        pairs = zip(self.fits, kept, best, strict=True)
        return [FittedHead(fit.config, fit.config.params, state, one.epoch) for fit, state, one in pairs]

    def _batches(self, order: Sequence[torch.Generator]) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows [head, batch] of the data, 0 or 1 for rows that fill a head's last batch or count)."""
        size = self.config.batch_size
        shuffled = [
            torch.from_numpy(fit.train)[torch.randperm(len(fit.train), generator=one)]
            for fit, one in zip(self.fits, order, strict=True)
        ]
        n_steps = -(-max(map(len, shuffled)) // size)
        for step in range(n_steps):
            parts = [one[step * size : (step + 1) * size] for one in shuffled]
            longest = max(map(len, parts))
            rows = torch.stack(
                [
                    functional.pad(part, (0, longest - len(part)), value=int(one[0]))
                    for part, one in zip(parts, shuffled, strict=True)
                ]
            )
            counts = torch.tensor([len(part) for part in parts])
            yield rows, (torch.arange(longest) < counts[:, None]).float()

    def _loss(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Sum over the heads of their mean losses: no gradient crosses from one to another."""
        weight, device = weight.to(self.device), self.device
        total = weight.sum(dim=1).clamp(min=1)
        target = self.labels[rows].to(device)
        if not self.has_slices:
            logits = self._forward(self.embeddings[rows].to(device).float())
            each = _bce(logits, target, self.pos_weight[:, None]).mean(dim=-1)
            return ((each * weight).sum(dim=1) / total).sum()
        values, mask, positions, slice_target = self._padded(rows)
        logits, slices = self._forward(values, mask, positions)
        each = _bce(logits, target, self.pos_weight[:, None]).mean(dim=-1)
        loss = ((each * weight).sum(dim=1) / total).sum()
        known = ((slice_target >= 0) & mask[..., None]).float() * weight[..., None, None]
        if bool(known.any()):
            each = _bce(slices, slice_target.clamp(min=0).float(), self.slice_weight) * known
            loss = loss + (each.sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp(min=1)).sum()
        return loss

    def _padded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        starts = torch.from_numpy(np.asarray(self.data.starts))
        first, n = starts[rows], starts[rows + 1] - starts[rows]
        steps = torch.arange(int(n.max()))
        mask = steps < n[..., None]
        index = (first[..., None] + steps).clamp(max=len(self.embeddings) - 1)
        values = self.embeddings[index].to(self.device).float()
        if self.scale is not None:
            values *= self.scale.to(self.device)
        for one, mean, spread in zip(values, self.mean, self.spread, strict=True):
            one.sub_(torch.from_numpy(mean).to(one)).div_(torch.from_numpy(spread).to(one))
        return (
            values,
            mask.to(self.device),
            self.positions[index].to(self.device),
            self.slice_labels[index].to(self.device),
        )

    def _forward(self, *inputs: Tensor) -> Any:
        if len(self.fits) == 1:
            found = torch.func.functional_call(self.base, self.weights, tuple(one[0] for one in inputs))
            return tuple(one[None] for one in found) if isinstance(found, tuple) else found[None]

        def one(weights: dict[str, Tensor], *mine: Tensor) -> Any:
            return torch.func.functional_call(self.base, weights, mine)

        return torch.func.vmap(one, randomness="different")(self.weights, *inputs)

    def _state(self, k: int) -> dict[str, np.ndarray]:
        """The tensors of a head, for inputs as they are: standardisation goes into the first layer."""
        single = len(self.fits) == 1
        state = {name: (one if single else one[k]).detach().cpu().numpy() for name, one in self.weights.items()}
        for weight, bias in _first_layers(state) if self.has_slices else ():
            state[weight] = state[weight] / self.spread[k]
            state[bias] = state[bias] - state[weight] @ self.mean[k]
        return {name: np.array(one, dtype=np.float32) for name, one in state.items()}

    def _is_last(self, fit: Fit) -> bool:
        return fit.val is None or self.score is None

    def _judged(self, state: Mapping[str, np.ndarray], fit: Fit) -> tuple[float | None, float]:
        """(score, loss) on the validation rows; the loss decides where the score is undefined, and between equals."""
        assert fit.val is not None
        assert self.score is not None
        val = taken(self.data, fit.val)
        names = tuple(map(str, range(val.labels.shape[1])))
        logits = apply_head(self.config.arch, self.config.params, state, val, names).logits
        target = torch.from_numpy(val.labels.astype(np.float32))
        loss = functional.binary_cross_entropy_with_logits(torch.from_numpy(logits).float(), target)
        return self.score(val.labels, logits), float(loss)


def _standard(data: HeadData) -> tuple[Float32[np.ndarray, " dim"], Float32[np.ndarray, " dim"]]:
    """Mean and standard deviation of each column, over evenly spaced slices or patches."""
    rows = data.values(slice(None, None, -(-len(data.embeddings) // ROWS_MEASURED)))
    rows = rows.reshape(-1, rows.shape[-1])
    spread = rows.std(axis=0)
    return rows.mean(axis=0), np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, 1.0).astype(np.float32)


def _first_layers(state: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    if "gru.weight_ih_l0" in state:
        return [(f"gru.weight_ih_l0{end}", f"gru.bias_ih_l0{end}") for end in ("", "_reverse")]
    name = "hidden" if "hidden.weight" in state else "output"
    return [(f"{name}.weight", f"{name}.bias")]


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_parameters()


def _bce(logits: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
