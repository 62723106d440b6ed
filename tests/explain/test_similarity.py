from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics.pairwise import cosine_similarity

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.explain import parse_patch, patch_similarity

# scikit-learn takes a vector shorter than about 2e-15 for one of length 0; ours does not
values = st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda value: value if abs(value) > 1e-3 else 0.0)
tokens = hnp.arrays(np.float32, (12, 5), elements=values)


@given(patches=tokens, index=st.integers(0, 11))
def test_similarity_is_that_of_scikit_learn(patches, index) -> None:
    reference = (index // 4, index % 4)
    expected = cosine_similarity(patches.astype(np.float64), patches[index : index + 1].astype(np.float64))[:, 0]
    expected[index] = 1.0  # also for a token of length 0
    np.testing.assert_allclose(patch_similarity(patches, (3, 4), reference).ravel(), expected, atol=1e-6)


@given(patches=tokens, index=st.integers(0, 11))
def test_similarity_lies_within_minus_one_and_one(patches, index) -> None:
    similarity = patch_similarity(patches, (3, 4), (index // 4, index % 4))
    assert similarity.dtype == np.float32
    assert np.abs(similarity).max() <= 1


def test_the_map_is_row_major() -> None:
    patches = np.eye(6, dtype=np.float32)
    patches[5] = patches[0]
    similarity = patch_similarity(patches, (2, 3), (0, 0))
    assert similarity.tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("reference", [(-1, 0), (0, -1), (2, 0), (0, 3)])
def test_a_reference_outside_the_grid_is_refused(reference) -> None:
    with pytest.raises(UsageError, match="row 0 to 1 and column 0 to 2"):
        patch_similarity(np.eye(6, dtype=np.float32), (2, 3), reference)


def test_a_grid_that_does_not_hold_the_patches_is_refused() -> None:
    with pytest.raises(UsageError, match="2 x 2 does not hold 6"):
        patch_similarity(np.eye(6, dtype=np.float32), (2, 2), (0, 0))


@pytest.mark.parametrize(
    ("text", "expected"), [("center", (7, 7)), ("Center ", (7, 7)), ("3,9", (3, 9)), (" 0 , 13 ", (0, 13))]
)
def test_sim_patch_is_center_or_row_and_column(text, expected) -> None:
    assert parse_patch(text, (14, 14)) == expected


@pytest.mark.parametrize("text", ["", "middle", "3", "3,", "3;4", "3,4,5", "3.0,4", "٣,٤", "14,0", "0,14", "-1,0"])
def test_any_other_sim_patch_is_a_usage_error_that_says_what_is_expected(text) -> None:
    with pytest.raises(UsageError, match=r"expected (center or row,column|row 0 to 13)"):
        parse_patch(text, (14, 14))
