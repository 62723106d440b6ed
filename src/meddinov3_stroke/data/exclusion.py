"""Patients left out by a list of IDs, such as those of a cohort that serves as the test."""

from __future__ import annotations

from collections.abc import Mapping
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

    document: dict[str, Any]
    """For JSON; n_ids = n_matched + n_unmatched."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One if the list is empty or some IDs match nothing."""
        name, n_ids, unmatched = (self.document[key] for key in ("file", "n_ids", "unmatched"))
        if not n_ids:
            return (f"{name} contains no ID; nobody is excluded",)
        matches = "match no patient_id, study_uid or series_uid"
        return (f"{name}: {len(unmatched)} of {n_ids} IDs {matches}: {name_some(unmatched)}",) if unmatched else ()

    @property
    def sentence(self) -> str:
        """What was excluded, in one line."""
        n_patients, n_series = self.document["n_excluded_patients"], self.document["n_excluded_series"]
        return f"{n_patients} patients with {n_series} series are excluded by {self.document['file']}"


def patient_groups(identities: pd.DataFrame) -> pd.Series:
    """What must stay together, of each row: `patient:<id>`, or `study:<uid>` where the patient is unknown."""
    known = identities["patient_id"] != ""
    return ("patient:" + identities["patient_id"]).where(known, "study:" + identities["study_uid"])


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
    identities: pd.DataFrame, ids: IdList, aliases: Mapping[str, str] = MappingProxyType({})
) -> tuple[Bool[np.ndarray, " row"], Exclusion]:
    """(which rows stay, what was excluded). An ID that is a row's patient, study or series, in any case, excludes every
    row of its patient.

    `identities` has the `IDENTITY_COLUMNS`. `aliases` maps further IDs, in lower case, to one of these: an image's to
    its patient.

    Raises:
        SeriesTableError: the list has IDs and none matches, as if it were another cohort's.
    """
    wanted = {one: aliases.get(one.lower(), one).lower() for one in ids.ids}
    columns = identities[list(IDENTITY_COLUMNS)].astype(str).apply(lambda column: column.str.lower())
    known = set(columns.to_numpy().ravel())
    unmatched = [one for one, name in wanted.items() if name not in known]
    if ids.ids and len(unmatched) == len(ids.ids):
        raise SeriesTableError(
            f"{ids.name}: none of its {len(ids.ids)} IDs (first {unmatched[0]}) is a patient_id, study_uid or "
            "series_uid here, so nobody would be excluded; is it another cohort's list? If these patients were removed "
            "before, omit --exclude-ids"
        )
    groups = patient_groups(identities)
    is_out = groups.isin(groups[columns.isin(set(wanted.values())).any(axis=1)])
    document = {
        "file": ids.name,
        "sha256": ids.sha256,
        "n_ids": len(ids.ids),
        "n_matched": len(ids.ids) - len(unmatched),
        "n_unmatched": len(unmatched),
        "unmatched": unmatched,
        "n_excluded_patients": int(groups[is_out].nunique()),
        "n_excluded_series": int(is_out.sum()),
    }
    return np.asarray(~is_out, dtype=bool), Exclusion(document)
