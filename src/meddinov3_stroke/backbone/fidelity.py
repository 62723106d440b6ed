"""Do these weights stand a lower precision? Measured once for each, on slices made for it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.engines import Engine, TorchEngine
from meddinov3_stroke.backbone.preprocessing import prepare_channel
from meddinov3_stroke.backbone.weight_file import Weights, build_module

N_SLICES = 4
"""Slices the precision is tried on."""

SIDE = 224
"""Their size in pixels, and the size the backbone sees them at."""


def sample_slices(n_slices: int = N_SLICES, side: int = SIDE) -> Float32[np.ndarray, "n row col"]:
    """Head-like slices in HU, the same at every call: air, an oval skull, brain with noise, a dense spot, some larger
    and smaller sections.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    slices = np.full((n_slices, side, side), -1000.0, dtype=np.float32)
    for k, hu in enumerate(slices):
        radius = np.hypot(rows / 0.9, columns / 0.75) / (0.6 + 0.4 * (k + 1) / n_slices)
        brain = radius < 0.88
        hu[radius < 1.0] = 1100.0
        hu[brain] = 32.0 + 6.0 * rng.standard_normal(int(brain.sum()))
        hu[np.hypot(rows - 0.1 * k, columns - 0.2) < 0.12] = 68.0
    return slices


def measure_fidelity(engine: Engine, weights: Weights) -> float:
    """Least cosine between the engine's class tokens of the sample slices and those of torch in fp32; -1 where one of
    them is no number, as after an overflow.
    """
    pixels = prepare_channel(sample_slices(), SIDE, weights.preprocessing).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        found = cosines(engine.class_tokens(pixels), reference_class_tokens(weights, pixels))
    return float(np.nan_to_num(found, nan=-1.0).min())


def reference_class_tokens(
    weights: Weights, pixels: Float32[np.ndarray, "n 1 row col"]
) -> Float32[np.ndarray, "n dim"]:
    """Class tokens by torch in fp32 on the CPU."""
    return TorchEngine(build_module(weights), "cpu", "fp32").class_tokens(pixels)


def cosines(found: Float32[np.ndarray, "n dim"], expected: Float32[np.ndarray, "n dim"]) -> np.ndarray:
    """Cosine similarity row by row, in float64."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
