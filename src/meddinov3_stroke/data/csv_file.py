"""A CSV file as a table of strings: nothing is turned into a number, a date or a missing value on the way."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.system.digest import sha256_of_bytes

CHINESE_ENCODING = "gb18030"
"""Superset of GBK and GB2312, what Chinese Windows writes; tried only after UTF-8."""

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, eq=False)
class CsvFile:
    """The cells of a CSV as stripped strings; the index is the row in the file, its header being row 1."""

    cells: pd.DataFrame
    sha256: str
    warnings: tuple[str, ...]


def read_csv_file(path: Path, what: str = "series CSV") -> CsvFile:
    """The cells of `path`, UTF-8 (with or without BOM) or, saying so, GBK. Blank lines are passed over.

    `what` is what messages call it.

    Raises:
        SeriesTableError: no such file, another encoding or separator, ragged rows, repeated or no column names.
    """
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise SeriesTableError(f"no {what} at {path}; found {found}, expected a comma-separated text file")
    content = path.read_bytes()
    text, warnings = _decode(path, content)
    cells = _parse(path, text)
    return CsvFile(cells=cells, sha256=sha256_of_bytes(content), warnings=warnings)


def _decode(path: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith(_UTF16_MARKS):
        raise SeriesTableError(f"{path} is encoded in UTF-16; expected UTF-8; save it as CSV UTF-8")
    if b"\x00" in content:
        raise SeriesTableError(f"{path} holds NUL bytes: no text file (a spreadsheet?); expected CSV in UTF-8")
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        position = error.start
    try:
        text = content.decode(CHINESE_ENCODING)
    except UnicodeDecodeError as error:
        raise SeriesTableError(
            f"{path} is neither UTF-8 (byte {position}) nor GBK (byte {error.start}); save it as CSV UTF-8"
        ) from error
    return text, (f"{path.name} is not UTF-8 and was read as GBK; if names look wrong, save it as CSV UTF-8",)


def _parse(path: Path, text: str) -> pd.DataFrame:
    first_line = text.lstrip().partition("\n")[0]
    if not first_line:
        raise SeriesTableError(f"{path} is empty; expected a header row and one row per series")
    if "," not in first_line:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in first_line:
                raise SeriesTableError(f"{path} is separated by {name}; expected commas; save it as comma-separated")
    try:
        cells = pd.read_csv(io.StringIO(text), header=None, dtype=str, na_filter=False, skip_blank_lines=False)
    except pd.errors.ParserError as error:
        raise SeriesTableError(
            f"{path} has rows of different lengths: {str(error).strip()}; quote cells that hold a comma"
        ) from error
    cells = cells.apply(lambda column: column.str.strip())
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    cells = cells[(cells != "").any(axis=1)]
    return _with_header(path, cells)


def _with_header(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    header = [str(name) for name in cells.iloc[0]]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise SeriesTableError(f"{path} has columns of the same name: {', '.join(repeated)}; keep one of each")
    body = cells.iloc[1:].copy()
    body.columns = pd.Index([name or f"unnamed_{k}" for k, name in enumerate(header)])
    if body.empty:
        raise SeriesTableError(f"{path} has a header and no rows; expected one row per series")
    return body
