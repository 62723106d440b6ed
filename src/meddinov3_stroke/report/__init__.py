"""Findings as JSON, terminal text and pictures; `pictures` and `charts` load Pillow, where one is drawn."""

from meddinov3_stroke.report.case import (
    case_document,
    case_row,
    dicom_document,
    map_document,
    origin_document,
    print_case,
    save_case,
)

__all__ = [
    "case_document",
    "case_row",
    "dicom_document",
    "map_document",
    "origin_document",
    "print_case",
    "save_case",
]
