"""Headers: attributes of the patient, the series, the plane and the pixels."""

from __future__ import annotations

from typing import Any

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from dicom_writer.geometry import Plane, decimal_string
from dicom_writer.options import DicomOptions
from dicom_writer.pixels import StoredPixels
from dicom_writer.plan import Identity, PlannedImage

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLEMENTATION_UID = "2.25.81340557349421087152203618290563771"
"""Of the writer, in the file meta group; so that it does not change with a library."""


def image_dataset(
    image: PlannedImage, identity: Identity, options: DicomOptions, gantry_tilt_degrees: float
) -> Dataset:
    """A CT image without its pixels, full or as bare as RSNA's."""
    dataset = Dataset()
    add_uid(dataset, "SOPInstanceUID", image.sop_instance_uid)
    dataset.Modality = "CT"
    dataset.PatientID = identity.patient_id
    dataset.StudyID = ""
    add_uid(dataset, "StudyInstanceUID", identity.study_uid)
    add_uid(dataset, "SeriesInstanceUID", identity.series_uid)
    if options.header == "full":
        dataset.SOPClassUID = CT_IMAGE
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        add_series(dataset, identity, options)
        dataset.SliceThickness = decimal_string(image.plane.thickness_mm)
        dataset.GantryDetectorTilt = decimal_string(round(gantry_tilt_degrees, 4))
        dataset.SliceLocation = decimal_string(image.plane.position_mm[2])
        if image.instance_number is not None:
            dataset.InstanceNumber = image.instance_number
    add_plane(dataset, image.plane)
    add_pixel_format(dataset, image.pixels)
    add_rescale(dataset, image.pixels, options)
    dataset.WindowCenter, dataset.WindowWidth = "40", "80"
    add_padding(dataset, options)
    return dataset


def add_uid(dataset: Dataset, keyword: str, uid: str) -> None:
    """Set a UID as it is; RSNA's have no UID's form, which pydicom would warn of."""
    dataset.add(DataElement(keyword, "UI", uid, validation_mode=config.IGNORE))


def add_series(dataset: Dataset, identity: Identity, options: DicomOptions) -> None:
    """Set the attributes of patient, study, equipment and series; those of the patient are empty."""
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        setattr(dataset, keyword, "")
    dataset.ReferringPhysicianName = ""
    dataset.Manufacturer = "Phantom"
    dataset.ManufacturerModelName = "Synthetic head"
    dataset.SeriesNumber = options.series_number
    dataset.AcquisitionNumber = 1
    dataset.SeriesDescription = options.description
    dataset.BodyPartExamined = options.body_part
    dataset.ConvolutionKernel = options.kernel
    dataset.KVP = "120"
    dataset.PatientPosition = "HFS"
    dataset.PositionReferenceIndicator = ""
    dataset.FrameOfReferenceUID = identity.frame_of_reference_uid
    if options.contrast_agent:
        dataset.ContrastBolusAgent = options.contrast_agent


def add_plane(dataset: Dataset, plane: Plane) -> None:
    """Position, orientation and pixel spacing, as decimal strings that hold them exactly."""
    dataset.ImagePositionPatient = position_strings(plane)
    dataset.ImageOrientationPatient = orientation_strings(plane)
    dataset.PixelSpacing = [decimal_string(spacing) for spacing in plane.pixel_spacing_mm]


def position_strings(plane: Plane) -> list[str]:
    """Image Position (Patient)."""
    return [decimal_string(value) for value in plane.position_mm]


def orientation_strings(plane: Plane) -> list[str]:
    """Image Orientation (Patient)."""
    return [decimal_string(value) for value in (*plane.row_direction, *plane.column_direction)]


def add_pixel_format(dataset: Dataset, pixels: StoredPixels) -> None:
    """How the pixels are stored: one grey sample in 16 bits."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.values.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = pixels.bits_stored
    dataset.HighBit = pixels.bits_stored - 1
    dataset.PixelRepresentation = int(pixels.is_signed)


def add_rescale(dataset: Dataset, pixels: StoredPixels, options: DicomOptions) -> None:
    """Slope and intercept, or a modality LUT in their place."""
    if pixels.lut is None:
        dataset.RescaleIntercept = decimal_string(pixels.intercept)
        dataset.RescaleSlope = decimal_string(pixels.slope)
        if options.header == "full":
            dataset.RescaleType = "HU"
        return
    lut: Any = Dataset()
    lut.add_new("LUTDescriptor", "US", [len(pixels.lut), 0, 16])
    lut.ModalityLUTType = "HU"
    lut.add_new("LUTData", "US", pixels.lut.tolist())
    dataset.ModalityLUTSequence = [lut]


def add_padding(dataset: Dataset, options: DicomOptions) -> None:
    """Set Pixel Padding Value and its range limit, if the options declare them."""
    if options.padding_value is None or not options.is_padding_declared:
        return
    representation = "SS" if options.pixels == "signed16" else "US"
    dataset.add_new("PixelPaddingValue", representation, options.padding_value)
    if options.padding_limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", representation, options.padding_limit)


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> FileMetaDataset:
    """The file meta group; the same on every machine."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # counted when it is written
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "PHANTOM"
    return meta
