"""The six labels of a row: 0 or 1, and `any` the OR of the rest."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
from jaxtyping import Int8

from meddinov3_stroke.cohort.csv_file import rows_phrase
from meddinov3_stroke.errors import LabelError
from meddinov3_stroke.types import LABELS

LabelPolicy = Literal["strict", "fix-any", "ignore"]
"""What to do where `any` is not the OR of the five types: stop; set `any` to it; take the row as it stands."""

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


def reconcile_any(
    labels: Int8[np.ndarray, "n 6"], rows: list[int], policy: LabelPolicy, where: str
) -> tuple[Int8[np.ndarray, "n 6"], tuple[str, ...]]:
    """The labels after `policy`, and what to warn of.

    Raises:
        LabelError: under `strict`, where `any` is not the OR of the types, with the rows.
    """
    expected = labels[:, 1:].max(axis=1)
    wrong = np.flatnonzero(labels[:, 0] != expected)
    if wrong.size == 0:
        return labels, ()
    listed = rows_phrase([rows[k] for k in wrong])
    if policy == "strict":
        raise LabelError(
            f"{where}: any is not the OR of the five types in {listed}; correct them, or pass --label-policy fix-any "
            "(any becomes the OR) or ignore (labels stay as they are)"
        )
    if policy == "ignore":
        return labels, (f"any is not the OR of the five types in {listed}; labels stay as they are",)
    fixed = labels.copy()
    fixed[:, 0] = expected
    return fixed, (f"any was set to the OR of the five types in {listed}",)


def _complaint(failures: pd.DataFrame, where: str) -> str:
    parts = []
    for label, cases in failures.groupby("column", sort=False):
        held = ", ".join(repr(str(value)) for value in cases["failure_case"].drop_duplicates().head(4))
        parts.append(f"{label} holds {held} in {rows_phrase(sorted(int(row) for row in cases['index']))}")
    return f"{where}: {'; '.join(parts)}; expected 0 or 1 (row 1 is the header)"
