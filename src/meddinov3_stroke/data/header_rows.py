"""Image headers as rows of a table, and back. Its columns are derived from the declaration of `ImageHeader`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
from pydicom.datadict import tag_for_keyword

from meddinov3_stroke.ct.dicom.container import DicomContent, parse_dataset
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import HeaderFields, ImageHeader
from meddinov3_stroke.ct.dicom.survey import HEAD_BYTES, read_file_headers
from meddinov3_stroke.errors import InputError, MachineError

PASS_VERSION = 5  # raised when the same file would give another row; rows of older passes are then read again

READ, SET_ASIDE, REJECTED, FAILED = "read", "set aside", "rejected", "failed"
"""Status of a file: its header was read, it has no image, it is damaged, or the machine could not read it this time."""

_IDENTITY = ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id")
"""What is still read of a damaged file, to find the series that it belongs to."""

_SEPARATOR = "\\"  # between the values of a multi-valued text

_CODED = pa.dictionary(pa.int32(), pa.string())
_DISTINCT = ("file", "sop_instance_uid")
"""How texts are held: as codes, but for those that differ from image to image."""

_ARROW = {
    str: _CODED,
    tuple[str, ...]: _CODED,
    bool: pa.bool_(),
    int: pa.int32(),
    int | None: pa.int64(),
    tuple[int, int] | None: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
}
"""Column types of header fields; vectors of coordinates are float64."""


def _columns(kind: type[Any]) -> Iterator[tuple[str, pa.DataType]]:
    hints = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            yield from _columns(hints[one.name])
        else:
            of_column = pa.string() if one.name in _DISTINCT else _ARROW.get(hints[one.name], pa.float64())
            yield from ((name, of_column) for name in one.metadata.get("columns", (one.name,)))


SCHEMA = pa.schema(
    [
        ("n_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("status", _CODED),
        ("reason", _CODED),
        *_columns(ImageHeader),
    ],
    metadata={b"header_pass": str(PASS_VERSION).encode()},
)
"""One row for each image (a file, or a frame of one), and one for a file without an image."""


def plain_type(column: str) -> pa.DataType:
    """The type of a column's values; text for a column of codes."""
    kind = SCHEMA.field(column).type
    return getattr(kind, "value_type", kind)


def read_files(folder: Path, listed: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """The rows of these files as `SCHEMA`: one per image, and one with the reason for a file without.

    `listed` has the `file` (its name in `folder`), `n_bytes` and `mtime_ns` of each.
    """
    rows = [
        one | {"status": status, "reason": reason} | cells
        for one in listed
        for status, reason, cells in _read_file(InputFile(one["file"], folder / one["file"], one["n_bytes"]))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _read_file(file: InputFile) -> list[tuple[str, str, dict[str, Any]]]:
    """(status, reason, cells) of each image."""
    try:
        headers = read_file_headers(file)
    except InputError as error:
        return [(REJECTED, f"{error.code}: {error}", _identity(file))]
    except MachineError as error:
        return [(FAILED, f"{error.code}: {error}", {})]
    if not headers:
        return [(SET_ASIDE, "not DICOM" if headers is None else "DICOM without an image", {})]
    return [(READ, "", header_cells(header)) for header in headers]


def header_cells(header: Any) -> dict[str, Any]:
    """The cells of a header by column; absent values are left out."""
    cells: dict[str, Any] = {}
    for one in fields(header):
        value = getattr(header, one.name)
        if is_dataclass(value):
            cells |= header_cells(value)
        elif value is not None and "columns" in one.metadata:
            cells |= dict(zip(one.metadata["columns"], value, strict=True))
        elif value is not None:
            cells[one.name] = _SEPARATOR.join(value) if isinstance(value, tuple) else value
    return cells


def _identity(file: InputFile) -> dict[str, str]:
    """The identifiers of a damaged file, as far as its head can be read: without them no series is known to miss it."""
    declared = {one.name: one.metadata["keyword"] for one in fields(ImageHeader) if one.name in _IDENTITY}
    tags = [tag for keyword in declared.values() if (tag := tag_for_keyword(keyword)) is not None]
    try:
        found = HeaderFields(parse_dataset(DicomContent("", file.head(HEAD_BYTES), None), file.name, tags), file.name)
    except (InputError, MachineError):
        return {}
    return {name: text for name, keyword in declared.items() if (text := found.text(keyword))}


def headers_of_rows(table: pa.Table, kind: type[Any] = ImageHeader) -> list[Any]:
    """The headers of a table's rows, all of status `READ`, in their order.

    Built column by column, which is ten times as fast as by row. `kind` is the header class of nested calls.
    """
    hints, values = get_type_hints(kind), []
    for one in fields(kind):
        hint = hints[one.name]
        if is_dataclass(hint):
            values.append(headers_of_rows(table, hint))  # type: ignore[arg-type]
            continue
        names = one.metadata.get("columns", (one.name,))
        columns = [table[name].cast(plain_type(name)).to_pylist() for name in names]  # codes are slow to list
        if len(columns) > 1:
            make = np.array if len(columns) == 3 else tuple
            values.append([None if None in cells else make(cells) for cells in zip(*columns, strict=True)])
        elif hint == tuple[str, ...]:
            values.append([tuple(text.split(_SEPARATOR)) if text else () for text in columns[0]])
        else:
            values += columns
    return [kind(*cells) for cells in zip(*values, strict=True)]
