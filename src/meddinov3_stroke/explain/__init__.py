"""Why a head says what it says: similarity of patches and suspicious slices."""

from meddinov3_stroke.explain.notices import DEMO_NOTICE, demo_warnings, is_demo
from meddinov3_stroke.explain.similarity import parse_patch, patch_similarity
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
    "soft_tissue_patches",
    "suspicion",
]
