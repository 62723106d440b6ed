"""Cases of a public cohort as a series table, with labels of slices where there are any, and a ledger of all cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int8

from meddinov3_stroke.data.csv_file import CsvFile
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, slice_label_table, write_slice_labels
from meddinov3_stroke.data.statuses import USABLE
from meddinov3_stroke.data.table import SeriesTable, read_series_table
from meddinov3_stroke.errors import MedDINOError, SeriesTableError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.types import LABELS, Volume

NAMED = 8
"""Cases that a warning names before it only counts the rest."""


@dataclass(frozen=True, eq=False)
class CohortCase:
    """One case of a cohort, and what became of it."""

    name: str
    status: str = USABLE
    """`USABLE`, or `rejected`, `refused`, `unlabelled`, `missing`, `undecided`."""
    reason: str = ""
    """Why it is no row of the table."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Identities, the column that names the volume, and what else the cohort knows (mask, batch)."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """The six, of a usable case."""
    slices: pa.Table | None = None
    """Rows for `slice_labels.parquet`."""


@dataclass(frozen=True, eq=False)
class PreparedCohort:
    """What was written of a cohort."""

    name: str
    table: SeriesTable
    ledger: dict[str, Any]
    facts: dict[str, Any]
    """What else there is to say, for the summary."""
    files: dict[str, Path]
    warnings: tuple[str, ...]


def failed_case(name: str, error: MedDINOError) -> CohortCase:
    """The case whose volume or mask cannot be used."""
    status = {3: "rejected", 4: "refused", 5: "rejected", 7: "failed"}.get(error.exit_code, "rejected")
    return CohortCase(name, status, f"{error.code}: {error}")


def labelled_case(
    name: str, volume: Volume, mask: Path | None, labels: Int8[np.ndarray, "slice 6"], *, patient_id: str
) -> CohortCase:
    """The usable case of one NIfTI file, its study and series called as itself, with the labels of its slices."""
    columns = {
        "patient_id": patient_id,
        "study_uid": name,
        "series_uid": name,
        "nifti_path": volume.source.path.resolve().as_posix(),
        "mask": "" if mask is None else mask.resolve().as_posix(),
        "n_slices": volume.n_slices,
    }
    highest = dict(zip(LABELS, labels.max(axis=0).tolist(), strict=True))
    series_uid, sop_uid = (pa.array([text] * volume.n_slices, pa.string()) for text in (name, ""))
    slices = slice_label_table(series_uid, np.arange(volume.n_slices), sop_uid, volume.slice_positions_mm, labels)
    return CohortCase(name, columns=columns, labels=highest, slices=slices)


def write_cohort(
    name: str,
    cases: Sequence[CohortCase],
    output_dir: Path,
    *,
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    label_policy: LabelPolicy = "strict",
) -> PreparedCohort:
    """The tables of a cohort, written to `<name>_series_labels.csv` and, where slices have labels, beside it.

    Raises:
        SeriesTableError: no case is usable, or the pipeline would refuse the table.
        LabelError: `any` is not the OR of the types, and `label_policy` is strict.
        StorageError: a file cannot be written.
    """
    usable = sorted((case for case in cases if case.status == USABLE), key=lambda case: case.name)
    if not usable:
        first = f"; the first is {cases[0].status}: {cases[0].reason}" if cases else ""
        raise SeriesTableError(f"{name}: none of {len(cases)} cases is usable{first}")
    files = {"series_csv": output_dir / f"{name}_series_labels.csv"}
    frame = pd.DataFrame([{**case.columns, **{label: case.labels[label] for label in LABELS}} for case in usable])
    write_text(files["series_csv"], frame.to_csv(index=False, lineterminator="\n"))
    slices = [case.slices for case in usable if case.slices is not None]
    if slices:
        files["slice_labels"] = output_dir / SLICE_LABELS
        write_slice_labels(files["slice_labels"], slices)
    table = read_series_table(files["series_csv"], label_policy=label_policy)
    told = (*warnings, *_left_out(cases), *table.warnings)
    return PreparedCohort(name, table, ledger_of_cases(cases), dict(facts), files, told)


def ledger_of_cases(cases: Sequence[CohortCase]) -> dict[str, Any]:
    """Counts by status, which sum to n_cases, and every case that is no row of the table."""
    return {
        "n_cases": len(cases),
        "by_status": dict(Counter(case.status for case in cases).most_common()),
        "left_out": [
            {"case": case.name, "status": case.status, "reason": case.reason}
            for case in sorted(cases, key=lambda case: case.name)
            if case.status != USABLE
        ],
    }


def _left_out(cases: Sequence[CohortCase]) -> list[str]:
    by_status: dict[str, list[CohortCase]] = {}
    for case in cases:
        if case.status != USABLE:
            by_status.setdefault(case.status, []).append(case)
    return [
        f"{len(some)} of {len(cases)} cases are {status} and not in the table: "
        f"{name_cases(case.name for case in some)}; the first: {some[0].reason}"
        for status, some in by_status.items()
    ]


def name_cases(names: Any) -> str:
    """The first few names and how many more."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def column_of(csv: CsvFile, name: str, where: str) -> pd.Series:
    """A column of a cohort's own CSV, found by its name in any case.

    Raises:
        SeriesTableError: not there, or there twice.
    """
    found = [column for column in csv.cells.columns if str(column).casefold() == name.casefold()]
    if len(found) != 1:
        listed = ", ".join(map(str, csv.cells.columns[:12])) + (", ..." if len(csv.cells.columns) > 12 else "")
        raise SeriesTableError(f"{where}: {len(found)} columns are called {name}; expected one; found {listed}")
    return csv.cells[found[0]]
