"""Series tables, labels and splits; public cohorts as series tables are imported from their modules."""

from meddinov3_stroke.data.csv_file import read_id_list
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
    "SeriesDigests",
    "SeriesTable",
    "Splits",
    "audit_pixels",
    "check_ratios",
    "parse_column_mapping",
    "read_id_list",
    "read_series_table",
    "require_disjoint",
    "split_by_patient",
    "split_document",
    "split_statistics",
    "write_splits",
]
