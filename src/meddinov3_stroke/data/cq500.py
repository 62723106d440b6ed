"""CQ500 (Chilamkurthy et al., Lancet 2018): 491 head CT, three readers' votes in `reads.csv`, DICOM in folders or zips.

Names of folders differ between mirrors (`CQ500-CT-427.zip`, `CQ500CT427 CQ500CT427/Unknown Study/CT Plain`): a case is
found by its number at any depth, and all of it is the row's input. `ct.dicom.choice` decides which series is read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.cohort import CohortCase, Prepared, write_cohort
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.errors import SeriesTableError, name_some
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.types import LABELS

READS_CSV = "reads.csv"
FINDINGS = dict(zip(LABELS, ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH"), strict=True))
"""The readers' names for the six labels."""

N_READERS = 3
LEAST_VOTES = 2  # votes that make a label positive: the majority of three, as in the paper

UndecidedPolicy = Literal["leave-out", "keep"]
"""A case with a majority for ICH and for no type: leave it out, or keep it as `any` without a type."""

_NUMBER = re.compile(r"CQ500[-_ ]*CT[-_ ]*([0-9]{1,9})(?![0-9])", re.IGNORECASE)


def prepare_cq500(root: Path, output_dir: Path, undecided: UndecidedPolicy = "leave-out") -> Prepared:
    """The series table of a CQ500 download.

    Raises:
        DatasetError: no `reads.csv`, missing columns, a repeated or unknown name, a bad vote, or no case left.
        MachineError: the folder cannot be read, or the tables cannot be written.
    """
    csv = read_csv_file(_find_reads(root), "readers' votes")
    votes = _votes(csv)
    found = _find_cases(root)
    votes["places"] = votes["number"].map(lambda number: found.get(number, []))
    extra = sorted(paths[0].name for number, paths in found.items() if number not in set(votes["number"]))
    of_undecided, without_ich = (votes.loc[votes[name], "name"].tolist() for name in ("is_undecided", "lacks_ich"))
    facts = {
        "reads_sha256": csv.sha256,
        "labels": f"majority of {N_READERS} readers (at least {LEAST_VOTES}), each label by its own vote; any is 1 "
        "where ICH or a type has the majority, any_vote is the vote on ICH alone",
        "undecided_type": undecided,
        "n_undecided": len(of_undecided),
        "undecided": of_undecided,
        "n_types_without_ich": len(without_ich),
        "types_without_ich": without_ich,
        "without_reads": extra,
        "batches": dict(Counter(votes["batch"])),
    }
    several = votes.loc[votes["places"].map(len) > 1, "name"].tolist()
    warnings = {
        "cases have a majority for ICH and for no type ({}): `any` is not the OR of the types there; --undecided-type "
        "decides, any_vote keeps the vote": of_undecided,
        "cases have a majority for a type and not for ICH ({}); `any` is 1 there": without_ich,
        "cases are in more than one place ({}); a folder is preferred to an archive, else the first by name": several,
        "cases have no reads and are not in the table: {}": extra,
    }
    counted = (f"{len(names)} {text.format(name_some(sorted(names)))}" for text, names in warnings.items() if names)
    cases = [_case(row, undecided) for row in votes.to_dict("records")]
    policy: LabelPolicy = "ignore" if undecided == "keep" else "strict"
    return write_cohort(
        "cq500", cases, output_dir, facts=facts, warnings=[*csv.warnings, *counted], label_policy=policy
    )


def _number(name: str) -> int | None:
    numbers = {int(number) for number in _NUMBER.findall(name)}
    return numbers.pop() if len(numbers) == 1 else None


def _find_cases(root: Path) -> dict[int, list[Path]]:
    """{case number: its folders and zip archives}; the folders of a case are not searched for more of them."""
    found: dict[int, list[Path]] = defaultdict(list)
    waiting = [root]
    with machine_errors(root):
        for folder in waiting:
            for path in sorted(folder.iterdir(), key=lambda path: (not path.is_dir(), path.name)):
                number = _number(path.name)
                if number is not None and (path.is_dir() or path.suffix.lower() == ".zip"):
                    found[number].append(path)
                elif path.is_dir() and not path.is_symlink():
                    waiting.append(path)
    return found


def _find_reads(root: Path) -> Path:
    with machine_errors(root):
        found = [root / READS_CSV] if (root / READS_CSV).is_file() else sorted(root.glob(f"*/{READS_CSV}"))
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(root)) for path in found) or "nothing"
        raise SeriesTableError(f"{root}: expected {READS_CSV} there or one folder below; found {listed}; check --root")
    return found[0]


def _votes(csv: CsvFile) -> pd.DataFrame:
    """A row a case: name, number, batch, any_vote, the six labels, is_undecided and lacks_ich."""
    names = csv.column("name")
    numbers = names.map(_number)
    repeated, unknown = names[numbers.duplicated()].tolist(), names[numbers.isna()].tolist()
    if unknown or repeated:
        fault = f"{unknown[0]!r} is not a name like CQ500-CT-427" if unknown else f"{repeated[0]} occurs twice"
        raise SeriesTableError(f"{csv.path}: {fault}; correct or remove the row")
    votes = pd.DataFrame({"name": names, "number": numbers.astype(int), "batch": csv.column("Category")})
    for label, finding in FINDINGS.items():
        n_votes = np.sum([csv.binary(f"R{k}:{finding}") for k in range(1, N_READERS + 1)], axis=0)
        votes[label] = (n_votes >= LEAST_VOTES).astype(int)
    any_type = votes[list(LABELS[1:])].max(axis=1)
    votes["any_vote"] = votes["any"]
    votes["any"] = votes["any_vote"].clip(lower=any_type)
    return votes.assign(is_undecided=votes["any_vote"] > any_type, lacks_ich=votes["any_vote"] < any_type)


def _case(row: dict[Any, Any], undecided: UndecidedPolicy) -> CohortCase:
    name = row["name"]
    if not row["places"]:
        return CohortCase.left_out(name, "missing", "no folder and no zip archive of that name")
    if row["is_undecided"] and undecided == "leave-out":
        return CohortCase.left_out(name, "undecided", "most readers see a haemorrhage, and no type has a majority")
    # an archive beside a folder of the same case is what the folder was unpacked from
    preferred = min(row["places"], key=lambda path: (path.is_file(), path.as_posix()))
    columns = {"patient_id": name, "study_uid": name, "series_uid": "", "dicom_path": preferred.resolve().as_posix()}
    return CohortCase(name, columns=columns | {key: row[key] for key in ("batch", "any_vote", *LABELS)})
