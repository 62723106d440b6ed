"""The heads of `heads.bags` as torch modules, on padded batches of cases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from meddinov3_stroke.heads.architectures import Params
from meddinov3_stroke.heads.bags import GRU_DIM, TOP_K

START_SCALE, START_SHARPNESS = 0.5413, 0.5413  # softplus of them is 1
RARE_LOGIT = -3.0  # where logits begin: most patches and slices show nothing


class _Vectors(nn.Module):
    """One number for each label, under names."""

    scale: Tensor
    sharpness: Tensor
    bias: Tensor

    def __init__(self, starts: Mapping[str, float], n_labels: int) -> None:
        super().__init__()
        for name, start in starts.items():
            self.register_parameter(name, nn.Parameter(torch.full((n_labels,), start)))


class BagHead(nn.Module):
    """[case, slice, *dim] and a mask of the slices -> (case logits, slice logits); as `heads.bags` describes."""

    hidden: nn.Linear
    output: nn.Linear
    tanh: nn.Linear
    gate: nn.Linear
    attention: nn.Linear
    slice: _Vectors
    case: _Vectors

    def __init__(self, kind: str, params: Params, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.kind, self.pool = kind, params["pool"]
        self.dropout = nn.Dropout(params["dropout"])
        n_labels = shapes["output.bias"][0]
        for name in ("hidden", "tanh", "gate", "attention", "output"):
            if f"{name}.bias" in shapes:
                n, dim = shapes[f"{name}.weight"]
                self.add_module(name, nn.Linear(dim, n))
        if kind == "gru":
            dim = shapes["gru.weight_ih_l0"][1]
            self.gru = nn.GRU(dim, GRU_DIM, batch_first=True, bidirectional=True)
        vectors: dict[str, dict[str, float]] = {}
        for name in shapes:
            group, _, field = name.partition(".")
            if group in ("case", "slice"):
                start = {"scale": START_SCALE, "sharpness": START_SHARPNESS}.get(field, 0.0)
                vectors.setdefault(group, {})[field] = start
        for group, starts in vectors.items():
            self.add_module(group, _Vectors(starts, n_labels))
        if "position.weight" in shapes:
            self.position = nn.Linear(2, n_labels, bias=False)
            nn.init.zeros_(self.position.weight)
        nn.init.constant_(self.output.bias, RARE_LOGIT)

    def forward(
        self,
        values: Float[Tensor, "case slice ..."],
        mask: Bool[Tensor, "case slice"],
        positions: Float[Tensor, "case slice 2"],
    ) -> tuple[Float[Tensor, "case label"], Float[Tensor, "case slice label"]]:
        """Logits of cases and of slices; those of padding mean nothing."""
        if self.kind == "mil":
            return self._attended(functional.gelu(self.hidden(values)), mask)
        slices = self._recurrent(values, mask) if self.kind == "gru" else self._scored(values)
        if self.kind == "evidence":
            sharp = _sharpness(self.slice.sharpness)
            slices = torch.logsumexp(slices * sharp, dim=2) / sharp + self.slice.bias
        if hasattr(self, "position"):
            slices = slices + self.position(positions)
        case = self._pooled(slices, mask) * functional.softplus(self.case.scale) + self.case.bias
        return case, slices

    def _scored(self, values: Tensor) -> Tensor:
        hidden = functional.gelu(self.hidden(values)) if hasattr(self, "hidden") else values
        scored: Tensor = self.output(self.dropout(hidden))
        return scored

    def _attended(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.dropout(hidden)
        scores = self.attention(torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.gate(hidden)))
        weights = scores.masked_fill(~mask[..., None], -torch.inf).softmax(dim=1)
        slices = self.output(hidden)
        return (weights * slices).sum(dim=1), slices

    def _recurrent(self, values: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(dim=1)
        packed = nn.utils.rnn.pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = self.gru(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=values.shape[1])
        scored: Tensor = self.output(self.dropout(padded))
        return scored

    def _pooled(self, slices: Tensor, mask: Tensor) -> Tensor:
        is_padding = ~mask[..., None]
        if self.pool == "lse":
            sharp = _sharpness(self.case.sharpness)
            return torch.logsumexp((slices * sharp).masked_fill(is_padding, -torch.inf), dim=1) / sharp
        shown = slices.masked_fill(is_padding, -torch.inf)
        if self.pool == "max":
            return shown.amax(dim=1)
        highest = shown.topk(min(TOP_K, shown.shape[1]), dim=1).values
        known = highest > -torch.inf
        return torch.where(known, highest, 0.0).sum(dim=1) / known.sum(dim=1)


def _sharpness(raw: Tensor) -> Tensor:
    return 1 + functional.softplus(raw)
