from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from meddinov3_stroke.metrics import binary_cross_entropy, weighted_log_loss
from meddinov3_stroke.types import LABELS


def test_binary_cross_entropy_is_torchs_with_pos_weight() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (50, 3)).astype(np.int8)
    logits = (30 * rng.normal(size=(50, 3))).astype(np.float32)
    weight = np.array([0.5, 1.0, 7.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits).double(), torch.tensor(truth).double(), pos_weight=torch.tensor(weight)
    )
    assert binary_cross_entropy(truth, logits, weight) == pytest.approx(float(expected), rel=1e-12)


def test_weighted_log_loss_counts_any_twice() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (40, 6)).astype(np.int8)
    probabilities = rng.random((40, 6))
    each = [log_loss(truth[:, k], probabilities[:, k], labels=[0, 1]) for k in range(6)]
    expected = (2 * each[0] + sum(each[1:])) / 7
    assert weighted_log_loss(truth, probabilities, LABELS) == pytest.approx(expected, rel=1e-9)


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    loss = weighted_log_loss(np.array([[1]], dtype=np.int8), np.array([[0.0]]), ("any",))
    assert loss == pytest.approx(-np.log(1e-15))
