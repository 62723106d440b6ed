"""The files of one series by a header index, for folders that hold many series flat (`prepare-rsna` writes one)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.ct.dicom.files import MAX_FILES
from meddinov3_stroke.errors import CorruptInput, MissingInput, UnsupportedInput, UsageError

INDEX_SUFFIX = ".parquet"
"""Ending of a header index; its columns `series_uid` and `file` are read here."""


_BATCH_ROWS = 8192
"""Rows decoded at a time."""


def is_header_index(path: Path) -> bool:
    """Whether `path` is a file whose name says that it is a header index; a folder of that name is a folder."""
    return path.name.lower().endswith(INDEX_SUFFIX) and path.is_file()


def files_of_series(path: Path, series_uid: str | None) -> list[Path]:
    """The files of a series in the header index at `path`; a relative one is taken from the index's folder.

    Raises:
        UsageError: no series named.
        MissingInput: no such series in the index.
        CorruptInput: it is no header index.
        UnsupportedInput: more than `MAX_FILES` images in the series.
    """
    import pyarrow as pa

    if series_uid is None:
        raise UsageError(f"{path} is a header index of many series; name one with --series UID")
    try:
        with machine_errors(path):
            names = _names(path, series_uid)
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:  # ValueError: text that is no UTF-8 too
        raise CorruptInput(
            f"{path} is no header index ({type(error).__name__}); make it again with prepare-rsna"
        ) from error
    if not names:
        raise MissingInput(f"{path} has no series {series_uid}; check the UID, or make the index again")
    return [path.parent / name for name in names]


def _names(path: Path, series_uid: str) -> list[str]:
    """The files of the series, each once; row groups without it are not read.

    Raises:
        TypeError, ValueError, pyarrow.ArrowException: columns that are no text, or damage.
        UnsupportedInput: more rows than `MAX_FILES`, which are then not made into Python's strings.
    """
    from pyarrow import dataset

    index = dataset.dataset(path, format="parquet")
    for name in ("series_uid", "file"):
        _require_text(index.schema, name)
    is_of_series = dataset.field("series_uid") == series_uid
    rows = index.scanner(columns=["file"], filter=is_of_series, batch_size=_BATCH_ROWS).head(MAX_FILES + 1)
    if len(rows) > MAX_FILES:
        raise UnsupportedInput(
            f"{path} has more than {MAX_FILES} images of series {series_uid}; no series is that long; make it again "
            "with prepare-rsna"
        )
    return list(dict.fromkeys(name for name in rows["file"].to_pylist() if name))


def _require_text(schema: Any, name: str) -> None:
    import pyarrow as pa

    found = schema.field(name).type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        raise TypeError(f"{name} is {found}")
