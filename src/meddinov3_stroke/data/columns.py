"""The columns of a series CSV: which one holds what, and the labels, identities and volumes that its rows name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from jaxtyping import Int8

from meddinov3_stroke.data.csv_file import ZERO_OR_ONE
from meddinov3_stroke.errors import LabelError, SeriesTableError, UsageError
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.types import LABELS, VolumeInput

VOLUME_COLUMNS = ("nifti_path", "dicom_path", "header_index")
"""Columns that name a row's volume: a NIfTI file; a DICOM folder, zip archive or file; the header index that lists the
files of its series. A CSV has at least one of them, and a row fills at most one."""

IDENTITY_COLUMNS = ("patient_id", "study_uid", "series_uid")
"""Optional columns; what they lack is taken from a path of the form `<patient>/<study>/_<series>.nii.gz`."""

_NAMES = (*VOLUME_COLUMNS, *LABELS, *IDENTITY_COLUMNS)
_ALIASES = {label: f"label_{label}" for label in LABELS}
"""Second names under which a column is read without a flag: those of RSNA series tables in circulation."""

_SERIES_FILE = re.compile(r"_(?P<series>[^/]+?)\.nii(\.gz)?", re.IGNORECASE)


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


def find_columns(header: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """{our name: the CSV's name}: by the mapping, else by the same name in any case, else by its alias in any case.

    Raises:
        SeriesTableError: a needed column, or one that the mapping names, is missing or ambiguous.
    """
    found = {name: _find(header, mapping.get(name, name), where) for name in _NAMES}
    missing = [name for name in found if found[name] is None and (name in LABELS or name in mapping)]
    if all(found[name] is None for name in VOLUME_COLUMNS) and not set(missing) & set(VOLUME_COLUMNS):
        missing.insert(0, VOLUME_COLUMNS[0])
    if missing:
        wanted = [f"{name} (as {mapping[name]!r})" if name in mapping else name for name in missing]
        raise SeriesTableError(
            f"{where} lacks {', '.join(wanted)}; found {', '.join(header)}; needed {' or '.join(VOLUME_COLUMNS)}, and "
            f"{', '.join(LABELS)} (or label_any, ...); name them with --columns OURS=THEIRS,..."
        )
    return {name: column for name, column in found.items() if column is not None}


def _find(header: Sequence[str], name: str, where: str) -> str | None:
    for wanted in filter(None, (name, _ALIASES.get(name))):
        if wanted in header:
            return wanted
        matches = [column for column in header if column.casefold() == wanted.casefold()]
        if len(matches) > 1:
            raise SeriesTableError(
                f"{where}: {name} could be {' or '.join(matches)}; choose one with --columns {name}=..."
            )
        if matches:
            return matches[0]
    return None


def parse_labels(cells: pd.DataFrame, where: str) -> Int8[np.ndarray, "row 6"]:
    """The six labels of each row, from cells spelled as `ZERO_OR_ONE`.

    Raises:
        LabelError: any other cell; with its row and content.
    """
    labels = cells[list(LABELS)]
    bad = ~labels.apply(lambda column: column.str.fullmatch(ZERO_OR_ONE))
    faults = [
        f"{label} holds {', '.join(map(repr, labels.loc[bad[label], label].unique()[:4]))} in {_rows(bad[label])}"
        for label in LABELS
        if bad[label].any()
    ]
    if faults:
        raise LabelError(f"{where}: {'; '.join(faults)}; expected 0 or 1 (row 1 is the header)")
    return np.asarray(labels.apply(lambda column: column.str[0]).to_numpy().astype(np.int8))


def _rows(is_bad: pd.Series) -> str:
    return name_rows([int(row) for row in is_bad.index[is_bad]], counted=False)


def _refuse(is_bad: pd.Series, message: str) -> None:
    """Raise `message` with the rows that are bad in place of `{rows}`, if any are."""
    if is_bad.any():
        raise SeriesTableError(message.replace("{rows}", _rows(is_bad)))


def identity_from_path(nifti_path: str) -> tuple[str, str, str] | None:
    """(patient, study, series) of `<patient>/<study>/_<series>.nii.gz`, None for a path of another form.

    The series is a key, not a DICOM UID.
    """
    parts = PurePosixPath(nifti_path.replace("\\", "/")).parts
    match = _SERIES_FILE.fullmatch(parts[-1]) if len(parts) >= 3 else None
    if match is None or parts[-3] in ("/", "..", ".") or parts[-2] == "..":
        return None
    return parts[-3], parts[-2], match["series"]


def resolve_identities(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    """The `IDENTITY_COLUMNS` of each row, from its cells, else from its path; `patient_id` is empty where unknown.

    A patient known in one row of a study is the patient of the whole study.

    Raises:
        SeriesTableError: a row without a study, or a study of two patients.
    """
    of_path = [identity_from_path(path) or ("", "", "") for path in cells["nifti_path"]]
    resolved = pd.DataFrame(of_path, index=cells.index, columns=list(IDENTITY_COLUMNS), dtype=object)
    for name in set(IDENTITY_COLUMNS) & set(cells):
        resolved[name] = cells[name].where(cells[name] != "", resolved[name])
    # A row without a volume is reported at extraction; until then it counts as a study of its own.
    nameless = (cells[list(VOLUME_COLUMNS)] == "").all(axis=1) & (resolved["study_uid"] == "")
    resolved.loc[nameless, "study_uid"] = [f"row-{row}" for row in cells.index[nameless]]
    _refuse(
        resolved["study_uid"] == "",
        f"{where}: no study_uid in {{rows}}, and no nifti_path there has the form "
        "<patient>/<study>/_<series>.nii.gz; fill the column, or name it with --columns study_uid=...",
    )
    known = resolved[resolved["patient_id"] != ""].groupby("study_uid")["patient_id"]
    twice = known.nunique().loc[lambda n_patients: n_patients > 1].index
    _refuse(
        resolved["study_uid"].isin(twice[:1]),
        f"{where}: study {''.join(twice[:1])} belongs to more than one patient ({{rows}}); {len(twice)} such studies; "
        "a study has one patient; correct patient_id or study_uid",
    )
    patient_of = known.first().to_dict()
    of_study = [patient_of.get(study, "") for study in resolved["study_uid"]]
    return resolved.assign(patient_id=resolved["patient_id"].where(resolved["patient_id"] != "", of_study))


def volume_inputs(
    cells: pd.DataFrame, series_uid: pd.Series, csv_folder: Path, datasets_dir: Path | None, where: str
) -> tuple[VolumeInput | None, ...]:
    """The input each row names, None where it names none.

    `series_uid` chooses a series of a DICOM input or an index; beside a NIfTI file it is only a key.

    Raises:
        SeriesTableError: a row that names two volumes, an index without a series, or NIfTI as DICOM.
    """
    dicom = (cells["dicom_path"] + cells["header_index"]).str.lower()
    _refuse(
        (cells[list(VOLUME_COLUMNS)] != "").sum(axis=1) > 1,
        f"{where}: more than one volume named in {{rows}}; expected one of {', '.join(VOLUME_COLUMNS)} in a row; "
        "empty the others",
    )
    _refuse(
        ((cells["header_index"] != "") | dicom.str.endswith(".parquet")) & (series_uid == ""),
        f"{where}: a header_index but no series_uid in {{rows}}; an index lists many series; fill in series_uid",
    )
    _refuse(
        dicom.str.endswith((".nii", ".nii.gz")),
        f"{where}: a NIfTI file under dicom_path or header_index in {{rows}}; it belongs under nifti_path",
    )

    @cache  # thousands of rows name one index
    def resolve(text: str) -> Path:
        candidates = [folder / Path(text).expanduser() for folder in (datasets_dir, csv_folder) if folder is not None]
        return next((path for path in candidates if path.exists()), candidates[0])

    def named(nifti: str, dicom: str, index: str, uid: str) -> VolumeInput | None:
        if nifti:
            return VolumeInput(resolve(nifti), format="nifti")
        return VolumeInput(resolve(dicom or index), uid or None) if dicom or index else None

    columns = (cells[name] for name in VOLUME_COLUMNS)
    return tuple(named(*map(str, row)) for row in zip(*columns, series_uid, strict=True))
