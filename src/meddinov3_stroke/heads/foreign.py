"""Head checkpoints written by the first public implementation of this README, in this package's layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.labels import label_names

FOREIGN_KEYS = ("model_state_dict", "input_dim", "num_classes")
"""Keys by which such a checkpoint is known."""


def from_foreign(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The document of a foreign checkpoint; tensors are matched by their order. Raises CheckpointError."""
    try:
        state, n_labels = dict(found["model_state_dict"]), found["num_classes"]
        if list(state.values())[-1].shape != (n_labels,):
            raise ValueError(n_labels)
        params = {"hidden_dim": 0 if len(state) == 2 else found["hidden_dim"]}
        params["dropout"] = float(found.get("dropout") or 0.0)
        names = ARCHITECTURES["mlp"].shapes(params, found["input_dim"], n_labels)
        weights = np.ones(n_labels) if found.get("pos_weight") is None else np.ravel(found["pos_weight"])
        weights, epoch, score = weights.astype(float).tolist(), int(found.get("epoch") or 0), found.get("score")
        score = float(score) if isinstance(score, int | float) and math.isfinite(score) else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: neither this package's head checkpoint nor a readable foreign one; retrain it"
        ) from error
    labels = list(label_names(n_labels))
    threshold = {"value": 0.5, "origin": "default 0.5: the checkpoint has no thresholds"}
    return {
        "state_dict": dict(zip(names, state.values(), strict=True)) if len(state) == len(names) else state,
        "labels": labels,
        "input_dim": found["input_dim"],
        "arch": "mlp",
        "params": params,
        "pool_mode": "unknown",
        "resize": None,
        "backbone": None,
        "thresholds": dict.fromkeys(labels, threshold),
        "pos_weight": dict(zip(labels, weights, strict=False)),
        "seed": 0,
        "epoch": epoch,
        "metric_name": "score of another implementation",
        "best_metric": score,
    }
