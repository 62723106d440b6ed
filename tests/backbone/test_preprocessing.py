"""Preprocessing against a literal restatement of the published steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from meddinov3_stroke.backbone import PREPROCESSING, prepare_channel, prepare_slices


def head_like(n_rows: int, n_columns: int) -> np.ndarray:
    """HU with values beyond both ends of the clip, so that the order of the steps shows."""
    return np.random.default_rng(0).uniform(-2000, 3000, (2, n_rows, n_columns)).astype(np.float32)


def published(hu: np.ndarray, resize: int, order: str = "clip zscore repeat resize") -> torch.Tensor:
    x = torch.tensor(hu)[:, None]
    steps = {
        "clip": lambda x: torch.clamp(x, -1000, 1000),
        "zscore": lambda x: (x - 65.1084213256836) / 178.01663208007812,
        "repeat": lambda x: x.repeat(1, 3, 1, 1),
        "resize": lambda x: functional.interpolate(
            x, (resize, resize), mode="bilinear", align_corners=False, antialias=True
        ),
    }
    for step in order.split():
        x = steps[step](x)
    return x


@pytest.mark.parametrize(("shape", "resize"), [((64, 64), 32), ((40, 56), 96), ((512, 480), 224)], ids=str)
def test_pixels_equal_the_published_steps(shape: tuple[int, int], resize: int) -> None:
    hu = head_like(*shape)
    expected = published(hu, resize).numpy()
    assert prepare_slices(hu, resize).shape == expected.shape
    assert np.abs(prepare_slices(hu, resize) - expected).max() <= 1e-5 * np.abs(expected).max()


@settings(max_examples=30)
@given(n_rows=st.integers(8, 300), n_columns=st.integers(8, 300), patches=st.integers(1, 14))
def test_any_slice_is_resized_as_torch_does_it(n_rows: int, n_columns: int, patches: int) -> None:
    hu = head_like(n_rows, n_columns)[:1]
    expected = published(hu, 16 * patches).numpy()[:, :1]
    assert np.abs(prepare_channel(hu, 16 * patches) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_slice_has_the_same_pixels_in_any_company() -> None:
    hu = head_like(70, 50)
    assert np.array_equal(prepare_channel(hu, 32)[1:], prepare_channel(hu[1:], 32))


@pytest.mark.parametrize("order", ["zscore clip repeat resize", "repeat resize clip zscore"])
def test_another_order_of_the_steps_gives_other_pixels(order: str) -> None:
    hu = head_like(64, 64)
    assert np.abs(prepare_slices(hu, 32) - published(hu, 32, order).numpy()).max() > 0.1


def test_shrinking_averages_and_does_not_pick() -> None:
    stripes = np.zeros((1, 64, 64), dtype=np.float32)
    stripes[:, :, ::2] = 100.0
    pixels = prepare_slices(stripes, 16) * PREPROCESSING.std + PREPROCESSING.mean
    assert np.abs(pixels - 50.0).max() < 5.0


def test_the_input_is_not_modified_and_may_be_read_only() -> None:
    hu = head_like(32, 32)
    before = hu.copy()
    hu.flags.writeable = False
    prepare_slices(hu[:, ::-1], 16)
    assert np.array_equal(hu, before)


def test_the_constants_are_those_of_the_weights() -> None:
    assert (PREPROCESSING.hu_min, PREPROCESSING.hu_max) == (-1000.0, 1000.0)
    assert (PREPROCESSING.mean, PREPROCESSING.std) == (65.1084213256836, 178.01663208007812)
    assert PREPROCESSING.version == "meddinov3-1"
