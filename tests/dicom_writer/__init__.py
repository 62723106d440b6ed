"""Writes DICOM series with known faults, and returns what a reader should find in them."""

from dicom_writer.geometry import SliceGeometry, axial_geometry, geometry_of_affine, sample_hu
from dicom_writer.options import TRANSFER_SYNTAXES, DicomOptions
from dicom_writer.series import DicomImageTruth, DicomSeriesTruth, write_dicom_phantom, write_dicom_series

__all__ = [
    "TRANSFER_SYNTAXES",
    "DicomImageTruth",
    "DicomOptions",
    "DicomSeriesTruth",
    "SliceGeometry",
    "axial_geometry",
    "geometry_of_affine",
    "sample_hu",
    "write_dicom_phantom",
    "write_dicom_series",
]
