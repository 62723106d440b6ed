"""Slice embeddings at rest: which slices, pooled how, under which key, in which store."""

from meddinov3_stroke.embeddings.key import embedding_key
from meddinov3_stroke.embeddings.pooling import POOL_MODES, PoolMode, pool_slices
from meddinov3_stroke.embeddings.selection import select_slices
from meddinov3_stroke.embeddings.store import EmbeddingStore, Entry

__all__ = ["POOL_MODES", "EmbeddingStore", "Entry", "PoolMode", "embedding_key", "pool_slices", "select_slices"]
