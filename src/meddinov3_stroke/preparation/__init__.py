"""Downloads of public cohorts as series tables that the rest of the pipeline runs from. No torch here."""

from meddinov3_stroke.preparation.bhsd import prepare_bhsd
from meddinov3_stroke.preparation.cohort_tables import PreparedCohort
from meddinov3_stroke.preparation.cq500 import prepare_cq500
from meddinov3_stroke.preparation.header_index import INDEX_SCHEMA
from meddinov3_stroke.preparation.physionet import prepare_physionet
from meddinov3_stroke.preparation.rsna import PreparedRsna, RsnaOptions, prepare_rsna
from meddinov3_stroke.preparation.slice_labels import SLICE_LABEL_SCHEMA

__all__ = [
    "INDEX_SCHEMA",
    "SLICE_LABEL_SCHEMA",
    "PreparedCohort",
    "PreparedRsna",
    "RsnaOptions",
    "prepare_bhsd",
    "prepare_cq500",
    "prepare_physionet",
    "prepare_rsna",
]
