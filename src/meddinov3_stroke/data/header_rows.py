"""Image headers as rows of a table, and back: what the header pass of a large folder keeps of each file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from meddinov3_stroke.ct.dicom.header import ImageHeader, PixelFormat, Rescale

PASS_VERSION = 3
"""Raised when the same file would give another row; rows of an older pass are then read again."""

_TEXT = [
    "sop_instance_uid",
    "series_instance_uid",
    "study_instance_uid",
    "patient_id",
    "modality",
    "sop_class_uid",
    "series_description",
    "body_part",
    "kernel",
    "contrast",
    "transfer_syntax",
    "frame_of_reference_uid",
    "geometry_fault",
]
_WHOLE = ("frame", "series_number", "acquisition_number", "instance_number")
_REAL = ("slice_thickness_mm", "gantry_tilt_degrees")
_YES_NO = ("has_pixel_data", "has_modality_lut")
_PIXELS = {
    "rows": pa.int32(),
    "columns": pa.int32(),
    "samples_per_pixel": pa.int16(),
    "photometric_interpretation": pa.string(),
    "bits_allocated": pa.int16(),
    "bits_stored": pa.int16(),
    "high_bit": pa.int16(),
    "is_signed": pa.bool_(),
    "n_frames": pa.int32(),
}
_RESCALE = {"slope": pa.float64(), "intercept": pa.float64(), "is_wrapped": pa.bool_(), "is_stated": pa.bool_()}
_VECTORS = {
    "position_mm": ("position_x", "position_y", "position_z"),
    "row_direction": ("row_x", "row_y", "row_z"),
    "column_direction": ("column_x", "column_y", "column_z"),
    "pixel_spacing_mm": ("spacing_rows", "spacing_columns"),
}
"""LPS, as DICOM has it."""
_PADDING = ("padding_low", "padding_high")
_IMAGE_TYPE_SEPARATOR = "\\"

_FILE_FIELDS = [
    ("file", pa.string()),
    ("n_bytes", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("status", pa.string()),
    ("reason", pa.string()),
]

SCHEMA = pa.schema(
    [
        *_FILE_FIELDS,
        *((name, pa.string()) for name in (*_TEXT, "image_type")),
        *((name, pa.int64()) for name in _WHOLE),
        *((name, pa.float64()) for name in _REAL),
        *((name, pa.bool_()) for name in _YES_NO),
        *_PIXELS.items(),
        *_RESCALE.items(),
        *((name, pa.float64()) for names in _VECTORS.values() for name in names),
        *((name, pa.int32()) for name in _PADDING),
    ],
    metadata={b"header_pass": str(PASS_VERSION).encode()},
)
"""One row an image (a file, or a frame of one), and one for a file that gave none."""

DICTIONARY_COLUMNS = [
    *(name for name in _TEXT if name != "sop_instance_uid"),
    "image_type",
    "photometric_interpretation",
    "status",
    "reason",
]
"""Columns of few different values; held as codes in memory."""

READ = "read"
"""A file that gave a header; of the others the status is `SET_ASIDE` (no image), `REJECTED` or `FAILED`."""


@dataclass(frozen=True)
class FileFacts:
    """A file as the folder lists it."""

    file: str
    """Name in the folder."""
    n_bytes: int
    mtime_ns: int


def image_row(facts: FileFacts, header: ImageHeader) -> dict[str, Any]:
    """The row of one image; absent values are left out."""
    row = _file_row(facts, READ, "")
    row |= {name: getattr(header, name) for name in (*_TEXT, *_WHOLE, *_REAL, *_YES_NO)}
    row["image_type"] = _IMAGE_TYPE_SEPARATOR.join(header.image_type)
    row |= {name: getattr(header.pixels, name) for name in _PIXELS}
    row |= {name: getattr(header.rescale, name) for name in _RESCALE}
    for name, columns in _VECTORS.items():
        vector = getattr(header, name)
        if vector is not None:
            row |= {column: float(value) for column, value in zip(columns, vector, strict=True)}
    if header.padding is not None:
        row |= dict(zip(_PADDING, header.padding, strict=True))
    return row


def faulty_row(facts: FileFacts, status: str, reason: str) -> dict[str, Any]:
    """The row of a file that gave no image, and why."""
    return _file_row(facts, status, reason)


def _file_row(facts: FileFacts, status: str, reason: str) -> dict[str, Any]:
    return {
        "file": facts.file,
        "n_bytes": facts.n_bytes,
        "mtime_ns": facts.mtime_ns,
        "status": status,
        "reason": reason,
    }


def batch_of(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """The rows as columns of `SCHEMA`."""
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


def headers_of_rows(table: pa.Table) -> list[ImageHeader]:
    """The headers of a table's rows, all of status `READ`, in their order."""
    return [_header(row) for row in _dicts(table)]


def _dicts(table: pa.Table) -> Iterable[dict[str, Any]]:
    # dictionaries are decoded at once: value by value takes ten times as long
    columns = [
        column.cast(SCHEMA.field(name).type).to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return (dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True))


def _header(row: Mapping[str, Any]) -> ImageHeader:
    image_type = row["image_type"]
    return ImageHeader(
        file=row["file"],
        **{name: row[name] for name in (*_TEXT, *_WHOLE, *_REAL, *_YES_NO)},
        image_type=tuple(image_type.split(_IMAGE_TYPE_SEPARATOR)) if image_type else (),
        pixels=PixelFormat(**{name: row[name] for name in _PIXELS}),
        rescale=Rescale(**{name: row[name] for name in _RESCALE}),
        padding=None if row[_PADDING[0]] is None else (row[_PADDING[0]], row[_PADDING[1]]),
        position_mm=_vector(row, "position_mm"),
        row_direction=_vector(row, "row_direction"),
        column_direction=_vector(row, "column_direction"),
        pixel_spacing_mm=_pair(row, "pixel_spacing_mm"),
    )


def _vector(row: Mapping[str, Any], name: str) -> np.ndarray | None:
    values = [row[column] for column in _VECTORS[name]]
    return None if None in values else np.array(values)


def _pair(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    first, second = (row[column] for column in _VECTORS[name])
    return None if first is None else (first, second)
