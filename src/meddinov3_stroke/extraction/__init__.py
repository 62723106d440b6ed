"""From inputs to slice embeddings: one worker loop over volumes and a cache, and a ledger that adds up."""

from meddinov3_stroke.extraction.extractor import Extractor
from meddinov3_stroke.extraction.reading import nifti_digest
from meddinov3_stroke.extraction.result import Extraction, Status
from meddinov3_stroke.extraction.worker import extract_series

__all__ = ["Extraction", "Extractor", "Status", "extract_series", "nifti_digest"]
