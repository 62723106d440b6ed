"""Which column of a CSV holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meddinov3_stroke.errors import SeriesTableError, UsageError
from meddinov3_stroke.types import LABELS

REQUIRED = ("nifti_path", *LABELS)
"""Columns a series CSV must have. `study_uid` may come from the path."""

OPTIONAL = ("patient_id", "study_uid", "series_uid")
"""Columns read where they are, and taken from the path where they are not."""


def parse_column_mapping(text: str | None) -> dict[str, str]:
    """`nifti_path=path,patient_id=PatientID` as {our name: the CSV's name}; nothing gives {}.

    Raises:
        UsageError: not of that form, a name we do not know, or one named twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not sign or not theirs or ours not in (*REQUIRED, *OPTIONAL) or ours in mapping:
            names = ", ".join((*REQUIRED, *OPTIONAL))
            raise UsageError(
                f"--columns: cannot use {part!r}; expected OURS=THEIRS, each of ours once, ours of {names}"
            )
        mapping[ours] = theirs
    return mapping


def find_columns(header: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """{our name: the CSV's name}: by the mapping, else by the same name, else by the same name in other case.

    Raises:
        SeriesTableError: a needed column, or one that the mapping names, is missing or ambiguous.
    """
    found = {name: _find(header, mapping.get(name, name), where) for name in (*REQUIRED, *OPTIONAL)}
    missing = [name for name in found if found[name] is None and (name in REQUIRED or name in mapping)]
    if missing:
        wanted = [f"{name} (as {mapping[name]!r})" if name in mapping else name for name in missing]
        raise SeriesTableError(
            f"{where} lacks {', '.join(wanted)}; found {', '.join(header)}; needed {', '.join(REQUIRED)}; "
            "name them with --columns OURS=THEIRS,..."
        )
    return {name: column for name, column in found.items() if column is not None}


def _find(header: Sequence[str], name: str, where: str) -> str | None:
    if name in header:
        return name
    matches = [column for column in header if column.casefold() == name.casefold()]
    if len(matches) > 1:
        raise SeriesTableError(f"{where}: {name} could be {' or '.join(matches)}; say which with --columns {name}=...")
    return matches[0] if matches else None
