"""Aids for reading a result: which slices and patches a head scores highest, patch similarity, notices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.types import BackboneIdentity

HeadInput = Literal["slice", "mean", "max", "mean_max", "slices", "patches"]
"""What a row of a head's input is: a slice, a volume pooled in one of three ways, or its slices or their patches."""

SOFT_TISSUE_HU = (0.0, 100.0)
"""Brain (20 to 45), CSF (0 to 15) and acute blood (50 to 100) lie between; bone, air and fat do not.
Source: usual figures of CT textbooks."""

LEAST_SOFT_TISSUE = 0.6  # of the pixels of a reference patch; excludes air and the rim of the skull
HEAD_ABOVE_HU = -300.0
"""Mean of a patch, or value of a pixel, above which it is head and not air: fat (-100) is above, foam below."""

REFERENCE_RULE = (
    f"Reference patch: the patch token with the highest head score among patches of which at least "
    f"{LEAST_SOFT_TISSUE:.0%} of the pixels are within {SOFT_TISSUE_HU[0]:g} to {SOFT_TISSUE_HU[1]:g} HU "
    f"(brain, CSF, blood); on a slice without any, among patches with a mean above {HEAD_ABOVE_HU:g} HU. The head was "
    "not trained on patch tokens, so the map guides the eye and does not localise a lesion"
)
"""How the reference patch of a suspicious slice is chosen; part of the output."""


EVIDENCE_RULE = (
    "Reference patch: the patch with the highest logit of the head, which was trained on patches, among patches of "
    "soft tissue as far as there are any. The similarity map guides the eye and is no lesion map"
)
BRIGHT_RULE = (
    "Reference patch: the patch of soft tissue with the highest mean HU, because the head scores no single patch. The "
    "map guides the eye and does not localise a lesion"
)


def head_rows(tokens: Float32[np.ndarray, "n dim"], kind: HeadInput) -> Float32[np.ndarray, "n width"]:
    """Rows a head can take, each from one token: the token, or for `mean_max` twice (its mean and its maximum)."""
    return np.concatenate([tokens, tokens], axis=1) if kind == "mean_max" else tokens


def suspicion(probabilities: Float64[np.ndarray, "n label"], labels: Sequence[str]) -> Float64[np.ndarray, " n"]:
    """The score of each row: P(any), or without `any` the maximum over labels."""
    if "any" in labels:
        return np.asarray(probabilities[:, list(labels).index("any")])
    return np.asarray(probabilities.max(axis=1))


def rank(scores: Float[np.ndarray, " n"], top_k: int) -> Int64[np.ndarray, " shown"]:
    """Positions of the `top_k` highest scores, highest first; of equal ones the lower position first."""
    return np.argsort(-scores, kind="stable")[:top_k].astype(np.int64)


def reference_patch(
    scores: Float[np.ndarray, " patch"], hu: Float32[np.ndarray, "row col"], grid: tuple[int, int]
) -> tuple[int, int]:
    """(row, column) in the grid of the patch chosen by `REFERENCE_RULE`; any patch may be, on a slice of air."""
    in_head = patch_means(hu, grid) > HEAD_ABOVE_HU
    candidates = next((some for some in (soft_tissue_patches(hu, grid), in_head) if some.any()), np.ones_like(in_head))
    best = int(np.argmax(np.where(candidates.ravel(), scores, -np.inf)))
    return divmod(best, grid[1])


def soft_tissue_patches(hu: Float32[np.ndarray, "row col"], grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Whether at least `LEAST_SOFT_TISSUE` of a patch is soft tissue."""
    low, high = SOFT_TISSUE_HU
    share = patch_means(((hu >= low) & (hu <= high)).astype(np.float32), grid)
    return np.asarray(share >= LEAST_SOFT_TISSUE - 1e-9)


def patch_means(values: Float32[np.ndarray, "row col"], grid: tuple[int, int]) -> Float64[np.ndarray, "h w"]:
    """Mean of each patch of a grid stretched over the slice; pixels on a border count for both by their share."""
    rows, columns = _parts(values.shape[0], grid[0]), _parts(values.shape[1], grid[1])
    return np.asarray(rows @ values.astype(np.float64) @ columns.T)


def _parts(n_pixels: int, n_parts: int) -> Float64[np.ndarray, "part pixel"]:
    """Weight of every pixel in the mean of every one of `n_parts` equal parts of a line."""
    edges = np.linspace(0.0, n_pixels, n_parts + 1)
    pixels = np.arange(n_pixels)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(overlap, 0.0, None) * n_parts / n_pixels)


def ranking_text(kind: HeadInput, labels: Sequence[str], known: bool = True) -> str:
    """How slices were scored and ranked, in words; unless `known`, what the head was trained on is an assumption."""
    score = "P(any)" if "any" in labels else "the highest probability over the labels (the head has no `any`)"
    if kind == "slice":
        return f"Slices ranked by {score}; the head was trained on slice embeddings"
    if kind in ("slices", "patches"):
        return f"Slices ranked by {score} of the head, which scores every slice of a case"
    alone = ", each slice pooled alone (its embedding twice, as mean and as maximum)"
    how = score + (alone if kind == "mean_max" else " of the head on each slice embedding")
    trained = f"the head was trained on {kind}-pooled volumes, so this is a transfer from volumes to slices"
    if not known:
        trained = f"the head does not record what it was trained on; {kind}-pooled volumes are assumed"
    return f"Slices ranked by {how}; {trained}"


def case_text(kind: HeadInput) -> str:
    """How the probabilities of the case were computed, in words."""
    if kind == "slice":
        return "maximum over the embedded slices, per label, of the head on slice embeddings"
    if kind in ("slices", "patches"):
        return f"head on the {kind} of the case"
    return f"head on the {kind}-pooled slice embeddings"


CENTER = "center"  # name of the patch at (rows // 2, columns // 2)
MIDDLE = -1  # --sim-slice for the slice at n_slices // 2


def patch_similarity(
    patches: Float32[np.ndarray, "patch dim"], grid: tuple[int, int], reference: tuple[int, int]
) -> Float32[np.ndarray, "row col"]:
    """Cosine similarity, in [-1, 1], of every patch token (row-major) to the one at `reference` (row, column).

    A token of length 0 has similarity 0 to every other. `UsageError` for a reference or patches outside the grid.
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
    """(row, column), 0-based, that `center` or `row,column` names in the patch grid; `UsageError` for others."""
    if text.strip().lower() == CENTER:
        return grid[0] // 2, grid[1] // 2
    match = re.fullmatch(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*", text, flags=re.ASCII)
    if match is None:
        raise UsageError(f"--sim-patch {text}: found {text!r}, expected center or row,column such as 3,7")
    patch = (int(match[1]), int(match[2]))
    _check_inside(patch, grid, text)
    return patch


def sim_slice_index(sim_slice: int, n_slices: int) -> int:
    """The slice that `--sim-slice` names in a volume of `n_slices`, -1 for the middle; `UsageError` for others."""
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


AID_NOTE = "Patch similarity is a viewing aid, not a lesion map"
SIMILARITY_RANGE = (0.0, 1.0)  # similarities at the ends of the colour bar; fixed, so that pictures can be compared
WINDOW_CENTER, WINDOW_WIDTH = 40.0, 80.0  # HU; the usual brain window

DEMO_NOTICE = "demonstration backbone: trained on synthetic phantoms, says nothing about patients"
"""In every output made with the bundled backbone."""


def is_demo(backbone: str) -> bool:
    """Whether the backbone of this name is the bundled one."""
    return backbone == "demo"


def demo_warnings(identity: BackboneIdentity) -> tuple[str, ...]:
    """`DEMO_NOTICE` for the bundled backbone, nothing for any other."""
    return (DEMO_NOTICE,) if is_demo(identity.name) else ()
