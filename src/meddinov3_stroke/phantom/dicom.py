"""A head phantom as a plain DICOM series: one uncompressed axial CT image for each slice."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from meddinov3_stroke.phantom.head import Phantom
from meddinov3_stroke.system.atomic import write_bytes

IMPLEMENTATION_UID = "2.25.81340557349421087152203618290563771"
"""Implementation Class UID in the file meta group; fixed, so that the bytes do not change with a library's version."""
INTERCEPT_HU = -1024
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's axes point left and posterior, NIfTI's right and anterior."""
EMPTY_KEYWORDS = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Attributes that a CT image must have and that may be empty (DICOM PS3.3 A.3)."""


def write_series(folder: Path, phantom: Phantom, patient_id: str) -> tuple[str, str]:
    """(Study UID, Series UID) of the series written into `folder`: IM0001.dcm, IM0002.dcm, ... from inferior up.

    The same phantom gives the same bytes. The slices lie where its affine puts them: a tilted phantom is a head tilted
    in a straight gantry.

    Raises:
        StorageError: the folder cannot be written.
    """
    image = _series_header(phantom, patient_id)
    steps = phantom.affine[:3, :3] * LPS_TO_RAS[:, None]
    for index, hu in enumerate(phantom.hu):
        image.SOPInstanceUID = _uid(phantom.spec.seed, "2", f"slice {index}")
        image.InstanceNumber = index + 1
        position = _decimals(np.round(phantom.affine[:3, 3] * LPS_TO_RAS + index * steps[:, 0], 6))
        image.ImagePositionPatient, image.SliceLocation = position, position[2]
        image.add_new("PixelData", "OW", (hu - np.int16(INTERCEPT_HU)).astype("<i2").tobytes())
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
        image.file_meta.ImplementationVersionName = "PHANTOM"
        buffer = io.BytesIO()
        dcmwrite(buffer, image, enforce_file_format=True)
        write_bytes(folder / f"IM{index + 1:04d}.dcm", buffer.getvalue())
    return str(image.StudyInstanceUID), str(image.SeriesInstanceUID)


def _series_header(phantom: Phantom, patient_id: str) -> Dataset:
    """The attributes that all images of the series share."""
    seed, steps = phantom.spec.seed, phantom.affine[:3, :3] * LPS_TO_RAS[:, None]
    slice_mm, row_mm, column_mm = np.linalg.norm(steps, axis=0)
    header = Dataset()
    for keyword in EMPTY_KEYWORDS:
        setattr(header, keyword, "")
    header.SOPClassUID, header.Modality, header.PatientID = CTImageStorage, "CT", patient_id
    header.StudyInstanceUID, header.SeriesInstanceUID = _uid(seed, "study"), _uid(seed, "series", "2")
    header.FrameOfReferenceUID, header.PatientPosition = _uid(seed, "frame of reference"), "HFS"
    header.Manufacturer, header.ManufacturerModelName = "Phantom", "Synthetic head"
    header.SeriesNumber, header.SeriesDescription, header.AcquisitionNumber = 2, "Head 5.0 H30s", 1
    header.BodyPartExamined, header.ConvolutionKernel, header.KVP = "HEAD", "H30s", "120"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SliceThickness = f"{round(float(slice_mm), 3):.10g}"
    header.GantryDetectorTilt = "0"
    header.ImageOrientationPatient = _decimals(np.concatenate([steps[:, 2] / column_mm, steps[:, 1] / row_mm]))
    header.PixelSpacing = _decimals(np.array([row_mm, column_mm]))
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = phantom.hu.shape[1:]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = "1", str(INTERCEPT_HU), "HU"
    header.WindowCenter, header.WindowWidth = "40", "80"
    return header


def _decimals(values: Float64[np.ndarray, " n"]) -> list[str]:
    """DICOM decimal strings, at most 16 characters each."""
    return [f"{round(float(value), 12):.10g}" for value in values]


def _uid(seed: int, *words: str) -> str:
    digest = hashlib.blake2s("\0".join(("phantom DICOM", str(seed), *words)).encode(), digest_size=16)
    return f"2.25.{int(digest.hexdigest(), 16)}"
