"""Similarity of the patches of a slice to one of them, and the flags that choose slice and patch."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.errors import UsageError

CENTER = "center"
"""Name of the patch at (rows // 2, columns // 2)."""

MIDDLE = -1
"""--sim-slice for the slice at n_slices // 2."""


def patch_similarity(
    patches: Float32[np.ndarray, "patch dim"], grid: tuple[int, int], reference: tuple[int, int]
) -> Float32[np.ndarray, "row col"]:
    """Cosine similarity, in [-1, 1], of every patch token to the one at `reference` (row, column in the grid).

    `patches` are row-major. A token of length 0 has similarity 0 to every other; the reference has 1 to itself.

    Raises:
        UsageError: the reference lies outside the grid, or the grid does not hold the patches.
    """
    n_rows, n_columns = grid
    if n_rows * n_columns != len(patches):
        raise UsageError(f"a patch grid of {n_rows} x {n_columns} does not hold {len(patches)} patch tokens")
    _check_inside(reference, grid, f"{reference[0]},{reference[1]}")
    tokens = patches.astype(np.float64)
    lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
    directions = np.divide(tokens, lengths, out=np.zeros_like(tokens), where=lengths > 0)
    index = reference[0] * n_columns + reference[1]
    cosines = directions @ directions[index]
    cosines[index] = 1.0
    return np.asarray(np.clip(cosines, -1.0, 1.0).reshape(grid).astype(np.float32))


def parse_patch(text: str, grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column), 0-based, that `center` or `row,column` names in the patch grid.

    Raises:
        UsageError: neither of the two forms, or outside the grid.
    """
    if text.strip().lower() == CENTER:
        return grid[0] // 2, grid[1] // 2
    match = re.fullmatch(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*", text, flags=re.ASCII)
    if match is None:
        raise UsageError(f"--sim-patch {text}: found {text!r}, expected center or row,column such as 3,7")
    patch = (int(match[1]), int(match[2]))
    _check_inside(patch, grid, text)
    return patch


def sim_slice_index(sim_slice: int, n_slices: int) -> int:
    """The slice that `--sim-slice` names in a volume of `n_slices`; -1 is the middle one.

    Raises:
        UsageError: there is no such slice.
    """
    if sim_slice == MIDDLE:
        return n_slices // 2
    if not 0 <= sim_slice < n_slices:
        raise UsageError(
            f"--sim-slice {sim_slice}: no such slice; expected 0 to {n_slices - 1}, or {MIDDLE} for the middle one"
        )
    return sim_slice


def _check_inside(patch: tuple[int, int], grid: tuple[int, int], text: str) -> None:
    if not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise UsageError(
            f"--sim-patch {text}: no such patch; expected row 0 to {grid[0] - 1} and column 0 to {grid[1] - 1} "
            f"of the {grid[0]} x {grid[1]} grid"
        )
