"""The series table, its splits and its audit. No torch here."""

from meddinov3_stroke.cohort.audit import SeriesDigests, audit_pixels, require_disjoint
from meddinov3_stroke.cohort.columns import parse_column_mapping
from meddinov3_stroke.cohort.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.cohort.exclusion import Exclusion, IdList, exclude, read_id_list
from meddinov3_stroke.cohort.split_files import split_document, split_frame, write_splits
from meddinov3_stroke.cohort.splits import SPLITS, Splits, check_ratios, split_by_patient, split_statistics
from meddinov3_stroke.cohort.table import SeriesTable, read_series_table

__all__ = [
    "SPLITS",
    "CsvFile",
    "Exclusion",
    "IdList",
    "SeriesDigests",
    "SeriesTable",
    "Splits",
    "audit_pixels",
    "check_ratios",
    "exclude",
    "parse_column_mapping",
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
