"""The series table: one checked row per series, in the order of its CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8, Integer

from meddinov3_stroke.data.columns import VOLUME_COLUMNS, find_columns
from meddinov3_stroke.data.csv_file import read_csv_file
from meddinov3_stroke.data.exclusion import Exclusion, exclude, read_id_list
from meddinov3_stroke.data.identity import resolve_identities
from meddinov3_stroke.data.inputs import volume_inputs, with_volume_columns
from meddinov3_stroke.data.labels import parse_labels
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import LabelPolicy, name_rows, settle_any
from meddinov3_stroke.types import LABELS, VolumeInput

IDENTITY_COLUMNS = ("patient_id", "study_uid", "series_uid")
"""Resolved identities; `patient_id` is empty where it is not known."""


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Rows of a series CSV that passed every check.

    `frame` holds `source_row` (the header is row 1), `nifti_path`, `dicom_path` and `header_index` as written,
    `patient_id`, `study_uid`, `series_uid` and the six labels as int8; `original` the cells as they stood, row for row;
    `inputs` what is to be read, None where the row names nothing.
    """

    frame: pd.DataFrame
    original: pd.DataFrame
    inputs: tuple[VolumeInput | None, ...]
    name: str
    """Name of the CSV, for messages."""
    sha256: str
    """Digest of the CSV's bytes."""
    warnings: tuple[str, ...] = ()
    exclusion: Exclusion | None = None
    """What a list of IDs took out, where there was one."""

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

    @property
    def nifti_inputs(self) -> frozenset[VolumeInput]:
        """Inputs that stand under `nifti_path`, where only a NIfTI file may stand."""
        named = zip(self.inputs, self.frame["nifti_path"], strict=True)
        return frozenset(one for one, nifti_path in named if one is not None and nifti_path)

    def take(self, positions: Sequence[int] | Integer[np.ndarray, " chosen"]) -> SeriesTable:
        """The table of the rows at these positions (not CSV rows), in that order."""
        chosen = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            frame=self.frame.iloc[chosen].reset_index(drop=True),
            original=self.original.iloc[chosen].reset_index(drop=True),
            inputs=tuple(self.inputs[k] for k in chosen),
        )


def read_series_table(
    csv_path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    datasets_dir: Path | None = None,
    label_policy: LabelPolicy = "strict",
    exclude_ids: Path | None = None,
) -> SeriesTable:
    """The checked rows of a series CSV.

    `columns` maps our names to the CSV's. A relative path is taken from `datasets_dir` where it exists there, else from
    the CSV's folder. Whether files can be read is found out at extraction, not here. `exclude_ids` is a text file with
    one ID a line; every row of a patient of whom it names the patient, a study or a series leaves.

    Raises:
        SeriesTableError: encoding, separator, columns, identities or conflicting rows; or the list of IDs cannot be
            read, or leaves no row.
        LabelError: labels that are not 0 or 1, or `any` that is not the OR of the types.
    """
    csv_path = Path(csv_path)
    csv = read_csv_file(csv_path)
    found = find_columns([str(name) for name in csv.cells.columns], columns or {}, csv_path.name)
    cells = with_volume_columns(csv.cells[list(found.values())].set_axis(list(found), axis=1))
    frame, any_warnings = _checked_frame(cells, csv_path.name, label_policy)
    inputs = volume_inputs(cells, frame["series_uid"], csv_path.parent, datasets_dir, csv_path.name)
    kept, repeats = _without_repeats(frame, inputs, csv_path.name)
    table = SeriesTable(
        frame=frame,
        original=csv.cells,
        inputs=tuple(inputs),
        name=csv_path.name,
        sha256=csv.sha256,
        warnings=(*csv.warnings, *any_warnings, *repeats),
    )
    table = table.take(kept)
    return table if exclude_ids is None else _without_patients(table, exclude_ids)


def _without_patients(table: SeriesTable, exclude_ids: Path) -> SeriesTable:
    kept, exclusion = exclude(table.frame, table.groups, read_id_list(exclude_ids))
    if not kept.size:
        raise SeriesTableError(f"{table.name}: {exclusion.ids.name} excludes every patient; nothing is left to work on")
    left = table.take(kept)
    return replace(left, exclusion=exclusion, warnings=(*left.warnings, *exclusion.warnings))


def _checked_frame(cells: pd.DataFrame, where: str, policy: LabelPolicy) -> tuple[pd.DataFrame, tuple[str, ...]]:
    rows = [int(row) for row in cells.index]
    given = parse_labels(cells, where).to_numpy(dtype=np.int8)
    labels, warnings = settle_any(given, LABELS, policy, where, row_names=rows)
    frame = resolve_identities(cells, where)
    frame.insert(0, "source_row", rows)
    for k, name in enumerate(VOLUME_COLUMNS, start=1):
        frame.insert(k, name, cells[name])
    for k, label in enumerate(LABELS):
        frame[label] = labels[:, k]
    return frame, tuple(warnings)


def _without_repeats(
    frame: pd.DataFrame, inputs: Sequence[VolumeInput | None], where: str
) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the rows to keep, identical rows once, and what to warn of."""
    facts = list(frame[[*IDENTITY_COLUMNS, *LABELS]].itertuples(index=False, name=None))
    rows = list(frame["source_row"])
    first: dict[VolumeInput, int] = {}
    kept: list[int] = []
    repeated: list[int] = []
    for k, named in enumerate(inputs):
        earlier = first.setdefault(named, k) if named is not None else k
        if earlier == k:
            kept.append(k)
        elif facts[earlier] == facts[k]:
            repeated.append(int(rows[k]))
        elif named is not None:
            of_series = f" (series {named.series_uid})" if named.series_uid else ""
            raise SeriesTableError(
                f"{where}: rows {rows[earlier]} and {rows[k]} name the same file {named.path}{of_series} with "
                "different identities or labels; keep the one that is right"
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
