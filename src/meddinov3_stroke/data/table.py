"""The series table: one checked row per series, in the order of its CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int8, Integer

from meddinov3_stroke.data.csv_file import IdList, read_csv_file, read_id_list, zeros_and_ones
from meddinov3_stroke.errors import DatasetError, LabelError, SeriesTableError, UsageError, name_some
from meddinov3_stroke.labels import LabelPolicy, apply_label_policy, name_rows
from meddinov3_stroke.system.atomic import is_url, located
from meddinov3_stroke.system.names import know
from meddinov3_stroke.types import LABELS, STACK_NUMBER, VolumeInput

VOLUME_COLUMNS = ("nifti_path", "dicom_path", "header_index")
"""Columns that name a row's volume: a NIfTI file; a DICOM folder, archive or file; the header index that lists the
files of its series. A CSV has at least one of them, and a row fills at most one."""

IDENTITY_COLUMNS = ("patient_id", "study_uid", "series_uid")
"""Optional columns; what they lack is taken from a path of the form `<patient>/<study>/_<series>.nii.gz`."""

_NAMES = (*VOLUME_COLUMNS, *LABELS, *IDENTITY_COLUMNS)
_WINDOWS_PATH = r"(?!)" if os.name == "nt" else r"(?:[A-Za-z]:[\\/]|\\\\).*"  # with a drive letter, or of a share
_NIFTI_PATH = r"(?:^|/){}/(?:\.?/)*{}/(?:\.?/)*_{}\.nii(?:\.gz)?/*$".format(
    *(rf"(?!\.\.?/)(?P<{name}>[^/]+?)" for name in IDENTITY_COLUMNS)
)


@dataclass(frozen=True)
class Exclusion:
    """The patients that a list of IDs removed from a table: counts for JSON, warnings, and one line for the log."""

    document: dict[str, Any]
    warnings: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Rows of a series CSV that passed every check.

    `frame` holds `source_row` (the header is row 1), `nifti_path`, `dicom_path` and `header_index` as written,
    `patient_id` (empty where unknown), `study_uid`, `series_uid` and the six labels as int8; `original` the cells as
    they were, row for row; `inputs` the volumes, None where a row names none; `name` and `sha256` are the CSV's.
    """

    frame: pd.DataFrame
    original: pd.DataFrame
    inputs: tuple[VolumeInput | None, ...]
    name: str
    sha256: str
    warnings: tuple[str, ...] = ()
    exclusion: Exclusion | None = None

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
        return [str(group) for group in _groups(self.frame)]

    @property
    def n_without_patient(self) -> int:
        """Series whose patient is unknown."""
        return int((self.frame["patient_id"] == "").sum())

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
    csv = read_csv_file(Path(csv_path))
    where = csv.path.name
    found = _find_columns([str(name) for name in csv.cells.columns], columns or {}, where)
    cells = csv.cells[list(found.values())].set_axis(list(found), axis=1)
    cells = cells.assign(**{name: "" for name in VOLUME_COLUMNS if name not in cells})
    parsed = _parse_labels(cells, where)
    labels, policy_warnings = apply_label_policy(parsed, LABELS, label_policy, where, row_names=list(cells.index))
    values = pd.DataFrame(labels, index=cells.index, columns=list(LABELS))
    frame = pd.concat([cells[list(VOLUME_COLUMNS)], _resolve_identities(cells, where), values], axis=1)
    inputs = volume_inputs(frame, csv.path.parent, datasets_dir, where)
    is_repeat = _repeats(frame, inputs, where)
    warnings = [*csv.warnings, *policy_warnings]
    if is_repeat.any():
        warnings.append(f"{_rows(is_repeat)} repeat an earlier row and were ignored")
    frame.insert(0, "source_row", frame.index)
    kept = np.flatnonzero(~is_repeat)
    table = SeriesTable(frame, csv.cells, inputs, where, csv.sha256, tuple(warnings)).take(kept)
    return table if exclude_ids is None else _without_patients(table, exclude_ids)


def parse_column_mapping(text: str | None) -> dict[str, str]:
    """`nifti_path=path,patient_id=PatientID` as {our name: the CSV's name}; {} for None or an empty text.

    Raises:
        UsageError: another form, an unknown name, or a name given twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not sign or not theirs or ours not in _NAMES or ours in mapping:
            raise UsageError(
                f"--columns: cannot use {part!r}; expected OURS=THEIRS, each of ours once, ours of {', '.join(_NAMES)}"
            )
        mapping[ours] = theirs
    return mapping


def exclude(
    identities: pd.DataFrame, ids: IdList, aliases: Mapping[str, str] = MappingProxyType({})
) -> tuple[Bool[np.ndarray, " row"], Exclusion]:
    """(which rows remain, what was excluded). An ID that is a row's patient, study or series, in any case, excludes
    every row of its patient.

    `identities` has the `IDENTITY_COLUMNS`. `aliases` maps other IDs, in lower case, to one of these: an image's to
    its patient. A list of which no ID matches is refused, as another cohort's.
    """
    wanted = {one: aliases.get(one.lower(), one).lower() for one in ids.ids}
    columns = identities[list(IDENTITY_COLUMNS)].astype(str).apply(lambda column: column.str.lower())
    columns["uid"] = columns["series_uid"].str.replace(STACK_NUMBER, "", regex=True)
    known = set(columns.to_numpy().ravel())
    unmatched = [one for one, name in wanted.items() if name not in known]
    if ids.ids and len(unmatched) == len(ids.ids):
        raise SeriesTableError(
            f"{ids.name}: none of its {len(ids.ids)} IDs (first {unmatched[0]}) is a patient_id, study_uid or "
            "series_uid here, so nobody would be excluded; check the list, or omit --exclude-ids"
        )
    groups = _groups(identities)
    is_out = groups.isin(groups[columns.isin(set(wanted.values())).any(axis=1)])
    n_ids, n_patients, n_series = len(ids.ids), int(groups[is_out].nunique()), int(is_out.sum())
    document = {
        "file": ids.name,
        "sha256": ids.sha256,
        "n_ids": n_ids,
        "n_matched": n_ids - len(unmatched),
        "n_unmatched": len(unmatched),
        "unmatched": unmatched,
        "n_excluded_patients": n_patients,
        "n_excluded_series": n_series,
    }
    faults = {
        f"{ids.name} contains no ID; nobody is excluded": not n_ids,
        f"{ids.name}: {len(unmatched)} of {n_ids} IDs match no patient_id, study_uid or series_uid: "
        f"{name_some(unmatched)}": bool(unmatched),
    }
    sentence = f"{n_patients} patients with {n_series} series are excluded by {ids.name}"
    return ~is_out.to_numpy(bool), Exclusion(document, tuple(text for text, is_so in faults.items() if is_so), sentence)


def _without_patients(table: SeriesTable, exclude_ids: Path) -> SeriesTable:
    remains, exclusion = exclude(table.frame, read_id_list(exclude_ids))
    if not remains.any():
        raise SeriesTableError(f"{table.name}: {exclude_ids.name} excludes every patient; no row is left")
    left = table.take(np.flatnonzero(remains))
    return replace(left, exclusion=exclusion, warnings=(*left.warnings, *exclusion.warnings))


def _groups(identities: pd.DataFrame) -> pd.Series:
    known = identities["patient_id"] != ""
    return ("patient:" + identities["patient_id"]).where(known, "study:" + identities["study_uid"])


def _rows(is_bad: pd.Series) -> str:
    return name_rows([int(row) for row in is_bad.index[is_bad]], counted=False)


def _refuse(is_bad: pd.Series, message: str, error: type[DatasetError] = SeriesTableError) -> None:
    """Raise `message` with the rows that are bad in place of `{rows}`, if any are."""
    if is_bad.any():
        raise error(message.replace("{rows}", _rows(is_bad)))


def _find_columns(header: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """{our name: the CSV's name}: by the mapping, else by the same name in any case, else by its alias in any case."""
    if {column.casefold() for column in header} == {"id", "label"}:
        fault = f"{where} lists slices, as Kaggle's labels do (columns ID and Label); expected one row per series"
        raise SeriesTableError(f"{fault}; make that table with prepare-rsna --root FOLDER")
    found = {name: _find_column(header, mapping.get(name, name), where) for name in _NAMES}
    missing = [name for name in found if not found[name] and (name in LABELS or name in mapping)]
    if not any(found[name] or name in missing for name in VOLUME_COLUMNS):
        missing = ["nifti_path", *missing]
    if missing:
        wanted = [f"{name} (as {mapping[name]!r})" if name in mapping else name for name in missing]
        raise SeriesTableError(
            f"{where} lacks {', '.join(wanted)}; found {', '.join(header)}; needed {' or '.join(VOLUME_COLUMNS)}, and "
            f"{', '.join(LABELS)} (or label_any, ...); name them with --columns OURS=THEIRS,..."
        )
    return {name: column for name, column in found.items() if column}


def _find_column(header: Sequence[str], name: str, where: str) -> str:
    # label_any, ...: the names in RSNA series tables in circulation
    for wanted in (name, f"label_{name}") if name in LABELS else (name,):
        same = [column for column in header if column == wanted]
        matches = same or [column for column in header if column.casefold() == wanted.casefold()]
        if len(matches) > 1:
            fault = f"{name} could be {' or '.join(matches)}"
            raise SeriesTableError(f"{where}: {fault}; choose one with --columns {name}=...")
        if matches:
            return matches[0]
    return ""


def _parse_labels(cells: pd.DataFrame, where: str) -> Int8[np.ndarray, "row 6"]:
    labels = cells[list(LABELS)]
    for label, column in labels.items():
        bad = pd.Series(zeros_and_ones(column) < 0, column.index)
        found = ", ".join(map(repr, column[bad].unique()[:4]))
        _refuse(bad, f"{where}: {label} holds {found} in {{rows}}; expected 0 or 1 (row 1 is the header)", LabelError)
    return np.stack([zeros_and_ones(column) for _, column in labels.items()], axis=1)


def _resolve_identities(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    """The `IDENTITY_COLUMNS` of each row, from its cells, else from its path; `patient_id` is empty where unknown.

    A patient known in one row of a study is the patient of the whole study.
    """
    paths = cells["nifti_path"].str.replace("\\", "/")
    resolved = paths.str.extract(_NIFTI_PATH, flags=re.IGNORECASE).astype(object).fillna("")
    for name in set(IDENTITY_COLUMNS) & set(cells):
        resolved[name] = cells[name].where(cells[name] != "", resolved[name])
    # A row without a volume is reported at extraction; until then it counts as a study of its own.
    nameless = (cells[list(VOLUME_COLUMNS)] == "").all(axis=1) & (resolved["study_uid"] == "")
    resolved.loc[nameless, "study_uid"] = [f"row-{row}" for row in cells.index[nameless]]
    _refuse(
        resolved["study_uid"] == "",
        f"{where}: no study_uid in {{rows}}, and no nifti_path <patient>/<study>/_<series>.nii.gz; fill the column, or "
        "name it with --columns study_uid=...",
    )
    patients = resolved["patient_id"].where(resolved["patient_id"] != "").groupby(resolved["study_uid"])
    twice = resolved["study_uid"][patients.transform("nunique") > 1].unique()
    _refuse(
        resolved["study_uid"].isin(twice[:1]),
        f"{where}: study {''.join(twice[:1])} belongs to more than one patient ({{rows}}); {len(twice)} such studies; "
        "correct patient_id or study_uid",
    )
    return resolved.assign(patient_id=patients.transform("first").astype(object).fillna(""))


def volume_inputs(
    frame: pd.DataFrame, csv_folder: Path, datasets_dir: Path | None, where: str
) -> tuple[VolumeInput | None, ...]:
    """The input each row names, None where it names none; `series_uid` is only a key beside a NIfTI file."""
    dicom_paths = frame["dicom_path"] + frame["header_index"]
    volumes, dicom = frame["nifti_path"] + dicom_paths, dicom_paths.str.lower()
    _refuse(
        (frame[list(VOLUME_COLUMNS)] != "").sum(axis=1) > 1,
        f"{where}: more than one volume named in {{rows}}; expected one of {', '.join(VOLUME_COLUMNS)} in a row",
    )
    _refuse(
        ((frame["header_index"] != "") | dicom.str.endswith(".parquet")) & (frame["series_uid"] == ""),
        f"{where}: a header_index but no series_uid in {{rows}}; an index lists many series; fill in series_uid",
    )

    @cache  # thousands of rows name one index
    def resolve(text: str) -> Path:
        if is_url(path := located(Path(text))):
            return path
        spellings = (path.expanduser(), Path(text.replace("\\", "/")).expanduser())  # the second of Windows
        candidates = [folder / one for one in spellings for folder in (datasets_dir, csv_folder) if folder]
        know(text, found := next((path for path in candidates if path.exists()), candidates[0]))
        return found

    named_nifti = dicom_paths.where(dicom.str.endswith((".nii", ".nii.gz")), "")
    _refuse(
        named_nifti.map(lambda text: bool(text) and not resolve(text).is_dir()),
        f"{where}: a NIfTI file under dicom_path or header_index in {{rows}}; it belongs under nifti_path",
    )
    of_windows = volumes.where(volumes.str.fullmatch(_WINDOWS_PATH), "")
    _refuse(
        of_windows.map(lambda text: bool(text) and not resolve(text).exists()),
        f"{where}: paths of a Windows machine ({max(of_windows, default='')}) in {{rows}}; copy the files, shorten the "
        "paths to what follows the copied folder, and set DATASETS_DIR to that folder",
    )
    return tuple(
        VolumeInput(resolve(nifti), format="nifti")
        if nifti
        else (VolumeInput(resolve(dicom or index), uid or None) if dicom or index else None)
        for nifti, dicom, index, uid in zip(*(frame[name] for name in (*VOLUME_COLUMNS, "series_uid")), strict=True)
    )


def _repeats(frame: pd.DataFrame, inputs: Sequence[VolumeInput | None], where: str) -> pd.Series:
    """Which rows are identical to an earlier one; rows that contradict each other are refused."""
    facts = frame[[*IDENTITY_COLUMNS, *LABELS]].assign(
        volume=pd.Series([one or k for k, one in enumerate(inputs)], frame.index, dtype=object)
    )
    is_repeat = facts.duplicated()
    kept = facts[~is_repeat]
    clash = kept["volume"][kept["volume"].duplicated(keep=False)]
    for volume in clash.iloc[:1]:
        of_series = f" (series {volume.series_uid})" if volume.series_uid else ""
        _refuse(
            clash == volume,
            f"{where}: {{rows}} name the same file {volume.path}{of_series} with different identities or labels; keep "
            "the one that is right",
        )
    named = kept[kept["series_uid"] != ""]
    n_values = named.groupby(["study_uid", "series_uid"])[list(LABELS)].transform("nunique").max(axis=1)
    _refuse(
        n_values > 1,
        f"{where}: {{rows}} have the study and series of another row but other labels; keep the one that is right",
    )
    return is_repeat
