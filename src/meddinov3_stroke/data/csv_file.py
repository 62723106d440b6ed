"""CSV files as tables of strings: no cell is turned into a number, a date or a missing value."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8

from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.system.digest import sha256_of_bytes

CHINESE_ENCODING = "gb18030"
"""Superset of GBK and GB2312, which Chinese Windows writes; tried only after UTF-8."""

ZERO_OR_ONE = r"[01](\.0*)?"
"""Spellings of a label that are read: `0`, `1`, `0.0`, `1.0`. No other number is rounded."""

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, eq=False)
class CsvFile:
    """The stripped cells of a CSV; the index is the row in the file, where the header is row 1."""

    path: Path
    cells: pd.DataFrame
    sha256: str
    warnings: tuple[str, ...]

    def column(self, name: str) -> pd.Series:
        """The column called `name`, in any case.

        Raises:
            SeriesTableError: no column or several columns have that name.
        """
        found = [column for column in self.cells.columns if str(column).casefold() == name.casefold()]
        if len(found) != 1:
            header = [str(column) for column in self.cells.columns]
            listed = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
            raise SeriesTableError(
                f"{self.path.name}: {len(found)} columns are called {name}; expected one; found {listed}"
            )
        return self.cells[found[0]]

    def matching(self, name: str, pattern: str, expected: str) -> pd.Series:
        """The column called `name`, whose every cell matches `pattern`.

        Raises:
            LabelError: a cell that does not; with its row.
        """
        column = self.column(name)
        bad = column[~column.str.fullmatch(pattern)]
        if len(bad):
            raise LabelError(f"{self.path} row {bad.index[0]}: {column.name} is {bad.iloc[0]!r:.40}; {expected}")
        return column

    def binary(self, name: str) -> Int8[np.ndarray, " row"]:
        """The labels in the column called `name`.

        Raises:
            LabelError: a cell that is not 0 or 1; with its row.
        """
        return self.matching(name, ZERO_OR_ONE, "expected 0 or 1").str[0].to_numpy().astype(np.int8)


def read_csv_file(path: Path, what: str = "series CSV") -> CsvFile:
    """The cells of `path` in UTF-8 (with or without BOM) or, with a warning, GBK. Blank lines are skipped.

    `what` is what messages call the file.

    Raises:
        SeriesTableError: no such file, another encoding or separator, ragged rows, repeated or no column names.
    """
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise SeriesTableError(f"no {what} at {path}; found {found}, expected a comma-separated text file")
    content = path.read_bytes()
    text, warnings = _decode(path, content)
    return CsvFile(path, _with_header(path, _parse(path, text)), sha256_of_bytes(content), warnings)


def _decode(path: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith(_UTF16_MARKS):
        raise SeriesTableError(f"{path} is encoded in UTF-16; expected UTF-8; save it as CSV UTF-8")
    if b"\x00" in content:
        raise SeriesTableError(f"{path} contains NUL bytes, so it is not text (a spreadsheet?); expected CSV in UTF-8")
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
            f"{path} has rows of different lengths: {str(error).strip()}; quote cells that contain a comma"
        ) from error
    cells = cells.apply(lambda column: column.str.strip())
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    filled: pd.DataFrame = cells[(cells != "").any(axis=1)]
    return filled


def _with_header(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    header = [str(name) for name in cells.iloc[0]]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise SeriesTableError(f"{path} has columns of the same name: {', '.join(repeated)}; keep one of each")
    body = cells.iloc[1:].set_axis([name or f"unnamed_{k}" for k, name in enumerate(header)], axis=1)
    if body.empty:
        raise SeriesTableError(f"{path} has a header and no rows; expected one row per series")
    return body
