"""The series table: one checked row per series, in the order of its CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8, Integer

from meddinov3_stroke.cohort.columns import find_columns
from meddinov3_stroke.cohort.csv_file import read_csv_file
from meddinov3_stroke.cohort.identity import resolve_identities
from meddinov3_stroke.cohort.labels import parse_labels
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import LabelPolicy, name_rows, settle_any
from meddinov3_stroke.types import LABELS

IDENTITY_COLUMNS = ("patient_id", "study_uid", "series_uid")
"""Resolved identities; `patient_id` is empty where it is not known."""


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Rows of a series CSV that passed every check.

    `frame` holds `source_row` (the header is row 1), `nifti_path` as written, `patient_id`, `study_uid`, `series_uid`
    and the six labels as int8; `original` the cells as they stood, row for row; `paths` the files, None where the CSV
    names none.
    """

    frame: pd.DataFrame
    original: pd.DataFrame
    paths: tuple[Path | None, ...]
    name: str
    """Name of the CSV, for messages."""
    sha256: str
    """Digest of the CSV's bytes."""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labels(self) -> Int8[np.ndarray, "n 6"]:
        """Labels in the order of `LABELS`."""
        return self.frame[list(LABELS)].to_numpy(dtype=np.int8)

    @property
    def rows(self) -> list[int]:
        """Row of the CSV that each series stands in."""
        return [int(row) for row in self.frame["source_row"]]

    @property
    def groups(self) -> list[str]:
        """What must never be split: `patient:<id>`, or `study:<uid>` where the patient is not known."""
        known = self.frame["patient_id"] != ""
        groups = ("patient:" + self.frame["patient_id"]).where(known, "study:" + self.frame["study_uid"])
        return [str(group) for group in groups]

    @property
    def n_without_patient(self) -> int:
        """Series whose patient is not known."""
        return int((self.frame["patient_id"] == "").sum())

    def take(self, positions: Sequence[int] | Integer[np.ndarray, " chosen"]) -> SeriesTable:
        """The table of the rows at these positions (not CSV rows), in that order."""
        chosen = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            frame=self.frame.iloc[chosen].reset_index(drop=True),
            original=self.original.iloc[chosen].reset_index(drop=True),
            paths=tuple(self.paths[k] for k in chosen),
        )


def read_series_table(
    csv_path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    datasets_dir: Path | None = None,
    label_policy: LabelPolicy = "strict",
) -> SeriesTable:
    """The checked rows of a series CSV.

    `columns` maps our names to the CSV's. A relative `nifti_path` is taken from `datasets_dir` where it exists there,
    else from the CSV's folder. Whether files can be read is found out at extraction, not here.

    Raises:
        SeriesTableError: encoding, separator, columns, identities or conflicting rows.
        LabelError: labels that are not 0 or 1, or `any` that is not the OR of the types.
    """
    csv_path = Path(csv_path)
    csv = read_csv_file(csv_path)
    found = find_columns([str(name) for name in csv.cells.columns], columns or {}, csv_path.name)
    cells = csv.cells[list(found.values())].set_axis(list(found), axis=1)
    frame, any_warnings = _checked_frame(cells, csv_path.name, label_policy)
    paths = [_resolve(text, csv_path.parent, datasets_dir) for text in cells["nifti_path"]]
    kept, repeats = _without_repeats(frame, paths, csv_path.name)
    table = SeriesTable(
        frame=frame,
        original=csv.cells,
        paths=tuple(paths),
        name=csv_path.name,
        sha256=csv.sha256,
        warnings=(*csv.warnings, *any_warnings, *repeats),
    )
    return table.take(kept)


def _checked_frame(cells: pd.DataFrame, where: str, policy: LabelPolicy) -> tuple[pd.DataFrame, tuple[str, ...]]:
    rows = [int(row) for row in cells.index]
    given = parse_labels(cells, where).to_numpy(dtype=np.int8)
    labels, warnings = settle_any(given, LABELS, policy, where, row_names=rows)
    frame = resolve_identities(cells, where)
    frame.insert(0, "source_row", rows)
    frame.insert(1, "nifti_path", cells["nifti_path"])
    for k, label in enumerate(LABELS):
        frame[label] = labels[:, k]
    return frame, tuple(warnings)


def _resolve(text: str, csv_folder: Path, datasets_dir: Path | None) -> Path | None:
    if not text:
        return None  # joined to a folder, it would be the folder itself
    written = Path(text).expanduser()
    if written.is_absolute():
        return written
    candidates = [folder / written for folder in (datasets_dir, csv_folder) if folder is not None]
    return next((path for path in candidates if path.exists()), candidates[0])


def _without_repeats(
    frame: pd.DataFrame, paths: Sequence[Path | None], where: str
) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the rows to keep, identical rows once, and what to warn of."""
    facts = list(frame[[*IDENTITY_COLUMNS, *LABELS]].itertuples(index=False, name=None))
    rows = list(frame["source_row"])
    first: dict[Path, int] = {}
    kept: list[int] = []
    repeated: list[int] = []
    for k, path in enumerate(paths):
        earlier = first.setdefault(path, k) if path is not None else k
        if earlier == k:
            kept.append(k)
        elif facts[earlier] == facts[k]:
            repeated.append(int(rows[k]))
        else:
            raise SeriesTableError(
                f"{where}: rows {rows[earlier]} and {rows[k]} name the same file {path} with different identities or "
                "labels; keep the one that is right"
            )
    _refuse_conflicting_series(frame.iloc[kept], where)
    if not repeated:
        return kept, ()
    return kept, (f"{name_rows(repeated, counted=False)} repeat an earlier row and were taken once",)


def _refuse_conflicting_series(frame: pd.DataFrame, where: str) -> None:
    series = frame[frame["series_uid"] != ""].groupby(["study_uid", "series_uid"], sort=False)
    different = series[list(LABELS)].transform("nunique").max(axis=1) > 1
    rows = list(frame.loc[different.index[different], "source_row"])
    if rows:
        raise SeriesTableError(
            f"{where}: {name_rows(rows, counted=False)} are of the same study and series as another row and have other "
            "labels; keep the one that is right"
        )
