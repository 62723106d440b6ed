"""The rows of one DICOM file of a large folder, from as few of its bytes as its header needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from meddinov3_stroke.errors import InputError, MachineError
from meddinov3_stroke.preparation.header_rows import (
    FAILED,
    NOT_AN_IMAGE,
    REJECTED,
    FileFacts,
    batch_of,
    faulty_row,
    image_row,
)
from meddinov3_stroke.volume.dicom.file_headers import read_file_headers
from meddinov3_stroke.volume.dicom.files import InputFile


def read_files(folder: Path, files: Sequence[FileFacts]) -> pa.RecordBatch:
    """The rows of these files of `folder`, one an image, and one with the reason for a file that gives none."""
    return batch_of([row for facts in files for row in _rows_of_file(folder, facts)])


def _rows_of_file(folder: Path, facts: FileFacts) -> list[dict[str, Any]]:
    try:
        headers = read_file_headers(InputFile(facts.file, folder / facts.file, facts.n_bytes))
    except InputError as error:
        return [faulty_row(facts, REJECTED, f"{error.code}: {error}")]
    except MachineError as error:
        return [faulty_row(facts, FAILED, f"{error.code}: {error}")]
    if not headers:
        return [faulty_row(facts, NOT_AN_IMAGE, "not DICOM" if headers is None else "DICOM without an image")]
    return [image_row(facts, header) for header in headers]
