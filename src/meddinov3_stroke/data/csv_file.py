"""Text files of cohorts, CSV and lists of IDs: no cell is turned into a number, a date or a missing value."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8

from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.system.atomic import is_url, read_bytes
from meddinov3_stroke.system.digest import sha256_of_bytes

CHINESE_ENCODING = "gb18030"  # superset of GBK and GB2312, which Chinese Windows writes; tried only after UTF-8

ZERO_OR_ONE = r"[01](\.0*)?|(?i:true|false)"
"""Spellings of a label that are read: `0`, `1`, `0.0`, `1.0`, `FALSE`, `TRUE` (Excel). No other number is rounded."""

_EXCEL_LINE = re.compile(r'\A\s*"?sep=,"?[ \t]*\r?\n', re.IGNORECASE)  # the first line tells Excel the separator

_RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")  # pandas counts these from 1
_UNCLOSED = re.compile(r"EOF inside string starting at row (\d+)")  # and these from 0

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True, eq=False)
class CsvFile:
    """The stripped cells of a CSV; the index is the row in the file, where the header is row 1."""

    path: Path
    cells: pd.DataFrame
    sha256: str
    warnings: tuple[str, ...]

    def column(self, name: str) -> pd.Series:
        """The one column called `name`, in any case."""
        header = [str(column) for column in self.cells.columns]
        found = [column for column in header if column.casefold() == name.casefold()]
        if len(found) != 1:
            listed = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
            raise SeriesTableError(
                f"{self.path.name}: {len(found)} columns are called {name}; expected one; found {listed}"
            )
        return self.cells[found[0]]

    def matching(self, name: str, pattern: str, expected: str) -> pd.Series:
        """The column called `name`, whose every cell matches `pattern`."""
        column = self.column(name)
        bad = column[~column.str.fullmatch(pattern)]
        if len(bad):
            raise LabelError(f"{self.path} row {bad.index[0]}: {column.name} is {bad.iloc[0]!r:.40}; {expected}")
        return column

    def binary(self, name: str) -> Int8[np.ndarray, " row"]:
        """The labels in the column called `name`."""
        return zeros_and_ones(self.matching(name, ZERO_OR_ONE, "expected 0 or 1"))


def zeros_and_ones(cells: pd.Series) -> Int8[np.ndarray, " cell"]:
    """The labels that stand in some cells; -1 for what is not in `ZERO_OR_ONE`."""
    is_one = cells.str[:1].isin(["1", "t", "T"])
    return np.where(cells.str.fullmatch(ZERO_OR_ONE), is_one, -1).astype(np.int8)


@dataclass(frozen=True)
class IdList:
    """The IDs of a text file, in its order, each once."""

    ids: tuple[str, ...]
    name: str
    sha256: str


def read_csv_file(path: Path, what: str = "series CSV") -> CsvFile:
    """The cells of `path` in UTF-8 (with or without BOM) or, with a warning, GBK. Blank lines are skipped.

    Raises:
        SeriesTableError: no such file, another encoding or separator, ragged rows, repeated or no column names.
    """
    content = _content(path, f"no {what} at {path}", "a comma-separated text file")
    text, warnings = _decode(path, content)
    cells = _parse(path, text)
    header = cells.iloc[0]
    repeated = sorted(set(header[header.duplicated() & (header != "")]))
    if repeated:
        raise SeriesTableError(f"{path} has columns of the same name: {', '.join(repeated)}; keep one of each")
    body = cells.iloc[1:].set_axis([str(name) or f"unnamed_{k}" for k, name in enumerate(header)], axis=1)
    if body.empty:
        raise SeriesTableError(f"{path} has a header and no rows; expected one row per series")
    return CsvFile(path, body, sha256_of_bytes(content), warnings)


def read_id_list(path: Path) -> IdList:
    """The IDs of a text file, one a line; `#` begins a comment. The list may be empty.

    Raises:
        SeriesTableError: no such file, not UTF-8, or a line with a comma or tab.
    """
    content = _content(path, f"no list of IDs at {path}", "a text file with one ID a line")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SeriesTableError(f"{path} is not UTF-8 (byte {error.start}); save it as text in UTF-8") from error
    texts = [line.partition("#")[0].strip() for line in lines]
    for number, text in enumerate(texts, start=1):
        if "," in text or "\t" in text:
            raise SeriesTableError(f"{path} line {number}: found {text!r}; expected one ID a line and nothing else")
    return IdList(tuple(dict.fromkeys(filter(None, texts))), path.name, sha256_of_bytes(content))


def _content(path: Path, fault: str, expected: str) -> bytes:
    if not is_url(path) and not path.is_file():
        raise SeriesTableError(f"{fault}; found {'a directory' if path.is_dir() else 'nothing'}, expected {expected}")
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        raise SeriesTableError(f"{fault}; found no such object, expected {expected}") from error


def _decode(path: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
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
    text = _EXCEL_LINE.sub("", text)
    body = text.lstrip("\r\n")
    n_blank = text[: len(text) - len(body)].count("\n")
    first_line = text.lstrip().partition("\n")[0]
    if not first_line:
        raise SeriesTableError(f"{path} is empty; expected a header row and one row per series")
    other = next((name for sign, name in _OTHER_SEPARATORS.items() if sign in first_line), None)
    if other and "," not in first_line:
        raise SeriesTableError(f"{path} is separated by {other}; expected commas; save it as comma-separated")
    try:
        cells = pd.read_csv(io.StringIO(body), header=None, dtype=str, na_filter=False, skip_blank_lines=False)
    except pd.errors.ParserError as error:
        raise SeriesTableError(f"{path}: {_parse_fault(str(error), n_blank)}") from error
    rows = pd.RangeIndex(n_blank + 1, n_blank + 1 + len(cells))
    cells = cells.apply(lambda column: column.str.strip()).set_axis(rows)
    filled: pd.DataFrame = cells[(cells != "").any(axis=1)]
    return filled


def _parse_fault(message: str, n_blank: int) -> str:
    """What pandas found wrong, in the file's rows."""
    if found := _RAGGED.search(message):
        n_expected, row, n_cells = map(int, found.groups())
        return f"row {row + n_blank} has {n_cells} cells, expected {n_expected}; quote cells that contain a comma"
    if found := _UNCLOSED.search(message):
        return f"a quotation mark in row {int(found[1]) + 1 + n_blank} is never closed; close or remove it"
    return "the rows cannot be told apart; save it again as CSV UTF-8"
