from __future__ import annotations

import numpy as np
import pytest
import torch

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.features import POOL_MODES, pool_slices


@pytest.fixture
def cls() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(29, 12)).astype(np.float32)


def test_mean_agrees_with_torch(cls: np.ndarray) -> None:
    expected = torch.from_numpy(cls).double().mean(dim=0).float().numpy()
    np.testing.assert_array_equal(pool_slices(cls, "mean"), expected)


def test_max_agrees_with_torch(cls: np.ndarray) -> None:
    np.testing.assert_array_equal(pool_slices(cls, "max"), torch.from_numpy(cls).amax(dim=0).numpy())


def test_mean_max_is_mean_then_max(cls: np.ndarray) -> None:
    expected = np.concatenate([pool_slices(cls, "mean"), pool_slices(cls, "max")])
    np.testing.assert_array_equal(pool_slices(cls, "mean_max"), expected)


@pytest.mark.parametrize("mode", POOL_MODES)
def test_pooling_ignores_the_order_of_slices(cls: np.ndarray, mode: str) -> None:
    shuffled = cls[np.random.default_rng(0).permutation(len(cls))]
    np.testing.assert_allclose(pool_slices(shuffled, mode), pool_slices(cls, mode), rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", POOL_MODES)
def test_pooling_one_slice_keeps_it(cls: np.ndarray, mode: str) -> None:
    pooled = pool_slices(cls[:1], mode)
    np.testing.assert_array_equal(pooled[: cls.shape[1]], cls[0])


@pytest.mark.parametrize("mode", POOL_MODES)
def test_the_mean_of_nothing_is_an_error(mode: str) -> None:
    with pytest.raises(UsageError, match="no slice"):
        pool_slices(np.empty((0, 4), dtype=np.float32), mode)
