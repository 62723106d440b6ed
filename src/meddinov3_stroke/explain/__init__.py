"""Aids for reading a result: suspicious slices, and similarity of patches."""

from meddinov3_stroke.explain.notices import DEMO_NOTICE, demo_warnings, is_demo
from meddinov3_stroke.explain.similarity import parse_patch, patch_similarity, sim_slice_index
from meddinov3_stroke.explain.suspicion import (
    REFERENCE_RULE,
    HeadInput,
    case_text,
    head_rows,
    rank,
    ranking_text,
    reference_patch,
    soft_tissue_patches,
    suspicion,
)

__all__ = [
    "DEMO_NOTICE",
    "REFERENCE_RULE",
    "HeadInput",
    "case_text",
    "demo_warnings",
    "head_rows",
    "is_demo",
    "parse_patch",
    "patch_similarity",
    "rank",
    "ranking_text",
    "reference_patch",
    "sim_slice_index",
    "soft_tissue_patches",
    "suspicion",
]
