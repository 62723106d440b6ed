"""What else lies in a study's folder: localizer, secondary captures, a dose report, clutter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from pydicom.dataset import Dataset

from dicom_writer import header
from dicom_writer.encoding import file_bytes, write_dataset
from dicom_writer.geometry import Plane, SliceGeometry, as_written
from dicom_writer.options import TRANSFER_SYNTAXES, Companion, DicomOptions
from dicom_writer.pixels import StoredPixels
from dicom_writer.plan import Identity, PlannedImage, unique_uid

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
LOCALIZER_SHAPE = (96, 80)
"""(rows, columns) of the localizer, unlike those of any slice."""
CLUTTER: dict[str, bytes] = {
    "README.TXT": b"This disc holds images.\r\n",
    "AUTORUN.INF": b"[autorun]\r\nopen=VIEWER.EXE\r\n",
    ".DS_Store": b"\0\0\0\1Bud1\0",
    "VIEWER.EXE": b"MZ\x90\0" + bytes(60),
    "LOCKFILE": b"",
}
"""Files beside the images that are not DICOM."""


@dataclass(frozen=True, eq=False)
class CompanionFile:
    """One file that is not a slice."""

    file: str
    content: bytes
    sop_instance_uid: str
    """Empty if the file is not DICOM."""
    fault: str
    plane: Plane | None = None


def companion_files(identity: Identity, geometry: SliceGeometry, options: DicomOptions) -> tuple[CompanionFile, ...]:
    """The files of `options.companions`."""
    files: list[CompanionFile] = []
    for companion in options.companions:
        if companion == "localizer":
            files.append(_localizer(identity, geometry, options))
        elif companion == "clutter":
            files.extend(CompanionFile(name, content, "", "clutter") for name, content in CLUTTER.items())
            files.append(_media_directory(options))
        elif companion == "dose_report":
            files.append(_dose_report(identity, options))
        else:
            files.append(_capture(identity, options, companion))
    return tuple(files)


def _localizer(identity: Identity, geometry: SliceGeometry, options: DicomOptions) -> CompanionFile:
    """A lateral scout with the series' own UID."""
    uid = unique_uid(options, options.seed, "localizer")
    span = np.array([0.0, -(LOCALIZER_SHAPE[1] - 1) / 2, (LOCALIZER_SHAPE[0] - 1) / 2]) * 3.0
    plane = Plane(
        position_mm=as_written(np.round(geometry.positions_mm.mean(axis=0) + span, 6)),
        row_direction=np.array([0.0, 1.0, 0.0]),
        column_direction=np.array([0.0, 0.0, -1.0]),
        pixel_spacing_mm=(3.0, 3.0),
        shape=LOCALIZER_SHAPE,
        thickness_mm=500.0,
    )
    values = np.random.default_rng([options.seed, 13]).integers(900, 1400, LOCALIZER_SHAPE).astype(np.uint16)
    hu = values.astype(np.float32) - np.float32(1024)
    pixels = StoredPixels(values, 12, 1.0, -1024.0, None, hu)
    image = PlannedImage("", uid, 1, None, plane, pixels, "set aside", ("localizer",))
    plain = DicomOptions(seed=options.seed, header=options.header, pixels="unsigned12", kernel=options.kernel)
    dataset = header.image_dataset(image, identity, plain, 0.0)
    if options.header == "full":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SeriesNumber, dataset.SeriesDescription = options.series_number, options.description
    meta_uid = unique_uid(DicomOptions(seed=options.seed), options.seed, "localizer")
    name = f"{uid if options.names == 'sop_uid' else 'LOCALIZER'}{options.extension}"
    return CompanionFile(name, file_bytes(dataset, values[None], meta_uid=meta_uid), uid, "localizer", plane)


def _capture(identity: Identity, options: DicomOptions, companion: Companion) -> CompanionFile:
    """A screen: grey, or in colour as a perfusion summary is."""
    is_colour = companion == "rgb_summary"
    dataset = _object(identity, options, companion, SECONDARY_CAPTURE, "CT" if is_colour else "OT")
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "WSD"
    dataset.SamplesPerPixel = 3 if is_colour else 1
    dataset.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = 48, 64
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", _screen(3 if is_colour else 1).tobytes())
    return _companion_file(dataset, options, companion)


def _screen(n_samples: int) -> UInt8[np.ndarray, "row col sample"]:
    rows, columns, samples = np.indices((48, 64, n_samples))
    return np.asarray((rows * 5 + columns * 3 + samples * 80) % 256, dtype=np.uint8)


def _dose_report(identity: Identity, options: DicomOptions) -> CompanionFile:
    dataset = _object(identity, options, "dose_report", DOSE_REPORT, "SR")
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator = "113701", "DCM"
    title.CodeMeaning = "X-Ray Radiation Dose Report"
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [title]
    dataset.ContentSequence = []
    return _companion_file(dataset, options, "dose_report")


def _object(
    identity: Identity, options: DicomOptions, companion: Companion, sop_class_uid: str, modality: str
) -> Dataset:
    """An object of the same study in a series of its own."""
    full = DicomOptions(seed=options.seed)
    dataset = Dataset()
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = unique_uid(full, options.seed, companion)
    dataset.Modality = modality
    header.add_uid(dataset, "StudyInstanceUID", identity.study_uid)
    dataset.SeriesInstanceUID = unique_uid(full, options.seed, companion, "series")
    dataset.PatientID, dataset.PatientName, dataset.StudyID = identity.patient_id, "", ""
    dataset.SeriesNumber, dataset.InstanceNumber = 999, 1
    dataset.SeriesDescription = companion.replace("_", " ")
    return dataset


def _companion_file(dataset: Dataset, options: DicomOptions, companion: Companion) -> CompanionFile:
    uid = str(dataset.SOPInstanceUID)
    dataset.file_meta = header.file_meta(dataset.SOPClassUID, uid, TRANSFER_SYNTAXES["explicit"])
    name = f"{companion.upper()}{options.extension}"
    return CompanionFile(name, write_dataset(dataset), uid, companion.replace("_", " "))


def _media_directory(options: DicomOptions) -> CompanionFile:
    """A DICOMDIR that lists nothing; its file has no extension."""
    uid = unique_uid(DicomOptions(seed=options.seed), options.seed, "media directory")
    dataset = Dataset()
    dataset.FileSetID = "PHANTOM"
    dataset.add_new("OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity", "UL", 0)
    dataset.add_new("OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity", "UL", 0)
    dataset.FileSetConsistencyFlag = 0
    dataset.DirectoryRecordSequence = []
    dataset.file_meta = header.file_meta(MEDIA_DIRECTORY, uid, TRANSFER_SYNTAXES["explicit"])
    return CompanionFile("DICOMDIR", write_dataset(dataset), uid, "clutter")
