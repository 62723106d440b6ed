"""Losses of given logits or probabilities, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int8

CHALLENGE_WEIGHTS = {"any": 2.0}
"""RSNA 2019: `any` counts twice, each subtype once."""

CHALLENGE_CLIP = 1e-15
"""RSNA 2019: probabilities are clipped to [1e-15, 1 - 1e-15] before the logarithm."""


def binary_cross_entropy(
    labels: Int8[np.ndarray, "n label"],
    logits: Float[np.ndarray, "n label"],
    pos_weight: Float[np.ndarray, " label"],
) -> float:
    """Mean over rows and labels of -(w y log p + (1 - y) log(1 - p)), as `torch.nn.BCEWithLogitsLoss(pos_weight=w)`."""
    scores = logits.astype(np.float64)
    truth = labels.astype(np.float64)
    return float(np.mean(pos_weight * truth * np.logaddexp(0, -scores) + (1 - truth) * np.logaddexp(0, scores)))


def weighted_log_loss(
    labels: Int8[np.ndarray, "n label"], probabilities: Float[np.ndarray, "n label"], names: Sequence[str]
) -> float:
    """The RSNA 2019 challenge's loss, (2 any + the five subtypes) / 7, averaged over rows.

    The challenge scored slices of its own test set: figures of other data are not comparable with its table.
    """
    weights = np.array([CHALLENGE_WEIGHTS.get(name, 1.0) for name in names])
    clipped = np.clip(probabilities.astype(np.float64), CHALLENGE_CLIP, 1 - CHALLENGE_CLIP)
    losses = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return float(np.average(losses.mean(axis=0), weights=weights))
