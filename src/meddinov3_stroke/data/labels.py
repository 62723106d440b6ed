"""The six labels of a row, from the strings of a CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandera.pandas as pa

from meddinov3_stroke.errors import LabelError
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.types import LABELS

_SPELLINGS = r"^[01](\.0*)?$"

_SCHEMA = pa.DataFrameSchema({label: pa.Column(str, pa.Check.str_matches(_SPELLINGS)) for label in LABELS})


def parse_labels(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    """The six columns as int8; `0`, `1`, `0.0` and `1.0` are read, nothing else is rounded or guessed.

    Raises:
        LabelError: any other cell, with its rows and what they hold.
    """
    try:
        _SCHEMA.validate(cells[list(LABELS)], lazy=True)
    except pa.errors.SchemaErrors as error:
        raise LabelError(_complaint(error.failure_cases, where)) from error
    return pd.DataFrame({label: cells[label].str[0].astype(np.int8) for label in LABELS}, index=cells.index)


def _complaint(failures: pd.DataFrame, where: str) -> str:
    parts = []
    for label, cases in failures.groupby("column", sort=False):
        held = ", ".join(repr(str(value)) for value in cases["failure_case"].drop_duplicates().head(4))
        parts.append(f"{label} holds {held} in {name_rows(sorted(int(row) for row in cases['index']), counted=False)}")
    return f"{where}: {'; '.join(parts)}; expected 0 or 1 (row 1 is the header)"
