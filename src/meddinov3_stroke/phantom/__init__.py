"""Seeded synthetic non-contrast head CT with haemorrhages and masks. Invented anatomy: no patient's data is in it."""

from meddinov3_stroke.phantom.cohort import PatientSpec, StudySpec, count_series, draw_cohort
from meddinov3_stroke.phantom.dicom_geometry import SliceGeometry, axial_geometry, geometry_of_affine, sample_hu
from meddinov3_stroke.phantom.dicom_options import TRANSFER_SYNTAXES, DicomOptions
from meddinov3_stroke.phantom.dicom_series import (
    DicomImageTruth,
    DicomSeriesTruth,
    write_dicom_phantom,
    write_dicom_series,
)
from meddinov3_stroke.phantom.head import Phantom, make_phantom
from meddinov3_stroke.phantom.sites import LesionSpec
from meddinov3_stroke.phantom.spec import HeadSpec, PhantomSpec, draw_spec
from meddinov3_stroke.phantom.writing import CohortManifest, SeriesRecord, write_cohort

__all__ = [
    "TRANSFER_SYNTAXES",
    "CohortManifest",
    "DicomImageTruth",
    "DicomOptions",
    "DicomSeriesTruth",
    "HeadSpec",
    "LesionSpec",
    "PatientSpec",
    "Phantom",
    "PhantomSpec",
    "SeriesRecord",
    "SliceGeometry",
    "StudySpec",
    "axial_geometry",
    "count_series",
    "draw_cohort",
    "draw_spec",
    "geometry_of_affine",
    "make_phantom",
    "sample_hu",
    "write_cohort",
    "write_dicom_phantom",
    "write_dicom_series",
]
