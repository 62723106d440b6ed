"""Patients left out by a list of IDs: those of a cohort that serves as the test, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.system.digest import sha256_of_bytes

ID_COLUMNS = ("patient_id", "study_uid", "series_uid")
"""What an ID of the list may be."""

_NO_ALIASES: Mapping[str, str] = MappingProxyType({})

NAMED = 8
"""IDs that a warning names before it only counts the rest."""


@dataclass(frozen=True)
class IdList:
    """The IDs of a text file, in its order."""

    ids: tuple[str, ...]
    name: str
    """Name of the file, for messages."""
    sha256: str
    """Digest of its bytes."""


@dataclass(frozen=True)
class Exclusion:
    """What a list of IDs took out of a table."""

    ids: IdList
    unmatched: tuple[str, ...]
    """IDs that are neither patient, study nor series of the table."""
    n_patients: int
    """Patients (studies where the patient is not known) that left, whole."""
    n_series: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """One where IDs matched nothing, or where there is none."""
        if not self.ids.ids:
            return (f"{self.ids.name} holds no ID; nobody is left out",)
        if not self.unmatched:
            return ()
        more = f" and {len(self.unmatched) - NAMED} more" if len(self.unmatched) > NAMED else ""
        return (
            f"{self.ids.name}: {len(self.unmatched)} of {len(self.ids.ids)} IDs match no patient_id, study_uid or "
            f"series_uid: {', '.join(self.unmatched[:NAMED])}{more}",
        )

    @property
    def sentence(self) -> str:
        """What left, in a line."""
        return f"{self.n_patients} patients with {self.n_series} series are left out by {self.ids.name}"

    @property
    def document(self) -> dict[str, Any]:
        """For JSON; counts add up: n_ids = n_matched + n_unmatched."""
        return {
            "file": self.ids.name,
            "sha256": self.ids.sha256,
            "n_ids": len(self.ids.ids),
            "n_matched": len(self.ids.ids) - len(self.unmatched),
            "n_unmatched": len(self.unmatched),
            "unmatched": list(self.unmatched),
            "n_excluded_patients": self.n_patients,
            "n_excluded_series": self.n_series,
        }


def read_id_list(path: Path) -> IdList:
    """The IDs of a text file, one a line; `#` begins a comment, an ID that stands twice counts once. There may be none.

    Raises:
        SeriesTableError: no such file, no text in UTF-8, or a line of several words.
    """
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise SeriesTableError(f"no list of IDs at {path}; found {found}, expected a text file with one ID a line")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SeriesTableError(f"{path} is not UTF-8 (byte {error.start}); save it as text in UTF-8") from error
    ids: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if "," in text or "\t" in text:
            raise SeriesTableError(f"{path} line {number}: found {text!r}; expected one ID a line and nothing else")
        if text:
            ids[text] = None
    return IdList(tuple(ids), path.name, sha256_of_bytes(content))


def exclude(
    identities: pd.DataFrame, groups: Sequence[str], ids: IdList, aliases: Mapping[str, str] = _NO_ALIASES
) -> tuple[Int64[np.ndarray, " kept"], Exclusion]:
    """(positions of the rows that stay, what left). Where an ID is a row's patient, study or series, in whatever case,
    the whole patient leaves: `groups` says which rows are one patient's.

    `identities` has the columns of `ID_COLUMNS`. `aliases` says of other IDs, in lower case, for which of a row's own
    they stand: of an image, for its patient.

    Raises:
        SeriesTableError: there are IDs, and not one matches: it is another cohort's list, or another kind of ID.
    """
    wanted = {one: aliases.get(one.lower(), one).lower() for one in ids.ids}
    columns = [identities[column].astype(str).str.lower() for column in ID_COLUMNS]
    known = set().union(*columns)
    unmatched = tuple(one for one, name in wanted.items() if name not in known)
    if ids.ids and len(unmatched) == len(ids.ids):
        raise SeriesTableError(
            f"{ids.name}: none of its {len(ids.ids)} IDs ({unmatched[0]} the first) is a patient_id, study_uid or "
            "series_uid here; nobody would be left out; is it another cohort's list? Where these patients were left "
            "out before, go without --exclude-ids"
        )
    named = np.any([column.isin(set(wanted.values())).to_numpy() for column in columns], axis=0)
    of_group = np.asarray(groups, dtype=object)
    leaving = set(of_group[named])
    stays = np.array([group not in leaving for group in of_group], dtype=bool)
    exclusion = Exclusion(ids, unmatched, n_patients=len(leaving), n_series=int((~stays).sum()))
    return np.flatnonzero(stays).astype(np.int64), exclusion
