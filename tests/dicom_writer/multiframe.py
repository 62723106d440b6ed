"""One object that holds every slice as a frame: Enhanced CT, or single images converted to it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicom_writer import header
from dicom_writer.geometry import decimal_string
from dicom_writer.options import DicomOptions
from dicom_writer.plan import Identity, PlannedImage

ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.1"
CONVERSION_DATE, CONVERSION_TIME = "20000101", "000000"
"""In place of the moment of writing, so that equal options give equal bytes."""


def multiframe_dataset(
    images: tuple[PlannedImage, ...],
    identity: Identity,
    options: DicomOptions,
    sop_instance_uid: str,
    gantry_tilt_degrees: float,
) -> Dataset:
    """The object without its pixels; its frames are `images` in order."""
    if options.layout == "legacy":
        return _converted(images, identity, options, sop_instance_uid, gantry_tilt_degrees)
    dataset = Dataset()
    dataset.SOPClassUID = ENHANCED_CT_IMAGE
    dataset.SOPInstanceUID = sop_instance_uid
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.PatientID, dataset.StudyID = identity.patient_id, ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = identity.study_uid, identity.series_uid
    header.add_series(dataset, identity, options)
    del dataset.ConvolutionKernel  # given for each frame in this object
    dataset.InstanceNumber = 1
    dataset.ContentDate, dataset.ContentTime = CONVERSION_DATE, CONVERSION_TIME
    header.add_pixel_format(dataset, images[0].pixels)
    header.add_padding(dataset, options)
    dataset.NumberOfFrames = len(images)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(images[0], options, gantry_tilt_degrees)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(image) for image in images]
    return dataset


def _shared_groups(image: PlannedImage, options: DicomOptions, gantry_tilt_degrees: float) -> Dataset:
    groups = Dataset()
    groups.PixelMeasuresSequence = [_pixel_measures(image)]
    frame_type, reconstruction, acquisition = Dataset(), Dataset(), Dataset()
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    reconstruction.ConvolutionKernel = options.kernel
    acquisition.GantryDetectorTilt = round(gantry_tilt_degrees, 4)
    groups.CTImageFrameTypeSequence = [frame_type]
    groups.CTReconstructionSequence = [reconstruction]
    groups.CTAcquisitionDetailsSequence = [acquisition]
    return groups


def _pixel_measures(image: PlannedImage) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = [decimal_string(spacing) for spacing in image.plane.pixel_spacing_mm]
    measures.SliceThickness = decimal_string(image.plane.thickness_mm)
    return measures


def _frame_groups(image: PlannedImage) -> Dataset:
    position, orientation, transformation, content = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = header.position_strings(image.plane)
    orientation.ImageOrientationPatient = header.orientation_strings(image.plane)
    transformation.RescaleIntercept = decimal_string(image.pixels.intercept)
    transformation.RescaleSlope = decimal_string(image.pixels.slope)
    transformation.RescaleType = "HU"
    content.StackID = "1"
    content.InStackPositionNumber = image.instance_number or 1
    groups = Dataset()
    groups.PlanePositionSequence = [position]
    groups.PlaneOrientationSequence = [orientation]
    groups.PixelValueTransformationSequence = [transformation]
    groups.FrameContentSequence = [content]
    return groups


def _converted(
    images: tuple[PlannedImage, ...],
    identity: Identity,
    options: DicomOptions,
    sop_instance_uid: str,
    gantry_tilt_degrees: float,
) -> Dataset:
    """highdicom's conversion of the single images, in their order."""
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    singles = [_single(image, identity, options, gantry_tilt_degrees) for image in images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attributes that an invented head has no values for
        converted: Any = LegacyConvertedEnhancedCTImage(
            singles,
            series_instance_uid=identity.series_uid,
            series_number=options.series_number,
            sop_instance_uid=sop_instance_uid,
            instance_number=1,
            include_dimension_index=False,  # frames stay in the order given
        )
    dataset = Dataset()
    dataset.update({element.tag: element for element in converted})
    del dataset.PixelData, dataset.ContributingEquipmentSequence  # records when and by what it was converted
    for keyword in ("InstanceCreationDate", "ContentDate", "AcquisitionDateTime"):
        if keyword in dataset:
            setattr(dataset, keyword, CONVERSION_DATE)
    for keyword in ("InstanceCreationTime", "ContentTime"):
        if keyword in dataset:
            setattr(dataset, keyword, CONVERSION_TIME)
    return dataset


def _single(image: PlannedImage, identity: Identity, options: DicomOptions, gantry_tilt_degrees: float) -> Dataset:
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = header.image_dataset(image, identity, options, gantry_tilt_degrees)
    dataset.file_meta = header.file_meta(header.CT_IMAGE, image.sop_instance_uid, ExplicitVRLittleEndian)
    dataset.add_new("PixelData", "OW", np.ascontiguousarray(image.pixels.values).tobytes())
    return dataset
