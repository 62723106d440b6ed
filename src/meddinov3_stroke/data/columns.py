"""Which column of a CSV holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meddinov3_stroke.errors import SeriesTableError, UsageError
from meddinov3_stroke.types import LABELS

VOLUME_COLUMNS = ("nifti_path", "dicom_path", "header_index")
"""Columns that name a row's volume: a NIfTI file; a DICOM folder, zip archive or file; the header index that lists the
files of its series. A CSV has at least one of them, a row exactly one that is not empty."""

REQUIRED = LABELS
"""Columns a series CSV must have beside one of `VOLUME_COLUMNS`. `study_uid` may come from the path."""

ALIASES = {label: f"label_{label}" for label in LABELS}
"""Second names under which a column is read without a flag: those of RSNA series tables in circulation."""

OPTIONAL = ("patient_id", "study_uid", "series_uid")
"""Columns read where they are, and taken from the path where they are not."""


def parse_column_mapping(text: str | None) -> dict[str, str]:
    """`nifti_path=path,patient_id=PatientID` as {our name: the CSV's name}; nothing gives {}.

    Raises:
        UsageError: not of that form, a name we do not know, or one named twice.
    """
    mapping: dict[str, str] = {}
    known = (*VOLUME_COLUMNS, *REQUIRED, *OPTIONAL)
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not sign or not theirs or ours not in known or ours in mapping:
            raise UsageError(
                f"--columns: cannot use {part!r}; expected OURS=THEIRS, each of ours once, ours of {', '.join(known)}"
            )
        mapping[ours] = theirs
    return mapping


def find_columns(header: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """{our name: the CSV's name}: by the mapping, else by the same name in any case, else by its alias in any case.

    Raises:
        SeriesTableError: a needed column, or one that the mapping names, is missing or ambiguous.
    """
    found = {name: _find(header, mapping.get(name, name), where) for name in (*VOLUME_COLUMNS, *REQUIRED, *OPTIONAL)}
    missing = [name for name in found if found[name] is None and (name in REQUIRED or name in mapping)]
    if all(found[name] is None for name in VOLUME_COLUMNS) and not set(missing) & set(VOLUME_COLUMNS):
        missing.insert(0, VOLUME_COLUMNS[0])
    if missing:
        wanted = [f"{name} (as {mapping[name]!r})" if name in mapping else name for name in missing]
        raise SeriesTableError(
            f"{where} lacks {', '.join(wanted)}; found {', '.join(header)}; needed {' or '.join(VOLUME_COLUMNS)}, and "
            f"{', '.join(REQUIRED)} (or label_any, ...); name them with --columns OURS=THEIRS,..."
        )
    return {name: column for name, column in found.items() if column is not None}


def _find(header: Sequence[str], name: str, where: str) -> str | None:
    for wanted in filter(None, (name, ALIASES.get(name))):
        if wanted in header:
            return wanted
        matches = [column for column in header if column.casefold() == wanted.casefold()]
        if len(matches) > 1:
            raise SeriesTableError(
                f"{where}: {name} could be {' or '.join(matches)}; say which with --columns {name}=..."
            )
        if matches:
            return matches[0]
    return None
