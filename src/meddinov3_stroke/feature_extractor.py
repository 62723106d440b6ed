"""From a volume to slice embeddings, patch tokens, pooled vectors and patch similarity."""

from meddinov3_stroke.explain import patch_similarity
from meddinov3_stroke.features import FeatureExtractor, extract, pool_slices, select_slices

__all__ = ["FeatureExtractor", "extract", "patch_similarity", "pool_slices", "select_slices"]
