"""CQ500 (Chilamkurthy et al., Lancet 2018): 491 head CT, three readers' votes in `reads.csv`, DICOM in folders or zips.

The names of folders differ from mirror to mirror (`CQ500-CT-427.zip`, `CQ500CT427 CQ500CT427/Unknown Study/CT Plain`):
a case is found by its number wherever it lies, and the whole of it is the row's input; which series is read is decided
where every study's is, by the rule of `volume`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int8

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort_tables import (
    CohortCase,
    PreparedCohort,
    column_of,
    name_cases,
    write_cohort,
)
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.errors import LabelError, SeriesTableError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.types import LABELS

READS_CSV = "reads.csv"
FINDINGS = dict(zip(LABELS, ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH"), strict=True))
"""What the readers call the six labels."""

N_READERS = 3
LEAST_VOTES = 2
"""Votes that make a label positive: the majority of three, as in the paper."""

UndecidedPolicy = Literal["leave-out", "keep"]
"""What to do with a case in which most readers see a haemorrhage and no type has a majority: leave it out of the table,
or keep it as `any` without a type, which a reader of the table must then allow (--label-policy ignore)."""

_NUMBER = re.compile(r"CQ500[-_ ]*CT[-_ ]*([0-9]{1,9})(?![0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Vote:
    """The majority of the readers on one case."""

    types: tuple[int, ...]
    """0 or 1 of each type, in the order of `LABELS` without `any`."""
    any_vote: int
    """The majority on ICH itself."""

    @property
    def any_label(self) -> int:
        """1 where the majority sees a haemorrhage, or a type of it."""
        return max(self.any_vote, *self.types)

    @property
    def is_undecided(self) -> bool:
        """Most see a haemorrhage, no type has a majority."""
        return bool(self.any_vote and not any(self.types))

    @property
    def contradicts_itself(self) -> bool:
        """A type has a majority and ICH has none."""
        return bool(any(self.types) and not self.any_vote)


def prepare_cq500(root: Path, output_dir: Path, undecided: UndecidedPolicy = "leave-out") -> PreparedCohort:
    """The series table of a CQ500 download.

    Raises:
        SeriesTableError: no `reads.csv`, columns that are not its own, a name twice, or no case left.
        LabelError: a vote that is not 0 or 1.
        MachineError: the folder cannot be read, or the tables not be written.
    """
    reads_path = _find_reads(root)
    csv = read_csv_file(reads_path, "votes of the readers")
    names = _names(csv, reads_path)
    votes = _votes(csv, reads_path)
    batches = column_of(csv, "Category", reads_path.name)
    cases_there = find_cases(root)
    numbers = [_number(name) for name in names]
    places = [[] if number is None else cases_there.get(number, []) for number in numbers]
    cases = [_case(*of_case, undecided) for of_case in zip(names, batches, votes, places, strict=True)]
    extra = [found[0].name for number, found in cases_there.items() if number not in set(numbers)]
    facts = {**_facts(names, votes, undecided, extra, csv), "batches": dict(Counter(batches))}
    policy: LabelPolicy = "ignore" if undecided == "keep" else "strict"
    warnings = [*csv.warnings, *_warnings(names, votes, places, extra)]
    return write_cohort("cq500", cases, output_dir, facts=facts, warnings=warnings, label_policy=policy)


def find_cases(root: Path) -> dict[int, list[Path]]:
    """{case number: folders and archives that its name stands on}, whatever lies above or below them.

    Inside a folder of a case no other of the same case is looked for.
    """
    found: dict[int, list[Path]] = defaultdict(list)
    with machine_errors(root):
        for parent, folders, files in os.walk(root, onerror=_raise):
            for name in sorted(folders):
                number = _number(name)
                if number is not None:
                    found[number].append(Path(parent, name))
            folders[:] = sorted(name for name in folders if _number(name) is None)
            for name in sorted(files):
                number = _number(name)
                if number is not None and name.lower().endswith(".zip"):
                    found[number].append(Path(parent, name))
    return dict(found)


def _raise(error: OSError) -> None:
    raise error


def _number(name: str) -> int | None:
    numbers = {int(number) for number in _NUMBER.findall(name)}
    return numbers.pop() if len(numbers) == 1 else None


def _find_reads(root: Path) -> Path:
    if (root / READS_CSV).is_file():
        return root / READS_CSV
    with machine_errors(root):
        found = sorted(path for path in root.glob(f"*/{READS_CSV}"))
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(root)) for path in found) or "nothing"
        raise SeriesTableError(f"{root}: expected {READS_CSV} there or one folder below; found {listed}; check --root")
    return found[0]


def _names(csv: CsvFile, path: Path) -> list[str]:
    names = column_of(csv, "name", path.name)
    bad = [name for name in names if _number(name) is None]
    twice = names[names.map(_number).duplicated()].tolist()
    if bad or twice:
        fault = f"{bad[0]!r} is no name such as CQ500-CT-427" if bad else f"{twice[0]} stands there twice"
        raise SeriesTableError(f"{path}: {fault}; correct or leave out the row")
    return [str(name) for name in names]


def _votes(csv: CsvFile, path: Path) -> list[Vote]:
    majority = np.stack([_majority(csv, path, finding) for finding in FINDINGS.values()], axis=1)
    return [Vote(tuple(int(value) for value in row[1:]), int(row[0])) for row in majority]


def _majority(csv: CsvFile, path: Path, finding: str) -> Int8[np.ndarray, " case"]:
    readers = [column_of(csv, f"R{k}:{finding}", path.name) for k in range(1, N_READERS + 1)]
    for votes in readers:
        unlike = votes[~votes.isin(["0", "1", "0.0", "1.0"])]
        if len(unlike):
            raise LabelError(f"{path} row {unlike.index[0]}: {votes.name} is {unlike.iloc[0]!r}; expected 0 or 1")
    n_votes = np.sum([votes.str[0].astype(np.int8).to_numpy() for votes in readers], axis=0)
    return np.asarray(n_votes >= LEAST_VOTES, dtype=np.int8)


def _case(name: str, batch: str, vote: Vote, places: list[Path], undecided: UndecidedPolicy) -> CohortCase:
    if not places:
        return CohortCase(name, "missing", "no folder and no zip archive of that name")
    if vote.is_undecided and undecided == "leave-out":
        return CohortCase(name, "undecided", "most readers see a haemorrhage, and no type has a majority")
    columns = {
        "patient_id": name,
        "study_uid": name,
        "series_uid": "",
        "dicom_path": _preferred(places).resolve().as_posix(),
        "batch": batch,
        "any_vote": vote.any_vote,
    }
    labels = dict(zip(LABELS, (vote.any_label, *vote.types), strict=True))
    return CohortCase(name, columns=columns, labels=labels)


def _preferred(places: list[Path]) -> Path:
    """A folder before an archive of the same case, which is what it was unpacked from; else the first by name."""
    return min(places, key=lambda path: (path.is_file(), path.as_posix()))


def _facts(
    names: list[str], votes: list[Vote], undecided: UndecidedPolicy, extra: list[str], csv: CsvFile
) -> dict[str, object]:
    return {
        "reads_sha256": csv.sha256,
        "labels": f"majority of {N_READERS} readers (at least {LEAST_VOTES}), each label by its own vote; any is 1 "
        "where ICH or a type has the majority, any_vote is the vote on ICH alone",
        "undecided_type": undecided,
        "n_undecided": sum(vote.is_undecided for vote in votes),
        "undecided": [name for name, vote in zip(names, votes, strict=True) if vote.is_undecided],
        "n_types_without_ich": sum(vote.contradicts_itself for vote in votes),
        "types_without_ich": [name for name, vote in zip(names, votes, strict=True) if vote.contradicts_itself],
        "without_reads": sorted(extra),
    }


def _warnings(names: list[str], votes: list[Vote], places: list[list[Path]], extra: list[str]) -> Iterator[str]:
    undecided = [name for name, vote in zip(names, votes, strict=True) if vote.is_undecided]
    if undecided:
        yield (
            f"{len(undecided)} cases have a majority for ICH and for no type ({name_cases(undecided)}): `any` is not "
            "the OR of the types there; --undecided-type decides, any_vote keeps the vote"
        )
    odd = [name for name, vote in zip(names, votes, strict=True) if vote.contradicts_itself]
    if odd:
        yield f"{len(odd)} cases have a majority for a type and not for ICH ({name_cases(odd)}); `any` is 1 there"
    twice = [name for name, found in zip(names, places, strict=True) if len(found) > 1]
    if twice:
        yield (
            f"{len(twice)} cases lie in more than one place ({name_cases(twice)}); a folder was taken before an "
            "archive, else the first by name"
        )
    if extra:
        yield f"{len(extra)} cases have no reads and are not in the table: {name_cases(extra)}"
