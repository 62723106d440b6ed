"""The rows of one DICOM file of a large folder, from as few of its bytes as its header needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.dicom.dataset import parse_dataset
from meddinov3_stroke.ct.dicom.fields import HeaderFields
from meddinov3_stroke.ct.dicom.file_headers import HEAD_BYTES, read_file_headers
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.structure import DicomContent
from meddinov3_stroke.data.header_rows import FileFacts, batch_of, faulty_row, image_row
from meddinov3_stroke.errors import InputError, MachineError

_IDENTITY = {
    "sop_instance_uid": "SOPInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
}
"""What tells whose a damaged file is; nothing else of it is trusted."""

_IDENTITY_TAGS = tuple(tag for keyword in _IDENTITY.values() if (tag := tag_for_keyword(keyword)) is not None)


def read_files(folder: Path, files: Sequence[FileFacts]) -> pa.RecordBatch:
    """The rows of these files of `folder`, one an image, and one with the reason for a file that gives none."""
    return batch_of([row for facts in files for row in _rows_of_file(folder, facts)])


def _rows_of_file(folder: Path, facts: FileFacts) -> list[dict[str, Any]]:
    file = InputFile(facts.file, folder / facts.file, facts.n_bytes)
    try:
        headers = read_file_headers(file)
    except InputError as error:
        return [faulty_row(facts, "rejected", f"{error.code}: {error}") | _identity(file)]
    except MachineError as error:
        return [faulty_row(facts, "failed", f"{error.code}: {error}")]
    if not headers:
        return [faulty_row(facts, "set aside", "not DICOM" if headers is None else "DICOM without an image")]
    return [image_row(facts, header) for header in headers]


def _identity(file: InputFile) -> dict[str, str]:
    """Whose a damaged file is, as far as its head still says: the labels of its series are not whole without it."""
    try:
        head = DicomContent("", file.head(HEAD_BYTES), None)
        fields = HeaderFields(parse_dataset(head, file.name, _IDENTITY_TAGS), file.name)
    except (InputError, MachineError):
        return {}
    return {name: text for name, keyword in _IDENTITY.items() if (text := fields.text(keyword))}
