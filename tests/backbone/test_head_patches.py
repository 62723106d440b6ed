"""Patches of pure air left out of the token sequence, in both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddinov3_stroke.backbone import Backbone, TorchEngine, VisionTransformer, Weights, load_backbone, prepare_slices
from meddinov3_stroke.backbone.head_patches import AIR_HU, LENGTHS, kept_patches
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph
from meddinov3_stroke.backbone.weights import canonical_state
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import Preprocessing

SIDE = 96
"""Pixels; 6 x 6 patches."""


def hu_of(radii: list[float]) -> np.ndarray:
    """Slices of a disc of noise in air; radius 0 is nothing but air, 2 covers the slice."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    noise = rng.normal(40, 30, size=(len(radii), SIDE, SIDE))
    return np.stack(
        [np.where(np.hypot(rows, columns) < radius, one, -1000) for radius, one in zip(radii, noise, strict=True)]
    ).astype(np.float32)


@pytest.fixture(scope="module")
def vit(small_vit: Callable[..., VisionTransformer]) -> VisionTransformer:
    """With a float32 rotation nothing is left that engines may round differently."""
    return small_vit(pos_embed_rope_dtype="fp32")


@pytest.fixture(scope="module", params=["torch", "openvino"])
def backbone(request: pytest.FixtureRequest, vit: VisionTransformer) -> Backbone:
    """A random ViT in fp32."""
    weights = Weights(canonical_state(vit.state_dict(), vit.architecture), vit.architecture, ())
    makers = {
        "torch": lambda: TorchEngine(vit, "cpu", "fp32"),
        "openvino": lambda: OpenVINOEngine(partial(build_graph, weights), "fp32"),
    }
    identity = replace(load_backbone("demo", request.param, "fp32", "cpu").identity, rope_dtype="fp32")
    return Backbone(identity, "cpu", makers[request.param])


def shortened(backbone: Backbone, hu: np.ndarray) -> np.ndarray:
    """Prepared pixels with the air marked."""
    return backbone.without_air(backbone.prepare(hu, SIDE), hu)


def by_hand(vit: VisionTransformer, hu: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """(class token, patch tokens of the grid with zeros) of a slice: the module, its tokens picked before block 0."""
    places = np.nonzero(kept_patches(hu[None], SIDE, 16)[0])[0]
    image = torch.from_numpy(np.array(prepare_slices(hu[None], SIDE, preprocessing)))
    n_prefix = 1 + vit.n_storage_tokens
    with torch.inference_mode():
        tokens, (sin, cos) = vit.prepare_tokens(image)
        tokens = tokens[:, [*range(n_prefix), *(n_prefix + places)]]
        for block in vit.blocks:
            tokens = block(tokens, (sin[places], cos[places]))
        tokens = vit.norm(tokens)[0].numpy()
    whole = np.zeros(((SIDE // 16) ** 2, tokens.shape[-1]), dtype=np.float32)
    whole[places] = tokens[n_prefix:]
    return tokens[0], whole


def test_tokens_are_those_of_the_module_on_the_shortened_sequence(backbone: Backbone, vit: VisionTransformer) -> None:
    hu = hu_of([0.0, 0.3, 0.5, 0.5, 0.8, 2.0])
    cls, patches = backbone.tokens(shortened(backbone, hu))
    expected = [by_hand(vit, one, backbone.identity.preprocessing) for one in hu]
    assert np.array_equal((patches != 0).any(axis=2), kept_patches(hu, SIDE, 16))
    for found, wanted in zip((cls, patches), zip(*expected, strict=True), strict=True):
        assert np.abs(found - np.stack(wanted)).max() <= 1e-5 * np.abs(np.stack(wanted)).max()


def test_a_slice_without_air_has_the_tokens_of_the_full_pass(backbone: Backbone) -> None:
    hu = hu_of([2.0, 0.4, 2.0])
    full = backbone.class_tokens(backbone.prepare(hu, SIDE))
    short = backbone.class_tokens(shortened(backbone, hu))
    np.testing.assert_allclose(short[::2], full[::2], rtol=0, atol=1e-5)
    assert np.abs(short[1] - full[1]).max() > 1e-3


@settings(max_examples=10, deadline=None)
@given(radii=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.8, 2.0]), min_size=1, max_size=6))
def test_a_slice_does_not_depend_on_the_others_of_its_pass(backbone: Backbone, radii: list[float]) -> None:
    pixels = shortened(backbone, hu_of(radii))
    together = backbone.class_tokens(pixels)
    alone = np.concatenate([backbone.class_tokens(one[None]) for one in pixels])
    if backbone.independent_rows:
        assert np.array_equal(together, alone)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_blocks_and_class_tokens_of_one_pass_have_the_bits_of_class_tokens(backbone: Backbone) -> None:
    pixels = shortened(backbone, hu_of([0.3, 0.8, 2.0]))
    cls, patches, blocks = backbone.features(pixels)
    assert np.array_equal(cls, backbone.class_tokens(pixels))
    assert np.array_equal(blocks[:, -cls.shape[1] :], cls)
    np.testing.assert_allclose(patches, backbone.tokens(pixels)[1], rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(radius=st.floats(0, 2), patch_size=st.sampled_from([8, 16, 32]))
def test_patches_with_head_stay_and_lengths_are_few(radius: float, patch_size: int) -> None:
    (hu,), side = hu_of([radius]), SIDE // patch_size
    kept = kept_patches(hu[None], SIDE, patch_size)[0]
    step = max(1, side * side // LENGTHS)
    highest = hu.reshape(side, patch_size, side, patch_size).max(axis=(1, 3)).ravel()
    assert kept[highest >= AIR_HU].all()
    assert kept.sum() == side * side or kept.sum() % step == 0
    assert kept.sum() < max(1, (highest >= AIR_HU).sum()) + step


def test_nan_is_never_taken_for_air() -> None:
    hu = hu_of([0.0])
    hu[0, -1, -1] = np.nan
    assert kept_patches(hu, SIDE, 16)[0, -1]


def test_int8_refuses_a_shortened_sequence() -> None:
    demo = load_backbone("demo", "openvino", "fp32", "cpu")
    engine = OpenVINOEngine(lambda side: None, "int8", lambda side: None)
    backbone = Backbone(replace(demo.identity, precision="int8"), "cpu", lambda: engine)
    with pytest.raises(UsageError, match="int8"):
        backbone.class_tokens(shortened(backbone, hu_of([0.3])))


def test_a_pass_has_at_most_the_slices_asked_for(backbone: Backbone) -> None:
    sizes: list[int] = []
    engine = backbone._engine

    class Counting:
        def class_tokens(self, pixels: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
            sizes.append(len(pixels))
            return engine.class_tokens(pixels) if kept is None else engine.class_tokens(pixels, kept)

    counted = Backbone(backbone.identity, "cpu", Counting)
    pixels = shortened(counted, hu_of([0.5, 0.3, 0.5, 2.0, 0.5]))
    tokens = counted.class_tokens(pixels, most=2)
    assert sorted(sizes) == [1, 1, 1, 2]
    np.testing.assert_allclose(tokens, backbone.class_tokens(pixels), rtol=0, atol=1e-5)
