"""Noisy head-like slices and volumes; another seed gives another head and other noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int16

from meddinov3_stroke.system.nifti_bytes import nifti_bytes

SPACING_MM = (2.5, 0.45, 0.45)
"""Slice, row, column."""

CANONICAL_TO_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""Slices run to superior, rows to posterior, columns to the patient's left."""


def noisy_head(n_slices: int, side: int, seed: int) -> Int16[np.ndarray, "slice row col"]:
    """HU: an oval skull whose sections grow and shrink, 8 HU of noise in the brain, 4 in air, a moving dense spot."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    oval = np.hypot(row / rng.uniform(0.8, 0.95), col / rng.uniform(0.65, 0.8))
    slices = np.empty((n_slices, side, side), dtype=np.int16)
    for hu, height in zip(slices, np.linspace(-0.9, 0.9, n_slices), strict=True):
        radius = oval / np.sqrt(1 - height**2)
        spot_row, spot_col = rng.uniform(-0.4, 0.4, size=2)
        spot = (np.hypot(row - spot_row, col - spot_col) < rng.uniform(0.02, 0.15)) & (radius < 0.9)
        mean_hu = np.select([spot, radius < 0.9, radius < 1], [68.0, 35.0, 900.0], -1000.0)
        noise_hu = np.where(radius < 1, 8.0, 4.0) * rng.standard_normal((side, side), dtype=np.float32)
        hu[:] = np.maximum(mean_hu + noise_hu, -1024)
    return slices


def write_volume(path: Path, n_slices: int, side: int, seed: int) -> Path:
    """`path`, written as a .nii.gz of `noisy_head`."""
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL_TO_RAS @ np.diag(SPACING_MM)
    path.write_bytes(nifti_bytes(noisy_head(n_slices, side, seed), affine))
    return path


def write_volumes(folder: Path, n_volumes: int, n_slices: int, side: int) -> list[Path]:
    """Paths of as many different volumes, written in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_volume(folder / f"{k:03}.nii.gz", n_slices, side, seed=1000 + k) for k in range(n_volumes)]
