"""What heads of any kind make of the slices of a case, and the patch of a slice that they point at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke.explain import (
    BRIGHT_RULE,
    EVIDENCE_RULE,
    REFERENCE_RULE,
    HeadInput,
    head_rows,
    patch_means,
    suspicion,
)
from meddinov3_stroke.features import pool_slices
from meddinov3_stroke.heads.applying import HeadEnsemble
from meddinov3_stroke.types import HeadData, HeadOutput, SliceEmbeddings, Volume


class Scored(NamedTuple):
    """What the heads make of a case."""

    heads: HeadEnsemble
    kind: HeadInput
    of_case: list[HeadOutput]
    rows: Float64[np.ndarray, "n label"]  # probabilities of the slices
    pooled: Float32[np.ndarray, " width"]
    inputs: Float32[np.ndarray, "row width"]  # what is compared with the training set
    rule: str  # by which the reference patch is chosen, in words
    evidence: Mapping[int, Float64[np.ndarray, " patch"]] = {}  # of a slice, where the heads score patches

    def of_tokens(self, tokens: Float32[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n label"]:
        """Probabilities of tokens, each taken for a slice."""
        return self.heads.probabilities(self.heads.outputs(head_rows(tokens, self.kind)))

    @property
    def scores_tokens(self) -> bool:
        """Whether the heads take a token of the backbone as it is."""
        return self.rule == REFERENCE_RULE

    def patch_scores(
        self, volume: Volume, index: int, patches: Float32[np.ndarray, "patch dim"], grid: tuple[int, int]
    ) -> Float64[np.ndarray, " patch"]:
        """What the reference patch of a slice is chosen by."""
        if index in self.evidence:
            return self.evidence[index]
        if self.scores_tokens:
            return suspicion(self.of_tokens(patches), self.heads.labels)
        return patch_means(np.clip(volume.hu_slices([index])[0], 0, 100), grid).ravel()


def scored(
    heads: HeadEnsemble, kind: HeadInput, volume: Volume, embeddings: SliceEmbeddings, *, is_plain: bool
) -> Scored:
    """The heads applied to a case, whose class tokens they take if `is_plain`, else another view of it."""
    values = embeddings.cls if is_plain else embeddings.others[heads.view.name]
    if kind not in ("slices", "patches"):
        pooled = pool_slices(values, "mean" if kind == "slice" else kind)
        outputs = heads.outputs(head_rows(values, kind))
        # RSNA's label of a series is the maximum over its slices
        of_case = outputs if kind == "slice" else heads.outputs(pooled[None])
        inputs, rule = values if kind == "slice" else pooled[None], REFERENCE_RULE if is_plain else BRIGHT_RULE
        return Scored(heads, kind, of_case, heads.probabilities(outputs), pooled, inputs, rule)
    heights = volume.slice_positions_mm[embeddings.slice_indices, 2]
    data = HeadData(
        values,
        np.zeros((1, len(heads.labels)), dtype=np.int8),
        starts=np.array([0, len(values)]),
        positions_mm=(heights - heights.mean()).astype(np.float32),
        scale=None if heads.view.basis is None else heads.view.basis.scale,
    )
    of_case = heads.of_case(data)
    of_slices = [HeadOutput(one.slice_logits, heads.labels) for one in of_case if one.slice_logits is not None]
    pooled, rows = pool_slices(embeddings.cls, "mean"), heads.probabilities(of_slices)
    of_patches = [one.patch_logits for one in of_case if one.patch_logits is not None]
    if not of_patches:
        return Scored(heads, kind, of_case, rows, pooled, pooled[None], BRIGHT_RULE)
    flat = heads.probabilities([HeadOutput(one.reshape(-1, len(heads.labels)), heads.labels) for one in of_patches])
    evidence = suspicion(flat, heads.labels).reshape(len(values), -1)
    known = dict(zip(embeddings.slice_indices.tolist(), evidence, strict=True))
    return Scored(heads, kind, of_case, rows, pooled, pooled[None], EVIDENCE_RULE, known)
