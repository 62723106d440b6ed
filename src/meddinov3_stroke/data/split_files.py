"""Splits on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from meddinov3_stroke.data.splits import Splits, split_statistics
from meddinov3_stroke.data.table import IDENTITY_COLUMNS, SeriesTable
from meddinov3_stroke.system.atomic import write_json, write_text
from meddinov3_stroke.system.provenance import provenance


def write_splits(splits: Splits, folder: Path) -> dict[str, Path]:
    """Paths of the `train.csv`, `val.csv`, `test.csv` and `split_summary.json` written in `folder`.

    Each CSV keeps the columns of the original as they stood and adds patient_id, study_uid and series_uid as resolved,
    `source_row`, the row in the original, and `split`, the name of the split.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = Path(folder)
    written = {}
    for name, table in splits.items():
        written[name] = folder / f"{name}.csv"
        write_text(written[name], split_frame(table).assign(split=name).to_csv(index=False, lineterminator="\n"))
    written["summary"] = folder / "split_summary.json"
    write_json(written["summary"], {**provenance(), **split_document(splits)})
    return written


def split_frame(table: SeriesTable) -> pd.DataFrame:
    """The original columns with the resolved identities and the row in the original."""
    frame = table.original.copy()
    for column in (*IDENTITY_COLUMNS, "source_row"):
        frame[column] = table.frame[column].to_numpy()
    return frame


def split_document(splits: Splits) -> dict[str, object]:
    """How a split came about and what it holds, for JSON."""
    names = dict(splits.items())
    exclusion = splits.train.exclusion
    return {
        "series_csv": splits.train.name,
        "series_csv_sha256": splits.train.sha256,
        "unit": "patient" if not any(t.n_without_patient for t in names.values()) else "patient; study where unknown",
        "ratios": dict(zip(names, splits.ratios, strict=True)),
        "seed": splits.seed,
        "exclusion": None if exclusion is None else exclusion.document,
        "splits": {name: split_statistics(table) for name, table in names.items()},
        "warnings": list(splits.warnings),
    }
