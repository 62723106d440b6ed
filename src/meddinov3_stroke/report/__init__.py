"""Findings as JSON, terminal text and pictures."""

from meddinov3_stroke.report.case import (
    case_document,
    dicom_document,
    map_document,
    origin_document,
    print_case,
    save_case,
)
from meddinov3_stroke.report.pictures import SliceMap, case_picture, slice_picture

__all__ = [
    "SliceMap",
    "case_document",
    "case_picture",
    "dicom_document",
    "map_document",
    "origin_document",
    "print_case",
    "save_case",
    "slice_picture",
]
