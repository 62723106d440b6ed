"""From volumes to slice embeddings: the loop over inputs, the cache, pooling."""

from meddinov3_stroke.features.extract import extract, extract_one
from meddinov3_stroke.features.extraction import Extraction
from meddinov3_stroke.features.extractor import (
    EVERY_SLICE,
    POOL_MODES,
    FeatureExtractor,
    PoolMode,
    naming,
    patch_statistics,
    pool_mode_name,
    pool_slices,
    select_slices,
)
from meddinov3_stroke.features.memory import InputMemory
from meddinov3_stroke.features.store import EmbeddingStore, Entry, embedding_key

__all__ = [
    "EVERY_SLICE",
    "POOL_MODES",
    "EmbeddingStore",
    "Entry",
    "Extraction",
    "FeatureExtractor",
    "InputMemory",
    "PoolMode",
    "embedding_key",
    "extract",
    "extract_one",
    "naming",
    "patch_statistics",
    "pool_mode_name",
    "pool_slices",
    "select_slices",
]
