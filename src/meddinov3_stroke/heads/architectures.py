"""What a kind of head is (`heads.registry` lists them), the MLP, and the calibration of logits: numpy to apply heads,
torch to train them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from meddinov3_stroke.types import Calibrated, Calibrator, HeadData, sigmoid

if TYPE_CHECKING:
    from torch import nn

Params = Mapping[str, Any]  # hyper-parameters that determine tensors and forward pass; stored in the checkpoint
State = Mapping[str, np.ndarray]  # tensor name -> float32 array
Case = tuple[
    Float32[np.ndarray, " label"], Float32[np.ndarray, "slice label"], Float32[np.ndarray, "slice patch label"] | None
]
"""Logits of a case, of its slices and, of heads that look at patches, of those."""
_LAYER_NORM_EPS = np.float32(1e-5)  # default of `torch.nn.LayerNorm`


@dataclass(frozen=True)
class Architecture:
    """One kind of head; `shapes` and `module` take (params, input_dim, n_labels)."""

    shapes: Callable[[Params, int, int], dict[str, tuple[int, ...]]]  # shape of every tensor
    logits: Callable[[State, Float32[np.ndarray, "n dim"]], Float32[np.ndarray, "n label"]] | None
    """Of heads on rows: the forward pass in numpy, without dropout."""
    module: Callable[[Params, int, int], nn.Module] | None
    """A freshly initialised torch module with tensors of the same names; None for heads that are fitted at once."""
    has_valid: Callable[[Params], bool]  # whether the parameters are complete and in range
    takes: Literal["rows", "slices", "patches"] = "rows"
    """One vector a case, or a vector, or a vector of each patch, of every slice."""
    case: Callable[[State, Params, Float32[np.ndarray, "slice ..."], Any], Case] | None = None
    """Of heads on slices or patches: the forward pass of one case in numpy, with the positions of its slices in mm."""
    fit: Callable[[Params, HeadData, Float64[np.ndarray, " label"], int], tuple[Params, State]] | None = None
    """Of heads without a module: parameters and tensors for some rows, weights of positives, and a seed."""


def build_head(input_dim: int, hidden_dim: int, n_labels: int, dropout: float) -> nn.Module:
    """A torch head initialised from torch's generator; exactly `Linear(D, C)` if `hidden_dim` is 0 or less."""
    return _mlp_module({"hidden_dim": hidden_dim, "dropout": dropout}, input_dim, n_labels)


def _mlp_module(params: Params, input_dim: int, n_labels: int) -> nn.Module:
    from torch import nn

    from meddinov3_stroke.heads.training import MLPHead

    if params["hidden_dim"] <= 0:
        return nn.Linear(input_dim, n_labels)
    return MLPHead(input_dim, params["hidden_dim"], n_labels, params["dropout"])


def _mlp_shapes(params: Params, input_dim: int, n_labels: int) -> dict[str, tuple[int, ...]]:
    if (hidden_dim := params["hidden_dim"]) <= 0:
        return {"weight": (n_labels, input_dim), "bias": (n_labels,)}
    return {
        "norm.weight": (input_dim,),
        "norm.bias": (input_dim,),
        "hidden.weight": (hidden_dim, input_dim),
        "hidden.bias": (hidden_dim,),
        "output.weight": (n_labels, hidden_dim),
        "output.bias": (n_labels,),
    }


def _mlp_logits(state: State, rows: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n label"]:
    if "weight" in state:
        return np.asarray(rows @ state["weight"].T + state["bias"])
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normed = centred / np.sqrt(variance + _LAYER_NORM_EPS) * state["norm.weight"] + state["norm.bias"]
    hidden = normed @ state["hidden.weight"].T + state["hidden.bias"]
    return np.asarray(gelu(hidden) @ state["output.weight"].T + state["output.bias"])


def gelu(x: Float32[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """x times the normal distribution function, as torch's default."""
    erf: Any = np.vectorize(math.erf, otypes=[np.float32])
    if x.size > 1 << 20:  # scipy takes half a second to import and a tenth of the time of math.erf
        import scipy.special

        erf = scipy.special.erf
    return np.asarray(x * np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5)))))


def _has_valid_mlp_params(params: Params) -> bool:
    hidden_dim, dropout = params.get("hidden_dim"), params.get("dropout")
    return type(hidden_dim) is int and isinstance(dropout, float) and 0 <= dropout < 1


MLP = Architecture(_mlp_shapes, _mlp_logits, _mlp_module, _has_valid_mlp_params)
"""LayerNorm(D) -> Linear(D, hidden_dim) -> GELU -> Dropout -> Linear(hidden_dim, C), or Linear(D, C) if `hidden_dim` is
0 or less."""


@dataclass(frozen=True, eq=False)
class LabelCalibration:
    """What was fitted for a label on validation patients."""

    calibrator: Calibrator | None
    refits: Float64[np.ndarray, "refit parameter"]  # as `metrics.calibrate` gives them
    figures: Mapping[str, Any]
    """Counts, Brier score and ECE before and after; `reason` where there is no calibrator."""

    def apply(self, logits: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The calibrated probabilities of some logits; without a calibrator the probabilities as they are."""
        return (self.calibrator or Calibrator("none")).apply(logits)

    def about(self) -> dict[str, Any]:
        """As JSON, without the parameters."""
        return {"method": self.calibrator and self.calibrator.kind, **self.figures}

    def of(self, logit: float) -> Calibrated:
        """The calibrated probability of a logit."""
        if self.calibrator is None:
            return Calibrated(reason=self.figures["reason"])
        value = float(self.calibrator.apply(np.array([logit]))[0])
        if self.calibrator.knots:
            places = [place for place, _ in self.calibrator.knots]
            each = np.array([np.interp(logit, places, row) for row in self.refits])
        else:
            each = sigmoid(self.refits @ [logit, 1.0])
        low, high = np.quantile(each, [0.025, 0.975]).tolist()
        return Calibrated(value, low, high, self.calibrator.kind)

    def document(self) -> dict[str, Any]:
        """As stored: plain values and arrays."""
        return {"calibrator": self.calibrator and asdict(self.calibrator), "refits": self.refits, **self.figures}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LabelCalibration:
        """The calibration stored in a checkpoint; raises ValueError, KeyError or TypeError where it is damaged."""
        figures = dict(document)
        found, refits = figures.pop("calibrator"), figures.pop("refits")
        calibrator = found and Calibrator(**{**found, "knots": tuple((float(z), float(p)) for z, p in found["knots"])})
        n_parameters = (len(calibrator.knots) or 2) if calibrator else 2
        numbers: Any = np.ravel([*calibrator.knots, (calibrator.slope, calibrator.intercept)]) if calibrator else []
        if refits.ndim != 2 or refits.shape[1] != n_parameters or not np.isfinite([*numbers, *refits.ravel()]).all():
            raise ValueError("refits")
        if (calibrator is None) == (len(refits) > 0) or (calibrator is None and not isinstance(figures["reason"], str)):
            raise ValueError("reason")
        return cls(calibrator, refits, figures)
