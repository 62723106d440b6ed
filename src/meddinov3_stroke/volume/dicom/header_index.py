"""The files of one series by a header index, for folders that hold many series flat (`prepare-rsna` writes one)."""

from __future__ import annotations

from pathlib import Path

from meddinov3_stroke.errors import CorruptInput, MissingInput, UsageError
from meddinov3_stroke.volume.contents import machine_errors

INDEX_SUFFIX = ".parquet"
"""Ending of a header index; its columns `series_uid` and `file` are read here."""


def files_of_series(path: Path, series_uid: str | None) -> list[Path]:
    """The files of a series in the header index at `path`; a relative one is taken from the index's folder.

    Raises:
        UsageError: no series named.
        MissingInput: no such series in the index.
        CorruptInput: it is no header index.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if series_uid is None:
        raise UsageError(f"{path} is a header index of many series; name one with --series UID")
    try:
        with machine_errors(path):
            rows = parquet.read_table(path, columns=["file"], filters=[("series_uid", "=", series_uid)])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise CorruptInput(
            f"{path} is no header index ({type(error).__name__}); make it again with prepare-rsna"
        ) from error
    names = dict.fromkeys(name for name in rows["file"].to_pylist() if name)
    if not names:
        raise MissingInput(f"{path} has no series {series_uid}; check the UID, or make the index again")
    return [path.parent / name for name in names]
