"""Series tables, labels, splits, and public cohorts as series tables."""

from meddinov3_stroke.data.audit import SeriesDigests, audit_pixels, require_disjoint
from meddinov3_stroke.data.bhsd import prepare_bhsd
from meddinov3_stroke.data.cohort_tables import PreparedCohort
from meddinov3_stroke.data.columns import parse_column_mapping
from meddinov3_stroke.data.cq500 import prepare_cq500
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.data.exclusion import Exclusion, IdList, exclude, read_id_list
from meddinov3_stroke.data.header_index import INDEX_SCHEMA
from meddinov3_stroke.data.physionet import prepare_physionet
from meddinov3_stroke.data.rsna import PreparedRsna, RsnaOptions, prepare_rsna
from meddinov3_stroke.data.slice_labels import SLICE_LABEL_SCHEMA
from meddinov3_stroke.data.split_files import split_document, split_frame, write_splits
from meddinov3_stroke.data.splits import SPLITS, Splits, check_ratios, split_by_patient, split_statistics
from meddinov3_stroke.data.table import SeriesTable, read_series_table

__all__ = [
    "INDEX_SCHEMA",
    "SLICE_LABEL_SCHEMA",
    "SPLITS",
    "CsvFile",
    "Exclusion",
    "IdList",
    "PreparedCohort",
    "PreparedRsna",
    "RsnaOptions",
    "SeriesDigests",
    "SeriesTable",
    "Splits",
    "audit_pixels",
    "check_ratios",
    "exclude",
    "parse_column_mapping",
    "prepare_bhsd",
    "prepare_cq500",
    "prepare_physionet",
    "prepare_rsna",
    "read_csv_file",
    "read_id_list",
    "read_series_table",
    "require_disjoint",
    "split_by_patient",
    "split_document",
    "split_frame",
    "split_statistics",
    "write_splits",
]
