"""Names of views, and patch tokens in principal components."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.features.basis import compression_loss, principal_components
from meddinov3_stroke.views import TAKEN, WINDOWS, PatchBasis, View

NAMES = [
    f"{taken}{window}{head}"
    for taken, window, head in itertools.product(
        (*TAKEN, "patches16", "patches64"), ("", *(f"@{name}" for name in WINDOWS[1:])), ("", "+head")
    )
]


def correlated(n: int = 4000, dim: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = np.geomspace(5, 0.05, dim)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return ((rng.standard_normal((n, dim)) * scales) @ rotation + rng.standard_normal(dim)).astype(np.float32)


def test_a_view_is_named_as_it_was_written_and_no_two_share_a_name() -> None:
    assert [View.parse(name).name for name in NAMES] == NAMES
    assert len({View.parse(name) for name in NAMES}) == len({View.parse(name).key for name in NAMES}) == len(NAMES)
    assert View.parse("cls@native") == View()


@pytest.mark.parametrize(
    "name", ["", "CLS", "cls4", "patches0", "patches-3", "cls@", "cls@air", "stats@brain@bone", "cls+air", "+head"]
)
def test_another_name_is_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(UsageError, match=r"cls\|stats\|blocks\|patches or patchesK"):
        View.parse(name)


def test_components_are_those_of_scikit_learn_up_to_their_sign() -> None:
    patches = correlated()
    basis, reference = principal_components(patches, 6), PCA(6).fit(patches.astype(np.float64))
    cosines = np.abs((basis.components.T * reference.components_).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    np.testing.assert_allclose(basis.mean, reference.mean_, atol=1e-4)
    kept = compression_loss(basis, patches)["explained_variance"]
    assert kept == pytest.approx(reference.explained_variance_ratio_.sum(), abs=2e-4)


def test_the_fit_does_not_depend_on_the_order_of_patches_but_for_rounding() -> None:
    patches = correlated()
    one, other = principal_components(patches, 6), principal_components(patches[::-1], 6)
    np.testing.assert_allclose(one.components, other.components, atol=1e-4)


@given(seed=st.integers(0, 2**31))
def test_a_code_is_within_half_a_step_of_its_coordinate_unless_it_is_at_the_limit(seed: int) -> None:
    basis, patches = principal_components(correlated(), 6), correlated(50, seed=seed)
    codes = basis.codes(patches)
    exact = (patches - basis.mean) @ basis.components
    inside = np.abs(codes) < 127
    assert codes.dtype == np.int8
    assert np.abs((basis.values(codes) - exact) / basis.scale)[inside].max() <= 0.5 + 1e-3
    assert (np.sign(codes) == np.sign(exact))[~inside].all()


def test_codes_are_rounded_exactly_so_that_they_do_not_depend_on_threads() -> None:
    patches = correlated(20_000, dim=256)
    basis = principal_components(patches, 64)
    exact = np.einsum(
        "nd,dk->nk", *(one.astype(np.longdouble) for one in (patches - basis.mean.astype(np.float64), basis.components))
    )
    np.testing.assert_array_equal(basis.codes(patches), (exact / basis.scale).round().clip(-127, 127))


def test_more_components_lose_less() -> None:
    patches = correlated()
    kept = [compression_loss(principal_components(patches, k), patches)["explained_variance"] for k in (2, 4, 8, 16)]
    assert kept == sorted(kept)
    assert kept[-1] > 0.995


@pytest.mark.parametrize("name", ["mean", "components", "scale"])
def test_another_basis_is_another_key(name: str) -> None:
    arrays = {"mean": np.zeros(4), "components": np.eye(4)[:, :2], "scale": np.ones(2)}
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    changed = {**arrays, name: arrays[name] + np.float32(1e-6)}
    views = [View("patches", 2, basis=PatchBasis(**each)) for each in (arrays, changed)]
    assert views[0].key != views[1].key
    assert views[0].name == views[1].name == "patches2"
