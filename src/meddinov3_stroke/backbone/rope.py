"""Axial rotary position embedding of the patch tokens; it has no learnt part."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from meddinov3_stroke.errors import UsageError

ROPE_BASE = 100.0
"""Base of the periods, base^(2k / (head_dim/2)) (MedDINOv3 and DINOv3: `pos_embed_rope_base`)."""

ROPE_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Arithmetic of the rotation: bf16 for MedDINOv3, fp32 for Meta's own hub weights."""


def rope_periods(
    head_dim: int, base: float = ROPE_BASE, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " period"]:
    """The head_dim/4 periods of the angles, computed in float32 and rounded once to `dtype`."""
    exponents = torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4)
    return (base**exponents).to(dtype)


def patch_coordinates(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " n"]:
    """Centres of `n` patches along one axis in (-1, 1); each of the three operations is rounded to `dtype`."""
    centres = torch.arange(0.5, n, dtype=dtype, device=device)
    return centres / n * 2.0 - 1.0


def rope_angles(
    grid: tuple[int, int], periods: Float[Tensor, " period"], dtype: torch.dtype
) -> Float[Tensor, "patch head_dim"]:
    """Angles of every patch, row-major: row angles, then column angles, and that block twice; all in `dtype`."""
    periods = periods.to(dtype)
    rows, columns = (patch_coordinates(n, dtype, periods.device) for n in grid)
    # The order of the roundings matters: 2*pi*(c/period) differs by 1.7e-3 in the tokens.
    row_angles = (2.0 * math.pi * rows)[:, None] / periods
    column_angles = (2.0 * math.pi * columns)[:, None] / periods
    n_rows, n_columns = grid
    by_row = row_angles[:, None, :].expand(n_rows, n_columns, -1)
    by_column = column_angles[None, :, :].expand(n_rows, n_columns, -1)
    block = torch.cat((by_row, by_column), dim=-1).flatten(0, 1)  # [h, w, d/2] -> [h*w, d/2]
    return block.repeat(1, 2)


def rotate_half(x: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
    """[-x2, x1] of the two halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_patches(
    x: Float[Tensor, "n head token head_dim"],
    sin: Float[Tensor, "patch head_dim"],
    cos: Float[Tensor, "patch head_dim"],
) -> Float[Tensor, "n head token head_dim"]:
    """Queries or keys with the patches rotated and the prefix tokens as they are, in the dtype of `x`.

    All tokens, prefix included, pass through the dtype of `sin`; there every product and the sum is rounded by itself.
    """
    n_prefix = x.shape[-2] - sin.shape[-2]
    rounded = x.to(sin.dtype)
    if n_prefix == 0:  # angles that cover every token, as `angles_of_all_tokens` makes them
        return (rounded * cos + rotate_half(rounded) * sin).to(x.dtype)
    prefix, patches = rounded[..., :n_prefix, :], rounded[..., n_prefix:, :]
    rotated = patches * cos + rotate_half(patches) * sin
    return torch.cat((prefix, rotated), dim=-2).to(x.dtype)


def angles_of_all_tokens(
    sin: Float[Tensor, "patch head_dim"], cos: Float[Tensor, "patch head_dim"], n_prefix: int
) -> tuple[Float[Tensor, "token head_dim"], Float[Tensor, "token head_dim"]]:
    """(sin, cos) with rows in front that leave `n_prefix` prefix tokens as they are."""
    still = sin.new_zeros(n_prefix, sin.shape[1])
    return torch.cat((still, sin)), torch.cat((torch.ones_like(still), cos))


class RopePositionEmbedding(nn.Module):
    """Holds the periods under their published name and gives the sines and cosines of a patch grid."""

    periods: Tensor

    def __init__(self, head_dim: int, base: float = ROPE_BASE, dtype: str = "bf16", device: str | None = None) -> None:
        super().__init__()
        if dtype not in ROPE_DTYPES:
            raise UsageError(f"RoPE dtype: found {dtype!r}, expected one of {', '.join(ROPE_DTYPES)}")
        if head_dim % 4:
            raise UsageError(f"RoPE: found heads of {head_dim}, expected a multiple of 4; change num_heads")
        self.head_dim, self.base, self.dtype = head_dim, base, ROPE_DTYPES[dtype]
        self.register_buffer("periods", rope_periods(head_dim, base, self.dtype).to(device))

    def forward(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(sin, cos), each [rows*columns, head_dim] in this embedding's dtype, whatever the module was cast to."""
        periods = self.periods
        if self.dtype is torch.float32:  # a file's periods are rounded to bf16: 1.9e-3 in the tokens
            periods = rope_periods(self.head_dim, self.base).to(periods.device)
        angles = rope_angles(grid, periods, self.dtype)
        return angles.sin(), angles.cos()
