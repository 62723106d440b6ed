"""The registry of heads. A new head is one entry of `ARCHITECTURES`; importing this module needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

if TYPE_CHECKING:
    from torch import nn

State = Mapping[str, np.ndarray]
Params = Mapping[str, Any]

LAYER_NORM_EPS = 1e-5
"""torch's default."""

LARGE = 1_000_000
"""From this many values on, importing scipy (about a second) costs less than `math.erf` one by one."""


class Architecture(NamedTuple):
    """A kind of head; every function takes the checkpoint's `params`."""

    build: Callable[[int, int, Params], nn.Module]
    """(input dim, labels, params) -> the torch module to train, with fresh weights."""
    shapes: Callable[[int, int, Params], dict[str, tuple[int, ...]]]
    """(input dim, labels, params) -> shape of each tensor of its state dict, in order."""
    logits: Callable[[State, Float64[np.ndarray, "n dim"]], Float64[np.ndarray, "n label"]]
    """(state dict, rows) -> logits, in numpy."""


def _build_linear(input_dim: int, n_labels: int, params: Params) -> nn.Module:
    from torch import nn

    return nn.Linear(input_dim, n_labels)


def _linear_shapes(input_dim: int, n_labels: int, params: Params) -> dict[str, tuple[int, ...]]:
    return {"weight": (n_labels, input_dim), "bias": (n_labels,)}


def _linear_logits(state: State, rows: np.ndarray) -> np.ndarray:
    return rows @ state["weight"].T.astype(np.float64) + state["bias"]


def _build_mlp(input_dim: int, n_labels: int, params: Params) -> nn.Module:
    from meddinov3_stroke.heads.modules import MLPHead

    return MLPHead(input_dim, params["hidden_dim"], n_labels, params["dropout"])


def _mlp_shapes(input_dim: int, n_labels: int, params: Params) -> dict[str, tuple[int, ...]]:
    hidden = params["hidden_dim"]
    return {
        "norm.weight": (input_dim,),
        "norm.bias": (input_dim,),
        "hidden.weight": (hidden, input_dim),
        "hidden.bias": (hidden,),
        "output.weight": (n_labels, hidden),
        "output.bias": (n_labels,),
    }


def _mlp_logits(state: State, rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    normalised = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
    normalised = normalised * state["norm.weight"] + state["norm.bias"]
    sums = normalised @ state["hidden.weight"].T.astype(np.float64) + state["hidden.bias"]
    units = 0.5 * sums * (1 + _erf(sums / math.sqrt(2)))
    return np.asarray(units @ state["output.weight"].T.astype(np.float64) + state["output.bias"])


def _erf(values: Float[np.ndarray, "n hidden"]) -> Float64[np.ndarray, "n hidden"]:
    if values.size >= LARGE:
        from scipy.special import erf

        return np.asarray(erf(values))
    return np.fromiter(map(math.erf, values.ravel().tolist()), np.float64, values.size).reshape(values.shape)


ARCHITECTURES: Mapping[str, Architecture] = {
    "linear": Architecture(_build_linear, _linear_shapes, _linear_logits),
    "mlp": Architecture(_build_mlp, _mlp_shapes, _mlp_logits),
}
"""Name, as stored in a checkpoint's `arch`, -> the head."""


def build_head(input_dim: int, hidden_dim: int, n_labels: int, dropout: float) -> nn.Module:
    """A torch head with fresh weights; exactly `nn.Linear(D, C)` if `hidden_dim` is 0 or less."""
    arch = "mlp" if hidden_dim > 0 else "linear"
    return ARCHITECTURES[arch].build(input_dim, n_labels, {"hidden_dim": hidden_dim, "dropout": dropout})
