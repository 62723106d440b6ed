from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meddinov3_stroke.explain import (
    head_rows,
    patch_means,
    rank,
    ranking_text,
    reference_patch,
    soft_tissue_patches,
    suspicion,
)
from meddinov3_stroke.features import pool_slices
from meddinov3_stroke.types import LABELS


def test_the_score_is_that_of_any() -> None:
    probabilities = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.8]])
    assert suspicion(probabilities, ("subdural", "any", "epidural")).tolist() == [0.1, 0.4]


def test_without_any_the_score_is_the_maximum_over_labels() -> None:
    probabilities = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.8]])
    assert suspicion(probabilities, ("class_0", "class_1", "class_2")).tolist() == [0.9, 0.8]


@given(scores=hnp.arrays(np.float64, st.integers(1, 20), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_slices_are_ranked_by_score_then_by_position(scores) -> None:
    expected = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
    assert rank(scores, 5).tolist() == expected[:5]


def head_slice() -> np.ndarray:
    """8 x 8 patches of 4 pixels: air, a ring of bone, brain within."""
    patches = np.full((8, 8), -1000.0, dtype=np.float32)
    patches[1:7, 1:7] = 900
    patches[2:6, 2:6] = 35
    return np.kron(patches, np.ones((4, 4), dtype=np.float32))


def test_the_reference_is_soft_tissue_though_air_and_bone_score_higher() -> None:
    scores = np.linspace(1, 0.5, 64)  # air and bone come first
    assert reference_patch(scores, head_slice(), (8, 8)) == (2, 2)


def test_the_reference_is_the_highest_scoring_patch_of_soft_tissue() -> None:
    scores = np.full(64, 0.5)
    scores[4 * 8 + 5] = 0.6
    scores[0] = 0.9
    assert reference_patch(scores, head_slice(), (8, 8)) == (4, 5)


def test_on_a_slice_without_soft_tissue_the_reference_is_not_air() -> None:
    bone = np.where(head_slice() == 35, 900, head_slice()).astype(np.float32)
    assert reference_patch(np.linspace(1, 0, 64), bone, (8, 8)) == (1, 1)


def test_on_a_slice_of_air_there_still_is_a_reference() -> None:
    scores = np.zeros(64)
    scores[10] = 1
    assert reference_patch(scores, np.full((32, 32), -1000, dtype=np.float32), (8, 8)) == (1, 2)


@pytest.mark.parametrize(("share", "expected"), [(0.55, False), (0.6, True), (0.65, True)])
def test_a_patch_counts_as_soft_tissue_from_three_fifths_on(share, expected) -> None:
    hu = np.full((10, 10), 1000, dtype=np.float32)
    hu.ravel()[: round(100 * share)] = 40
    assert bool(soft_tissue_patches(hu, (1, 1))[0, 0]) is expected


@given(hu=hnp.arrays(np.float32, (12, 18), elements=st.floats(-1000, 1000, width=32)))
def test_means_of_whole_patches_are_block_means(hu) -> None:
    expected = hu.astype(np.float64).reshape(3, 4, 6, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(patch_means(hu, (3, 6)), expected, atol=1e-9)


@given(shape=st.tuples(st.integers(3, 30), st.integers(3, 30)), grid=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_patches_that_cut_pixels_share_them_by_area(shape, grid) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    means = patch_means(values, grid)
    np.testing.assert_allclose(means.mean(), values.astype(np.float64).mean(), atol=1e-9)
    np.testing.assert_allclose(patch_means(np.ones(shape, dtype=np.float32), grid), 1.0)


@pytest.mark.parametrize("mode", ["mean", "max", "mean_max"])
def test_a_row_of_one_token_is_that_token_pooled_alone(mode) -> None:
    tokens = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = np.stack([pool_slices(token[None], mode) for token in tokens])
    np.testing.assert_array_equal(head_rows(tokens, mode), expected)


@pytest.mark.parametrize("kind", ["mean", "max", "mean_max"])
def test_ranking_by_a_head_of_pooled_volumes_is_called_a_transfer(kind) -> None:
    assert "transfer from volumes to slices" in ranking_text(kind, LABELS)
    assert f"{kind}-pooled" in ranking_text(kind, LABELS)


def test_ranking_by_a_head_of_slices_is_no_transfer() -> None:
    assert "transfer" not in ranking_text("slice", LABELS)


def test_ranking_says_that_slices_are_pooled_alone_for_mean_max() -> None:
    assert "pooled alone" in ranking_text("mean_max", LABELS)
    assert "pooled alone" not in ranking_text("mean", LABELS)


def test_ranking_does_not_claim_what_the_head_does_not_say() -> None:
    text = ranking_text("mean", LABELS, known=False)
    assert "was trained on" not in text.replace("what it was trained on", "")
    assert "assumed" in text
