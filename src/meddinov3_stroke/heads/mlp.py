"""The light heads: one linear layer, or LayerNorm and a hidden layer of GELU units; the MLP's gradients in closed form.

The norm's mean and variance depend on no weight, so rows are normalised once and for all; its gain g and shift s then
act on the hidden weights, (x*g + s) W^T = x (W*g)^T + W s, and no gradient is ever needed on the rows' side.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class MLPHead(nn.Sequential):
    """LayerNorm(D) -> Linear(D, hidden) -> GELU -> Dropout -> Linear(hidden, C); float32 [n, D] -> logits [n, C]."""

    norm: nn.LayerNorm
    hidden: nn.Linear
    output: nn.Linear

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


def build_head(input_dim: int, hidden_dim: int, n_labels: int, dropout: float) -> nn.Module:
    """A head with fresh weights from torch's generator; exactly `nn.Linear(D, C)` where `hidden_dim` is 0 or less."""
    if hidden_dim <= 0:
        return nn.Linear(input_dim, n_labels)
    return MLPHead(input_dim, hidden_dim, n_labels, dropout)


def normalised_rows(rows: Float[Tensor, "n dim"], eps: float) -> Float[Tensor, "n dim"]:
    """The rows with mean 0 and variance 1 each, as LayerNorm makes them before its gain and shift."""
    return functional.layer_norm(rows, rows.shape[1:], eps=eps)


class MLPWeights:
    """All weights of an MLP head, or their gradients, in one vector, so that the optimizer has one tensor to move."""

    def __init__(self, flat: Float[Tensor, " weight"], dim: int, n_hidden: int, n_labels: int) -> None:
        shapes = ((dim, n_hidden), (n_labels, n_hidden), (dim,), (dim,), (n_hidden,), (n_labels,))
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self.flat, self.sizes = flat, (dim, n_hidden, n_labels)
        self.hidden, self.output, self.gain, self.shift, self.hidden_bias, self.output_bias = views

    @classmethod
    def of(cls, head: MLPHead) -> MLPWeights:
        """A copy of the head's; `hidden` is [dim, hidden], the layout in which its gradient costs least."""
        parts = head.hidden.weight.T, head.output.weight, *(head.norm.weight, head.norm.bias)
        flat = torch.cat([part.detach().reshape(-1) for part in (*parts, head.hidden.bias, head.output.bias)])
        return cls(flat, head.hidden.in_features, head.hidden.out_features, head.output.out_features)

    def zeros(self) -> MLPWeights:
        """As many zeros, for gradients."""
        return MLPWeights(torch.zeros_like(self.flat), *self.sizes)

    def by_name(self) -> dict[str, Tensor]:
        """Views under the names and in the shapes of the head's own state."""
        return {
            "norm.weight": self.gain,
            "norm.bias": self.shift,
            "hidden.weight": self.hidden.T,
            "hidden.bias": self.hidden_bias,
            "output.weight": self.output,
            "output.bias": self.output_bias,
        }


class MLPPass:
    """A pass of normalised rows through the weights, and back; without autograd."""

    def __init__(
        self,
        weights: MLPWeights,
        normalised: Float[Tensor, "n dim"],
        dropout_factors: Float[Tensor, "n hidden"] | None = None,
    ) -> None:
        """`dropout_factors` are 0 or 1/(1-p) for each hidden unit; None is no dropout."""
        self.weights, self.normalised, self.factors = weights, normalised, dropout_factors
        bias = torch.addmv(weights.hidden_bias, weights.hidden.T, weights.shift)
        self.sums = torch.addmm(bias, normalised, weights.hidden * weights.gain[:, None])  # [n, hidden], before GELU
        units = functional.gelu(self.sums)
        self.units = units if dropout_factors is None else units.mul_(dropout_factors)
        self.logits: Float[Tensor, "n label"] = torch.addmm(weights.output_bias, self.units, weights.output.T)

    def gradients_into(self, by: MLPWeights, by_logits: Float[Tensor, "n label"]) -> None:
        """`by` holds the gradients of all weights for a loss whose gradient by the logits is given."""
        torch.mm(by_logits.T, self.units, out=by.output)
        torch.sum(by_logits, dim=0, out=by.output_bias)
        by_units = by_logits @ self.weights.output
        if self.factors is not None:
            by_units.mul_(self.factors)
        self._first_half_into(by, torch.ops.aten.gelu_backward(by_units, self.sums))

    def _first_half_into(self, by: MLPWeights, by_sums: Float[Tensor, "n hidden"]) -> None:
        weights = self.weights
        torch.sum(by_sums, dim=0, out=by.hidden_bias)
        torch.mv(weights.hidden, by.hidden_bias, out=by.shift)
        torch.mm(self.normalised.T, by_sums, out=by.hidden)  # by the scaled weights W*g
        torch.sum(by.hidden * weights.hidden, dim=1, out=by.gain)
        by.hidden.mul_(weights.gain[:, None]).addr_(weights.shift, by.hidden_bias)


def weighted_loss_gradient(
    logits: Float[Tensor, "n label"], targets: Float[Tensor, "n label"], pos_weight: Float[Tensor, " label"]
) -> Float[Tensor, "n label"]:
    """Of the mean weighted binary cross-entropy by the logits: (sigma(z) (1 - t + w t) - w t) over their number."""
    positives = targets * pos_weight
    return (torch.sigmoid(logits) * (1 - targets + positives) - positives) / logits.numel()
