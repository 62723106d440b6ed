"""Losses of probabilities. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from meddinov3_stroke.metrics.ranking import Labels, Scores

_CHALLENGE_CLIP = 1e-15  # RSNA 2019: probabilities are clipped to [1e-15, 1 - 1e-15] before the logarithm


def binary_cross_entropy(labels: Labels, logits: Scores, pos_weight: Float[np.ndarray, " label"]) -> float:
    """Mean over rows and labels of -(w y log p + (1 - y) log(1 - p)), as `torch.nn.BCEWithLogitsLoss(pos_weight=w)`."""
    scores, truth = logits.astype(np.float64), labels.astype(np.float64)
    return float(np.mean(pos_weight * truth * np.logaddexp(0, -scores) + (1 - truth) * np.logaddexp(0, scores)))


def weighted_log_loss(labels: Labels, probabilities: Scores, names: Sequence[str]) -> float:
    """The loss of the RSNA 2019 challenge, (2 any + the five subtypes) / 7, averaged over rows.

    The challenge scored slices of its own test set; figures on other data are not comparable with its leaderboard.
    """
    weights = [2.0 if name == "any" else 1.0 for name in names]
    clipped = np.clip(probabilities.astype(np.float64), _CHALLENGE_CLIP, 1 - _CHALLENGE_CLIP)
    losses = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return float(np.average(losses.mean(axis=0), weights=weights))
