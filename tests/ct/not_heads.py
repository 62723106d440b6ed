"""Generated volumes that are not a non-contrast head CT in HU, by kind; and a plain generated head that is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Made = tuple[np.ndarray, tuple[float, float, float]]
"""Voxels [slice, row, column] in canonical orientation, and spacing in mm."""


def _grid(n: int, rows: int, columns: int, mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = np.mgrid[0:n, 0:rows, 0:columns].astype(np.float32)
    return z, (y - rows / 2 + 0.5) * mm, (x - columns / 2 + 0.5) * mm


def _noisy(rng: np.random.Generator, hu: np.ndarray, sd: float) -> np.ndarray:
    return np.rint(hu + rng.normal(0, sd, hu.shape)).astype(np.float32)


def head(rng: np.random.Generator) -> Made:
    """Scalp, skull, base, brain with a darker core, ventricles and a haemorrhage."""
    n, mm, dz = int(rng.integers(20, 36)), 1.9, 5.0
    z, y, x = _grid(n, 128, 112, mm)
    height = (z + 0.5) / n
    scale = np.sqrt(np.clip(1 - np.clip((height - 0.35) / 0.68, 0, None) ** 2, 0, 1)) + 1e-3
    a, b = rng.uniform(82, 100), rng.uniform(66, 80)
    r = np.hypot(y / (a * scale), x / (b * scale))
    hu = np.full(r.shape, -1000, np.float32)
    for edge, value in ((1 + 6 / a, 40), (1, 900), (1 - 7 / a, 36), (0.6, 29)):
        hu[r < edge] = value
    hu[(np.hypot(y / 22, (np.abs(x) - 9) / 6) < 1) & (r < 0.9)] = 8
    low = (height < 0.2) & (r < 1 - 7 / a)
    hu[low & (np.sin(y / 7) * np.sin(x / 6) > 0.5)] = 700
    hu[low & (y < -0.5 * a) & (np.abs(x) < 25)] = -950
    at, size = rng.uniform(-30, 30, 2), rng.uniform(8, 22)
    bleeds = (np.hypot(y - at[0], x - at[1]) < size) & (r < 0.85) & (np.abs(z - n / 2) * dz < size)
    hu[bleeds] = rng.uniform(58, 80)
    return _noisy(rng, hu, rng.uniform(2, 6)), (dz, mm, mm)


def _body(rng: np.random.Generator, lungs: bool, ribs: bool = True) -> Made:
    n, mm = int(rng.integers(20, 40)), 3.0
    z, y, x = _grid(n, 128, 144, mm)
    a, b = rng.uniform(95, 125), rng.uniform(145, 190)
    r = np.hypot(y / a, x / b)
    hu = np.full(r.shape, -1000, np.float32)
    hu[r < 1], hu[r < 0.86] = -100, 55
    if lungs:
        for side in (-1, 1):
            hu[np.hypot(y / (0.68 * a), (x - side * 0.42 * b) / (0.33 * b)) < 1] = -840
        hu[np.hypot((y - 5) / 45, (x + 15) / 50) < 1] = 42
    if ribs:
        hu[np.hypot(y - 0.62 * a, x) < 22] = 420
        hu[(np.abs(r - 0.83) < 0.03) & (np.sin(9 * np.arctan2(y / a, x / b) + 0.4 * z) > 0.6)] = 550
    return _noisy(rng, hu, rng.uniform(4, 10)), (5.0, mm, mm)


def _pelvis(rng: np.random.Generator) -> Made:
    hu, spacing = _body(rng, lungs=False, ribs=False)
    _, y, x = _grid(len(hu), 128, 144, 3.0)
    ring = np.hypot(y / 70, x / 115)
    hu[(np.abs(ring - 1) < 0.12) & (np.abs(x) > 14)] = 500
    return hu, spacing


def _angiography(rng: np.random.Generator) -> Made:
    hu, (dz, mm, _) = head(rng)
    z, y, x = _grid(len(hu), 128, 112, mm)
    inside, middle, value = (hu > 0) & (hu < 90), len(hu) / 2, rng.uniform(180, 390)
    for _ in range(int(rng.integers(10, 18))):
        at, drift, width = rng.uniform(-45, 45, 2), rng.uniform(-2.5, 2.5, 2), rng.uniform(2.2, 3.6)
        tube = np.hypot(y - at[0] - drift[0] * (z - middle), x - at[1] - drift[1] * (z - middle)) < width
        hu[tube & inside & (np.abs(z - middle) < len(hu) / 3)] = value
    hu[(np.abs(x) < 5) & (y > 50) & inside] = value
    return hu, (dz, mm, mm)


def _magnetic_resonance(rng: np.random.Generator) -> Made:
    hu, spacing = head(rng)
    signal = np.abs(rng.normal(0, 12, hu.shape))
    signal[hu > -300] = 900
    signal[(hu > -20) & (hu < 20)] = 300
    signal[(hu > 20) & (hu < 50)] = rng.uniform(600, 1600)
    signal[hu > 300] = 80
    return np.clip(_noisy(rng, signal, 25), 0, 4095), spacing


def _water_phantom(rng: np.random.Generator) -> Made:
    _, y, x = _grid(28, 128, 112, 1.9)
    r = np.hypot(y / 95, x / 72)
    hu = np.full(r.shape, -1000, np.float32)
    hu[r < 1], hu[r < 0.92] = 900, rng.choice([0.0, 20.0, 40.0])
    return _noisy(rng, hu, rng.uniform(2, 5)), (5.0, 1.9, 1.9)


def _of_head(change: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> Callable[[np.random.Generator], Made]:
    def make(rng: np.random.Generator) -> Made:
        hu, spacing = head(rng)
        return np.asarray(change(rng, hu), dtype=np.float32), spacing

    return make


def _dead_tail(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    hu[-int(rng.integers(8, 12)) :] = rng.choice([0.0, -1000.0, -1024.0])
    return hu


def _repeated(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    at = int(rng.integers(8, len(hu) - 8))
    hu[at + 1 : at + 3] = hu[at]
    return hu


def _filled(shape: tuple[int, ...], make: Callable[[np.random.Generator], np.ndarray | float]) -> Callable[..., Made]:
    return lambda rng: (np.full(shape, make(rng), dtype=np.float32), (5.0, 1.9, 1.9))


SHAPE = (24, 96, 96)
NOT_HEADS: dict[str, Callable[[np.random.Generator], Made]] = {
    "zero to one": _of_head(lambda rng, hu: (hu + 1000) / 2000),
    "8 bit": _of_head(lambda rng, hu: np.clip((hu + 1000) / 2000 * 255, 0, 255).round()),
    "8 bit, brain window": _of_head(lambda rng, hu: (np.clip(hu, 0, 80) / 80 * 255).round()),
    "1024 too high": _of_head(lambda rng, hu: hu + 1024),
    "z-scores": _of_head(lambda rng, hu: (hu - hu.mean()) / hu.std()),
    "mask": _of_head(lambda rng, hu: (hu > 50) & (hu < 90)),
    "all air": _filled(SHAPE, lambda rng: -1000.0),
    "all zero": _filled(SHAPE, lambda rng: 0.0),
    "noise": _filled(SHAPE, lambda rng: rng.normal(rng.choice([0, -300, 30]), rng.choice([30, 300, 800]), SHAPE)),
    "skull-stripped": _of_head(lambda rng, hu: np.where((hu < -200) | (hu > 200), 0, hu)),
    "skull-stripped, air kept": _of_head(lambda rng, hu: np.where((hu < -200) | (hu > 200), -1000, hu)),
    "window of 0 to 80": _of_head(lambda rng, hu: np.clip(hu, 0, 80)),
    "window of -1000 to 100": _of_head(lambda rng, hu: np.clip(hu, -1000, 100)),
    "chest": lambda rng: _body(rng, lungs=True),
    "abdomen": lambda rng: _body(rng, lungs=False),
    "pelvis": _pelvis,
    "CT angiography": _angiography,
    "MR": _magnetic_resonance,
    "water phantom": _water_phantom,
    "shuffled": _of_head(lambda rng, hu: hu[rng.permutation(len(hu))]),
    "dead tail": _of_head(_dead_tail),
    "repeated slices": _of_head(_repeated),
}
"""Kind -> a volume of it."""
