"""Heads that look at the slices or patches of a case: slices, mil, gru and evidence, applied in numpy. No torch.

A slice gives a logit a label, and the slices of a case are pooled. `heads.modules` has the same for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.heads.architectures import Architecture, Case, Params, State, gelu

POOLS = ("lse", "topk", "max")
TOP_K = 3  # slices whose mean is the case, with `topk`
POSITION_MM = 40.0  # positions are divided by it, and squared as a second input
GRU_DIM = 64  # width of each direction

Values = Float32[np.ndarray, "slice ..."]
Logits = Float32[np.ndarray, "... label"]


def position_inputs(positions_mm: Float32[np.ndarray, " slice"]) -> Float32[np.ndarray, "slice 2"]:
    """What heads see of a position: it and its square, about 1 at 40 mm."""
    scaled = positions_mm / np.float32(POSITION_MM)
    return np.stack([scaled, np.square(scaled)], axis=1)


def sharpness(raw: Float32[np.ndarray, " label"]) -> Float32[np.ndarray, " label"]:
    """1 + softplus, as stored: the factor inside a log-sum-exp."""
    return np.asarray(1 + np.logaddexp(np.float32(0), raw))


def log_sum_exp(logits: Logits, sharp: Float32[np.ndarray, " label"], axis: int) -> Logits:
    """log(sum(exp(sharp * logit))) / sharp along an axis, without overflow."""
    highest = logits.max(axis=axis, keepdims=True)
    total = np.exp((logits - highest) * sharp).sum(axis=axis)
    return np.asarray(highest.squeeze(axis) + np.log(total) / sharp)


def pooled(slices: Float32[np.ndarray, "slice label"], pool: str, state: State) -> Float32[np.ndarray, " label"]:
    """The logits of a case from those of its slices."""
    if pool == "lse":
        found = log_sum_exp(slices, sharpness(state["case.sharpness"]), axis=0)
    elif pool == "topk":
        found = np.sort(slices, axis=0)[-TOP_K:].mean(axis=0)
    else:
        found = slices.max(axis=0)
    return np.asarray(found * np.logaddexp(np.float32(0), state["case.scale"]) + state["case.bias"])


def _case(state: State, params: Params, slices: Logits, positions_mm: Any, patches: Any = None) -> Case:
    if params["position"]:
        slices = slices + position_inputs(positions_mm) @ state["position.weight"].T
    return pooled(slices, params["pool"], state), slices, patches


def _linear(state: State, name: str, values: Values) -> Values:
    return np.asarray(values @ state[f"{name}.weight"].T + state[f"{name}.bias"])


def _scored(state: State, values: Values) -> Logits:
    """Linear(D, C), or Linear(D, hidden) -> GELU -> Linear(hidden, C)."""
    return _linear(state, "output", gelu(_linear(state, "hidden", values)) if "hidden.weight" in state else values)


def slices_case(state: State, params: Params, values: Values, positions_mm: Any) -> Case:
    """Each slice by itself."""
    return _case(state, params, _scored(state, values), positions_mm)


def mil_case(state: State, params: Params, values: Values, positions_mm: Any) -> Case:
    """Gated attention for each label (Ilse et al. 2018) over hidden units; slices are scored alone for ranking."""
    hidden = gelu(_linear(state, "hidden", values))
    gate = np.tanh(_linear(state, "tanh", hidden)) / (1 + np.exp(-_linear(state, "gate", hidden)))
    scores = _linear(state, "attention", gate)
    weights = np.exp(scores - scores.max(axis=0))
    weights /= weights.sum(axis=0)
    slices = _linear(state, "output", hidden)
    return np.asarray((weights * slices).sum(axis=0)), slices, None


def gru_case(state: State, params: Params, values: Values, positions_mm: Any) -> Case:
    """A bidirectional GRU over the slices, then a linear layer on each."""
    directions = [_gru(state, values, ""), _gru(state, values[::-1], "_reverse")[::-1]]
    return _case(state, params, _linear(state, "output", np.concatenate(directions, axis=1)), positions_mm)


def _gru(state: State, values: Values, suffix: str) -> Values:
    w_in, w_out, b_in, b_out = (
        state[f"gru.{name}_l0{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    inputs: Any = values @ w_in.T + b_in
    hidden: Any = np.zeros(GRU_DIM, dtype=np.float32)
    found = []
    for one in inputs:
        reset, update, new = np.split(one, 3)
        r, z, n = np.split(w_out @ hidden + b_out, 3)
        reset, update = 1 / (1 + np.exp(-(reset + r))), 1 / (1 + np.exp(-(update + z)))
        hidden = (1 - update) * np.tanh(new + reset * n) + update * hidden
        found.append(hidden)
    return np.stack(found)


def evidence_case(state: State, params: Params, values: Values, positions_mm: Any) -> Case:
    """Patch logits, whose log-sum-exp are the slice logits; the map of the head is the patch logits themselves."""
    patches = _scored(state, values)
    slices = log_sum_exp(patches, sharpness(state["slice.sharpness"]), axis=1) + state["slice.bias"]
    return _case(state, params, slices, positions_mm, patches)


def _shapes(kind: str, params: Params, dim: int, n: int) -> dict[str, tuple[int, ...]]:
    hidden = params["hidden_dim"] or (256 if kind == "mil" else 0)
    layers: dict[str, tuple[int, int]] = {"output": (n, hidden or dim)}
    if kind == "gru":
        layers = {"output": (n, 2 * GRU_DIM)}
    elif hidden:
        layers["hidden"] = (hidden, dim)
    if kind == "mil":
        layers |= {"tanh": (64, hidden), "gate": (64, hidden), "attention": (n, 64)}
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    found |= {f"{name}.bias": (shape[0],) for name, shape in layers.items()}
    if kind == "gru":
        for suffix in ("", "_reverse"):
            found |= {
                f"gru.weight_ih_l0{suffix}": (3 * GRU_DIM, dim),
                f"gru.weight_hh_l0{suffix}": (3 * GRU_DIM, GRU_DIM),
            }
            found |= {f"gru.bias_ih_l0{suffix}": (3 * GRU_DIM,), f"gru.bias_hh_l0{suffix}": (3 * GRU_DIM,)}
    if kind != "mil":
        found |= {"case.scale": (n,), "case.bias": (n,)}
        found |= {"case.sharpness": (n,)} if params["pool"] == "lse" else {}
        found |= {"position.weight": (n, 2)} if params["position"] else {}
    if kind == "evidence":
        found |= {"slice.sharpness": (n,), "slice.bias": (n,)}
    return found


def _has_valid(params: Params) -> bool:
    width, dropout = params.get("hidden_dim"), params.get("dropout")
    is_built = type(width) is int and isinstance(dropout, float) and 0 <= dropout < 1
    return is_built and params.get("pool") in POOLS and type(params.get("position")) is bool


def _module(kind: str, params: Params, input_dim: int, n_labels: int) -> Any:
    from meddinov3_stroke.heads.modules import BagHead

    return BagHead(kind, params, _shapes(kind, params, input_dim, n_labels))


BAG_HEADS: Mapping[str, Architecture] = {
    kind: Architecture(
        partial(_shapes, kind),
        None,
        partial(_module, kind),
        _has_valid,
        "patches" if kind == "evidence" else "slices",
        case,
    )
    for kind, case in (("slices", slices_case), ("mil", mil_case), ("gru", gru_case), ("evidence", evidence_case))
}
