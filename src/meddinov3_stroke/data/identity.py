"""Which patient, study and series a row speaks of: from its columns, else from its path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from meddinov3_stroke.data.columns import VOLUME_COLUMNS
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import name_rows

_SERIES_FILE = re.compile(r"_(?P<series>[^/]+?)\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class PathIdentity:
    """What a path `<patient>/<study>/_<series>.nii.gz` says; the series is a key, not a DICOM UID."""

    patient_id: str
    study_uid: str
    series_uid: str


def identity_from_path(nifti_path: str) -> PathIdentity | None:
    """Patient, study and series that the path names, or None where it has another form."""
    parts = PurePosixPath(nifti_path.replace("\\", "/")).parts
    match = _SERIES_FILE.fullmatch(parts[-1]) if len(parts) >= 3 else None
    if match is None or parts[-3] in ("/", "..", ".") or parts[-2] == "..":
        return None
    return PathIdentity(parts[-3], parts[-2], match["series"])


def resolve_identities(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    """Columns patient_id (empty where unknown), study_uid and series_uid for rows that hold what the CSV says.

    A patient known in one row of a study is the patient of the whole study.

    Raises:
        SeriesTableError: a row without a study, or a study of two patients.
    """
    named = cells["nifti_path"].map(identity_from_path)
    resolved = pd.DataFrame(index=cells.index)
    for field in ("patient_id", "study_uid", "series_uid"):
        from_path = named.map(lambda identity, field=field: getattr(identity, field) if identity else "")
        given = cells[field] if field in cells else pd.Series("", index=cells.index)
        resolved[field] = given.where(given != "", from_path).astype(str)
    _name_rows_without_path(cells, resolved)
    _require_study(cells, resolved, where)
    _spread_patients(resolved, where)
    return resolved


def _name_rows_without_path(cells: pd.DataFrame, resolved: pd.DataFrame) -> None:
    # Such a row is an invalid volume, reported at extraction; until then it needs a study of its own.
    nameless = (cells[list(VOLUME_COLUMNS)] == "").all(axis=1) & (resolved["study_uid"] == "")
    resolved.loc[nameless, "study_uid"] = [f"row-{row}" for row in cells.index[nameless]]


def _require_study(cells: pd.DataFrame, resolved: pd.DataFrame, where: str) -> None:
    rows = [int(row) for row in cells.index[resolved["study_uid"] == ""]]
    if rows:
        raise SeriesTableError(
            f"{where}: no study_uid in {name_rows(rows, counted=False)}, and no nifti_path there has the form "
            "<patient>/<study>/_<series>.nii.gz; fill the column, or name it with --columns study_uid=..."
        )


def _spread_patients(resolved: pd.DataFrame, where: str) -> None:
    known = resolved[resolved["patient_id"] != ""].groupby("study_uid")["patient_id"]
    shared = known.nunique()
    twice = shared.index[shared > 1]
    if len(twice):
        rows = [int(row) for row in resolved.index[resolved["study_uid"] == twice[0]]]
        raise SeriesTableError(
            f"{where}: study {twice[0]} belongs to more than one patient ({name_rows(rows, counted=False)}); "
            f"{len(twice)} such studies; a study has one patient; correct patient_id or study_uid"
        )
    unknown = resolved["patient_id"] == ""
    patient_of = known.first().to_dict()
    resolved.loc[unknown, "patient_id"] = [patient_of.get(study, "") for study in resolved.loc[unknown, "study_uid"]]
