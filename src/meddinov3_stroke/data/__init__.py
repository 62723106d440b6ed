"""Series tables, labels, splits, and public cohorts as series tables."""

from meddinov3_stroke.data.bhsd import prepare_bhsd
from meddinov3_stroke.data.cohort import Prepared
from meddinov3_stroke.data.cq500 import prepare_cq500
from meddinov3_stroke.data.csv_file import read_id_list
from meddinov3_stroke.data.physionet import prepare_physionet
from meddinov3_stroke.data.rsna import prepare_rsna
from meddinov3_stroke.data.splits import (
    SPLITS,
    SeriesDigests,
    Splits,
    audit_pixels,
    check_ratios,
    require_disjoint,
    split_by_patient,
    split_document,
    split_statistics,
    write_splits,
)
from meddinov3_stroke.data.table import SeriesTable, parse_column_mapping, read_series_table

__all__ = [
    "SPLITS",
    "Prepared",
    "SeriesDigests",
    "SeriesTable",
    "Splits",
    "audit_pixels",
    "check_ratios",
    "parse_column_mapping",
    "prepare_bhsd",
    "prepare_cq500",
    "prepare_physionet",
    "prepare_rsna",
    "read_id_list",
    "read_series_table",
    "require_disjoint",
    "split_by_patient",
    "split_document",
    "split_statistics",
    "write_splits",
]
