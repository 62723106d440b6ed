"""Axial rotary position embedding as tables of sines and cosines in numpy; `layers` has the same in torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.backbone.architecture import ROPE_BASE


def round_bf16(x: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Values rounded to the nearest bf16 (ties to even), still as float32."""
    bits = np.array(x, dtype=np.float32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def rope_periods(head_dim: int, base: float = ROPE_BASE) -> Float32[np.ndarray, " period"]:
    """The head_dim/4 periods of the angles, in float32."""
    exponents = np.arange(head_dim // 4, dtype=np.float32) / np.float32(head_dim // 4)
    return np.asarray(np.power(np.float32(base), exponents))


def rope_tables(
    grid: tuple[int, int], periods: Float32[np.ndarray, " period"], dtype: str
) -> tuple[Float32[np.ndarray, "patch head_dim"], Float32[np.ndarray, "patch head_dim"]]:
    """(sines, cosines) of every patch, row-major: row angles, column angles, and that block twice.

    With `dtype` bf16 each operation is rounded by itself, as the published code does; the order of the roundings
    matters: 2*pi*(c/period) differs by 1.7e-3 in the tokens.
    """
    rounded = round_bf16 if dtype == "bf16" else np.asarray

    def angles(n: int) -> np.ndarray:
        centres = rounded(np.arange(0.5, n, dtype=np.float32))
        centres = rounded(rounded(rounded(centres / np.float32(n)) * np.float32(2)) - np.float32(1))
        return np.asarray(rounded(rounded(np.float32(2 * np.pi) * centres)[:, None] / rounded(periods)))

    n_rows, n_columns = grid
    by_row = np.repeat(angles(n_rows), n_columns, axis=0)
    by_column = np.tile(angles(n_columns), (n_rows, 1))
    block = np.concatenate((by_row, by_column, by_row, by_column), axis=1)
    return rounded(np.sin(block)), rounded(np.cos(block))
