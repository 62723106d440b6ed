"""Patients left out by a list of IDs, such as those of a cohort that serves as the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from meddinov3_stroke.data.columns import IDENTITY_COLUMNS
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import name_some
from meddinov3_stroke.system.digest import sha256_of_bytes


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
    """Excluded patients (studies where the patient is unknown)."""
    n_series: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """One if the list is empty or some IDs match nothing."""
        if not self.ids.ids:
            return (f"{self.ids.name} contains no ID; nobody is excluded",)
        if not self.unmatched:
            return ()
        return (
            f"{self.ids.name}: {len(self.unmatched)} of {len(self.ids.ids)} IDs match no patient_id, study_uid or "
            f"series_uid: {name_some(self.unmatched)}",
        )

    @property
    def sentence(self) -> str:
        """What was excluded, in one line."""
        return f"{self.n_patients} patients with {self.n_series} series are excluded by {self.ids.name}"

    @property
    def document(self) -> dict[str, Any]:
        """For JSON; n_ids = n_matched + n_unmatched."""
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
    """The IDs of a text file, one a line, each once; `#` begins a comment. The list may be empty.

    Raises:
        SeriesTableError: no such file, not UTF-8, or a line with a comma or tab.
    """
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise SeriesTableError(f"no list of IDs at {path}; found {found}, expected a text file with one ID a line")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SeriesTableError(f"{path} is not UTF-8 (byte {error.start}); save it as text in UTF-8") from error
    texts = [line.split("#", 1)[0].strip() for line in lines]
    for number, text in enumerate(texts, start=1):
        if "," in text or "\t" in text:
            raise SeriesTableError(f"{path} line {number}: found {text!r}; expected one ID a line and nothing else")
    return IdList(tuple(dict.fromkeys(filter(None, texts))), path.name, sha256_of_bytes(content))


def exclude(
    identities: pd.DataFrame,
    groups: Sequence[str],
    ids: IdList,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Bool[np.ndarray, " row"], Exclusion]:
    """(which rows stay, what was excluded). An ID that is a row's patient, study or series, in any case, excludes the
    whole patient: rows of one patient share an element of `groups`.

    `identities` has the `IDENTITY_COLUMNS`. `aliases` maps further IDs, in lower case, to one of these: an image's to
    its patient.

    Raises:
        SeriesTableError: the list has IDs and none matches, as if it were another cohort's.
    """
    wanted = {one: aliases.get(one.lower(), one).lower() for one in ids.ids}
    columns = [identities[column].astype(str).str.lower() for column in IDENTITY_COLUMNS]
    known = set().union(*columns)
    unmatched = tuple(one for one, name in wanted.items() if name not in known)
    if ids.ids and len(unmatched) == len(ids.ids):
        raise SeriesTableError(
            f"{ids.name}: none of its {len(ids.ids)} IDs (first {unmatched[0]}) is a patient_id, study_uid or "
            "series_uid here, so nobody would be excluded; is it another cohort's list? If these patients were removed "
            "before, omit --exclude-ids"
        )
    named = np.any([column.isin(set(wanted.values())).to_numpy() for column in columns], axis=0)
    group_of_row = pd.Series(list(groups), dtype=object)
    is_out = group_of_row.isin(group_of_row[named]).to_numpy(dtype=bool)
    return ~is_out, Exclusion(ids, unmatched, int(group_of_row[is_out].nunique()), int(is_out.sum()))
