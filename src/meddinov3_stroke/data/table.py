"""The series table: one checked row per series, in the order of its CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8, Integer

from meddinov3_stroke.data.columns import (
    IDENTITY_COLUMNS,
    VOLUME_COLUMNS,
    find_columns,
    parse_labels,
    resolve_identities,
    volume_inputs,
)
from meddinov3_stroke.data.csv_file import read_csv_file
from meddinov3_stroke.data.exclusion import Exclusion, exclude, patient_groups, read_id_list
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import LabelPolicy, apply_label_policy, name_rows
from meddinov3_stroke.types import LABELS, VolumeInput


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Rows of a series CSV that passed every check.

    `frame` holds `source_row` (the header is row 1), `nifti_path`, `dicom_path` and `header_index` as written,
    `patient_id` (empty where unknown), `study_uid`, `series_uid` and the six labels as int8; `original` the cells as
    they were, row for row; `inputs` the volumes, None where a row names none.
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
    """What a list of IDs took out, if one was given."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labels(self) -> Int8[np.ndarray, "n 6"]:
        """Labels in the order of `LABELS`."""
        return self.frame[list(LABELS)].to_numpy(dtype=np.int8)

    @property
    def rows(self) -> list[int]:
        """Row of the CSV of each series."""
        return [int(row) for row in self.frame["source_row"]]

    @property
    def groups(self) -> list[str]:
        """What a split must keep together: `patient:<id>`, or `study:<uid>` where the patient is unknown."""
        return [str(group) for group in patient_groups(self.frame)]

    @property
    def n_without_patient(self) -> int:
        """Series whose patient is unknown."""
        return int((self.frame["patient_id"] == "").sum())

    @property
    def nifti_inputs(self) -> frozenset[VolumeInput]:
        """Inputs that a `nifti_path` names."""
        return frozenset(one for one in self.inputs if one is not None and one.format == "nifti")

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

    `columns` maps our names to the CSV's. A relative path is looked for in `datasets_dir`, then in the CSV's folder.
    Volumes are opened at extraction, not here. `exclude_ids` is a text file with one patient, study or series ID a
    line; every row of a patient it names is left out.

    Raises:
        SeriesTableError: encoding, separator, columns, identities or conflicting rows; or the list of IDs cannot be
            read, or leaves no row.
        LabelError: labels that are not 0 or 1, or `any` that is not the OR of the types.
    """
    csv_path = Path(csv_path)
    where, csv = csv_path.name, read_csv_file(csv_path)
    found = find_columns([str(name) for name in csv.cells.columns], columns or {}, where)
    cells = csv.cells[list(found.values())].set_axis(list(found), axis=1)
    cells = cells.assign(**{name: "" for name in VOLUME_COLUMNS if name not in cells})
    rows = [int(row) for row in cells.index]
    labels, policy_warnings = apply_label_policy(
        parse_labels(cells, where), LABELS, label_policy, where, row_names=rows
    )
    identities = resolve_identities(cells, where)
    values = pd.DataFrame(labels, index=cells.index, columns=list(LABELS))
    frame = pd.concat([cells[list(VOLUME_COLUMNS)], identities, values], axis=1)
    frame.insert(0, "source_row", rows)
    inputs = volume_inputs(cells, frame["series_uid"], csv_path.parent, datasets_dir, where)
    kept, repeats = _without_repeats(frame, inputs, where)
    warnings = (*csv.warnings, *policy_warnings, *repeats)
    table = SeriesTable(frame, csv.cells, inputs, where, csv.sha256, warnings).take(kept)
    return table if exclude_ids is None else _without_patients(table, exclude_ids)


def _without_patients(table: SeriesTable, exclude_ids: Path) -> SeriesTable:
    stays, exclusion = exclude(table.frame, read_id_list(exclude_ids))
    if not stays.any():
        raise SeriesTableError(f"{table.name}: {exclude_ids.name} excludes every patient; no row is left")
    left = table.take(np.flatnonzero(stays))
    return replace(left, exclusion=exclusion, warnings=(*left.warnings, *exclusion.warnings))


def _without_repeats(
    frame: pd.DataFrame, inputs: Sequence[VolumeInput | None], where: str
) -> tuple[list[int], tuple[str, ...]]:
    """(positions of the rows without repeats of identical ones, warnings)."""
    facts = list(frame[[*IDENTITY_COLUMNS, *LABELS]].itertuples(index=False, name=None))
    rows = list(frame["source_row"])
    first: dict[VolumeInput, int] = {}
    kept: list[int] = []
    repeated: list[int] = []
    for k, named in enumerate(inputs):
        earlier = k if named is None else first.setdefault(named, k)
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
    return kept, (f"{name_rows(repeated, counted=False)} repeat an earlier row and were ignored",)


def _refuse_conflicting_series(frame: pd.DataFrame, where: str) -> None:
    series = frame[frame["series_uid"] != ""].groupby(["study_uid", "series_uid"], sort=False)
    different = series[list(LABELS)].transform("nunique").max(axis=1) > 1
    rows = list(frame.loc[different.index[different], "source_row"])
    if rows:
        raise SeriesTableError(
            f"{where}: {name_rows(rows, counted=False)} have the study and series of another row but other labels; "
            "keep the one that is right"
        )
