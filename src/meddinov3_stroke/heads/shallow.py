"""Heads on one vector a case that are fitted at once: a linear probe with a cost sweep, and k nearest neighbours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64

from meddinov3_stroke.heads.architectures import Architecture, Params, State
from meddinov3_stroke.types import HeadData, logit, sigmoid

COSTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared length of the coefficients against the mean loss; the best one held out is taken."""
N_FOLDS, MOST_STEPS = 3, 100

NEIGHBOURS = 20
MOST_ROWS = 20_000  # training rows that a knn head keeps


def fit_probe(
    params: Params, data: HeadData, pos_weight: Float64[np.ndarray, " label"], seed: int
) -> tuple[Params, State]:
    """Logistic regression on standardised columns; its cost by cross-validation that keeps patients together."""
    rows = data.values(slice(None)).astype(np.float64)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread < 1e-6 * max(float(spread.max()), 1e-12)] = np.inf  # columns that do not vary
    scaled, labels = (rows - mean) / spread, data.labels.astype(np.float64)
    folds = _folds(data, seed)
    losses = np.zeros(len(COSTS))
    for fold in range(N_FOLDS):
        held = folds == fold
        weights = None
        for k, cost in reversed(list(enumerate(COSTS))):  # from stiff to loose, each from the last
            weights = _logistic(scaled[~held], labels[~held], pos_weight, cost, weights)
            losses[k] += _loss(weights, scaled[held], labels[held], pos_weight)
    best = _logistic(scaled, labels, pos_weight, COSTS[int(np.argmin(losses))], None)
    weight = best[:-1].T / spread
    return params, {"weight": weight.astype(np.float32), "bias": (best[-1] - weight @ mean).astype(np.float32)}


def _folds(data: HeadData, seed: int) -> Int64[np.ndarray, " n"]:
    groups = np.unique(np.array(data.groups or range(len(data.labels))).astype(str), return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    return np.asarray(order[groups] % N_FOLDS)


def _loss(
    weights: Float64[np.ndarray, "dim_and_1 label"],
    rows: Float64[np.ndarray, "n dim"],
    labels: Float64[np.ndarray, "n label"],
    pos_weight: Float64[np.ndarray, " label"],
) -> float:
    logits = rows @ weights[:-1] + weights[-1]
    each = pos_weight * labels * np.logaddexp(0, -logits) + (1 - labels) * np.logaddexp(0, logits)
    return float(each.sum() / max(len(rows), 1))


def _logistic(
    rows: Float64[np.ndarray, "n dim"],
    labels: Float64[np.ndarray, "n label"],
    pos_weight: Float64[np.ndarray, " label"],
    cost: float,
    start: Float64[np.ndarray, "dim_and_1 label"] | None,
) -> Float64[np.ndarray, "dim_and_1 label"]:
    from scipy.optimize import minimize

    shape = (rows.shape[1] + 1, labels.shape[1])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        chances = sigmoid(rows @ weights[:-1] + weights[-1])
        slope = (pos_weight * labels * (chances - 1) + (1 - labels) * chances) / len(rows)
        gradient = np.vstack([rows.T @ slope + cost * weights[:-1], slope.sum(axis=0)])
        value = _loss(weights, rows, labels, pos_weight) + cost / 2 * float(np.square(weights[:-1]).sum())
        return value, gradient.ravel()

    begin = np.zeros(shape) if start is None else start
    found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS})
    return np.asarray(found.x.reshape(shape))


def _linear_logits(state: State, rows: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n label"]:
    return np.asarray(rows @ state["weight"].T + state["bias"])


def fit_knn(
    params: Params, data: HeadData, pos_weight: Float64[np.ndarray, " label"], seed: int
) -> tuple[Params, State]:
    """The training rows, evenly spaced ones above `MOST_ROWS`, at length 1, and their labels."""
    chosen = slice(None, None, -(-len(data.labels) // MOST_ROWS))
    rows = _directions(data.values(chosen))
    return {**params, "n_rows": len(rows)}, {"rows": rows, "labels": data.labels[chosen].astype(np.float32)}


def _directions(rows: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _knn_logits(state: State, rows: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n label"]:
    """Logit of the share of positives among the nearest by cosine, with half a positive and half a negative added."""
    k = min(NEIGHBOURS, len(state["rows"]))
    nearest = np.argpartition(-(_directions(rows) @ state["rows"].T), k - 1, axis=1)[:, :k]
    return logit((state["labels"][nearest].sum(axis=1) + 0.5) / (k + 1)).astype(np.float32)


def _has_valid(params: Params) -> bool:
    return type(params.get("hidden_dim")) is int and isinstance(params.get("dropout"), float)


def _probe_shapes(params: Params, input_dim: int, n_labels: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (n_labels, input_dim), "bias": (n_labels,)}


def _knn_shapes(params: Params, input_dim: int, n_labels: int) -> dict[str, tuple[int, ...]]:
    n_rows = params.get("n_rows", 0)
    return {"rows": (n_rows, input_dim), "labels": (n_rows, n_labels)}


PROBE = Architecture(_probe_shapes, _linear_logits, None, _has_valid, fit=fit_probe)
KNN = Architecture(_knn_shapes, _knn_logits, None, _has_valid, fit=fit_knn)
