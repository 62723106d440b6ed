"""Masks that lie beside volumes: the label values of each canonical slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput
from meddinov3_stroke.types import Volume

AGREEMENT_VOXELS = 0.5
"""A mask lies on its volume when no corner is further off than this share of the smallest voxel side."""


def slice_values(path: Path, volume: Volume) -> list[frozenset[int]]:
    """The values other than 0 in each canonical slice of a mask of `volume`.

    Raises:
        InputError: the mask cannot be read, has another shape or place than the volume, or values that are no whole
            numbers.
        MachineError: as `read_volume`.
    """
    mask = read_volume(path)
    if mask.stored.shape != volume.stored.shape:
        raise UnsupportedInput(
            f"{path} has {' x '.join(map(str, mask.stored.shape))} voxels, its volume "
            f"{' x '.join(map(str, volume.stored.shape))}; is it another case's?"
        )
    _require_same_place(mask, volume, path)
    return [_values(mask, k, path) for k in range(mask.n_slices)]


def _require_same_place(mask: Volume, volume: Volume, path: Path) -> None:
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in mask.stored.shape])).reshape(3, -1)
    moved = (mask.affine - volume.affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    furthest_mm = float(np.linalg.norm(moved, axis=0).max())
    if furthest_mm > AGREEMENT_VOXELS * min(volume.spacing_mm):
        raise UnsupportedInput(
            f"{path} lies up to {furthest_mm:.1f} mm off its volume; expected the same affine; is it another case's?"
        )


def _values(mask: Volume, slice_index: int, path: Path) -> frozenset[int]:
    found = np.unique(mask.stored[slice_index]).astype(np.float64) * mask.slope + mask.intercept
    whole = np.rint(found)
    if not np.allclose(found, whole, atol=1e-3):
        raise CorruptInput(f"{path} holds {found[~np.isclose(found, whole, atol=1e-3)][0]:g}; expected whole numbers")
    return frozenset(int(value) for value in whole if value != 0)
