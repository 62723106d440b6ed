"""The OpenVINO graph of a whole ViT-B/16 against our torch module, with weights that let every part matter."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from meddinov3_stroke.backbone import TorchEngine, Weights, vit_base
from meddinov3_stroke.backbone import openvino_engine as openvino
from meddinov3_stroke.backbone.loading import cosines
from meddinov3_stroke.backbone.openvino_engine import OpenVINOEngine, build_graph
from meddinov3_stroke.backbone.weights import canonical_state

LEAST_COSINE = 0.9999
MOST_DIFFERENCE = 2.5e-3
"""Relative to the largest token; the rotation, in float32 instead of bf16, accounts for it (FACTS 1)."""


@pytest.fixture(scope="module")
def vit(randomised) -> nn.Module:
    return randomised(vit_base(layerscale_init=1e-5, n_storage_tokens=4, qkv_bias=False, mask_k_bias=True))


def graph_tokens(vit: nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """Class tokens alone, then class and patch tokens."""
    architecture = vit.architecture
    weights = Weights(canonical_state(vit.state_dict(), architecture), architecture, ())
    engine = OpenVINOEngine(lambda side: build_graph(weights, side), "fp32")
    return [engine.class_tokens(pixels), *engine.tokens(pixels)]


def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    """(least cosine, largest difference relative to the largest value)."""
    pairs = list(zip(found, expected, strict=True))
    least = min(cosines(a.reshape(-1, 768), b.reshape(-1, 768)).min() for a, b in pairs)
    return float(least), float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs))


def test_a_whole_vit_base_keeps_to_torch(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(7).normal(size=(1, 1, 224, 224)).astype(np.float32)
    cls, patches = TorchEngine(vit, "cpu", "fp32").tokens(pixels)
    cosine, difference = worst(graph_tokens(vit, pixels), [cls, cls, patches])
    assert cosine >= LEAST_COSINE
    assert difference <= MOST_DIFFERENCE
    tables = openvino.rope_tables
    monkeypatch.setattr(openvino, "rope_tables", lambda *given: [-tables(*given)[0], tables(*given)[1]])
    assert worst(graph_tokens(vit, pixels), [cls, cls, patches])[1] > 10 * MOST_DIFFERENCE
