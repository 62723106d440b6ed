"""From findings to files and tables."""

from meddinov3_stroke.report.case import case_document, save_case
from meddinov3_stroke.report.inspection import print_inspection
from meddinov3_stroke.report.origin import dicom_document, origin_document
from meddinov3_stroke.report.terminal import print_case

__all__ = ["case_document", "dicom_document", "origin_document", "print_case", "print_inspection", "save_case"]
