"""From volumes to slice embeddings: the loop over inputs, the cache, pooling."""

from meddinov3_stroke.features.extractor import Extractor
from meddinov3_stroke.features.key import embedding_key
from meddinov3_stroke.features.pooling import POOL_MODES, PoolMode, pool_slices
from meddinov3_stroke.features.reading import nifti_digest
from meddinov3_stroke.features.result import Extraction, Status
from meddinov3_stroke.features.selection import select_slices
from meddinov3_stroke.features.store import EmbeddingStore, Entry
from meddinov3_stroke.features.worker import extract_series

__all__ = [
    "POOL_MODES",
    "EmbeddingStore",
    "Entry",
    "Extraction",
    "Extractor",
    "PoolMode",
    "Status",
    "embedding_key",
    "extract_series",
    "nifti_digest",
    "pool_slices",
    "select_slices",
]
