"""Patients into train, validation and test: by patient, stratified on the six labels, the same every time.

Iterative stratification after Sechidis, Tsoumakas and Vlahavas (ECML PKDD 2011), the rarest label first; but each
patient goes where it most lowers the chi-square distance between wanted and given positives of all its labels (for one
label, the method of Sainte-Lague), which keeps `any` in proportion too. Sizes are exact to a patient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from meddinov3_stroke.data.table import IDENTITY_COLUMNS, SeriesTable
from meddinov3_stroke.errors import SplitError, UsageError
from meddinov3_stroke.system.atomic import write_json, write_text
from meddinov3_stroke.system.names import public
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.types import LABELS

SPLITS = ("train", "val", "test")  # names of the splits, in the order of the ratios

ATTEMPTS = 20  # splits drawn before giving up on one in which training has every label

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Splits:
    """Three tables that share no patient, and how they were drawn."""

    train: SeriesTable
    val: SeriesTable
    test: SeriesTable
    ratios: tuple[float, float, float]
    seed: int
    warnings: tuple[str, ...] = ()

    def items(self) -> tuple[tuple[str, SeriesTable], ...]:
        """(name, table) of train, val and test."""
        return tuple(zip(SPLITS, (self.train, self.val, self.test), strict=True))


@dataclass(frozen=True)
class SeriesDigests:
    """What the audit of pixels needs of one series: its row in the CSV and its group in `SeriesTable.groups`."""

    row: int
    group: str
    split: str
    file_sha256: str
    pixels_sha256: str


def require_disjoint(splits: Mapping[str, SeriesTable]) -> None:
    """Raise SplitError, with the first one and its rows, if a patient or study is in two of the tables."""
    rows = pd.concat([table.frame.assign(split=name) for name, table in splits.items()])
    for what in ("patient_id", "study_uid"):
        first = rows[rows[what] != ""].drop_duplicates([what, "split"])
        crossing = first[first[what].duplicated(keep=False)]
        if len(crossing):
            same = crossing[crossing[what] == crossing[what].iloc[0]]
            places = "; ".join(f"{one.split} row {one.source_row}" for one in same.itertuples())
            raise SplitError(
                f"{crossing[what].nunique()} {what} in more than one split, first {same[what].iloc[0]} ({places}); "
                "split by patient again"
            )


def audit_pixels(series: Iterable[SeriesDigests]) -> tuple[str, ...]:
    """Warnings about series of one patient and split with the same pixels.

    Raises SplitError, with rows, if the same file or pixels belong to two patients or two splits.
    """
    rows = pd.DataFrame([asdict(one) for one in series], columns=list(SeriesDigests.__dataclass_fields__))
    leaks: dict[str, None] = {}
    repeats: dict[str, None] = {}
    for digest in ("pixels_sha256", "file_sha256"):
        for _, same in rows[rows[digest].duplicated(keep=False)].groupby(digest, sort=False):
            named = " and ".join(f"{one.row} ({one.split})" for one in same.head(_SHOWN).itertuples())
            (leaks if len(same[["group", "split"]].drop_duplicates()) > 1 else repeats)[named] = None
    if leaks:
        listed, n_more = "; ".join(list(leaks)[:_SHOWN]), len(leaks) - _SHOWN
        raise SplitError(
            f"the same pixels appear under two patients or in two splits, in rows {listed}"
            f"{f'; and {n_more} more' if n_more > 0 else ''}; a copy in another split makes test figures too good; "
            "remove the copies or give them one patient_id"
        )
    return tuple(f"the same pixels appear in rows {named} of one patient" for named in list(repeats)[:_SHOWN])


def split_by_patient(table: SeriesTable, ratios: Sequence[float], seed: int) -> Splits:
    """Three splits of shares `ratios` of the patients (of the studies where the patient is unknown).

    Depends on the patients, their labels, the ratios and the seed; not on the order of rows or a library's random
    numbers. A patient counts as positive for a label if any of the patient's series is.

    Raises:
        UsageError: as `check_ratios`.
        SplitError: fewer than three patients, or no split gives training positives and negatives of every label.
    """
    shares = check_ratios(ratios)
    groups, group_of_row = np.unique(np.asarray(table.groups, dtype=object), return_inverse=True)
    if len(groups) < len(SPLITS):
        raise SplitError(
            f"{table.name}: {len(groups)} patient(s) cannot make train, validation and test; expected 3 or more; check "
            "that patient_id, or the folder it is read from, differs between patients"
        )
    positive = np.zeros((len(groups), len(LABELS)), dtype=bool)
    np.logical_or.at(positive, group_of_row, table.labels.astype(bool))
    split_of_group = _best_of_attempts([str(group) for group in groups], positive, shares, seed)
    train, val, test = (table.take(np.flatnonzero(split_of_group[group_of_row] == k)) for k in range(3))
    _require_both_classes(train, table)
    splits = Splits(train, val, test, ratios=shares, seed=seed, warnings=_warnings(table, (train, val, test)))
    require_disjoint(dict(splits.items()))
    return splits


def check_ratios(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The three ratios as floats; UsageError if they are not three positive numbers whose sum is 1."""
    shares = tuple(float(ratio) for ratio in ratios)
    sound = len(shares) == 3 and all(math.isfinite(share) and share > 0 for share in shares)
    if not sound or abs(sum(shares) - 1) > 1e-6:
        listed = " + ".join(f"{share:g}" for share in shares)
        raise UsageError(
            f"--train-ratio, --val-ratio, --test-ratio: found {listed} = {sum(shares):g}; expected three positive "
            "numbers that sum to 1"
        )
    return shares[0], shares[1], shares[2]


def target_sizes(n: int, shares: Sequence[float]) -> Int64[np.ndarray, " split"]:
    """Whole numbers that sum to `n` (3 or more), each within 1 of its share by largest remainder, none of them 0."""
    exact = n * np.asarray(shares)
    sizes: Int64[np.ndarray, " split"] = np.floor(exact).astype(np.int64)
    for k in np.argsort(-(exact - sizes), kind="stable")[: n - int(sizes.sum())]:
        sizes[k] += 1
    while (sizes == 0).any():
        sizes[int(sizes.argmax())] -= 1
        sizes[int(sizes.argmin())] += 1
    return sizes


def stratify(
    positive: Bool[np.ndarray, "patient label"], order: Sequence[int], shares: Sequence[float]
) -> Int64[np.ndarray, " patient"]:
    """The split (0, 1, 2) of each patient; patients are taken in `order`, those of the rarest label first."""
    columns = np.column_stack([positive, ~positive.any(axis=1)])  # patients without a label stay in proportion too
    total = columns.sum(axis=0)
    wanted = np.outer(shares, total).astype(np.float64)
    weight = 1 / np.maximum(wanted, 1e-9)
    free = target_sizes(len(positive), shares)
    split = np.full(len(positive), -1, dtype=np.int64)
    waiting = list(order)
    while waiting:
        left = columns[waiting].sum(axis=0)
        rarest = int(np.where(left > 0, left, len(positive) + 1).argmin())
        for k in [k for k in waiting if columns[k, rarest]]:
            gain = ((2 * wanted - 1) * weight) @ columns[k]
            split[k] = int(np.where(free > 0, gain.round(9), -np.inf).argmax())
            free[split[k]] -= 1
            wanted[split[k]] -= columns[k]
        waiting = [k for k in waiting if split[k] < 0]
    return split


def _best_of_attempts(
    groups: Sequence[str], positive: Bool[np.ndarray, "patient label"], shares: Sequence[float], seed: int
) -> Int64[np.ndarray, " patient"]:
    """The first split in which each part has positives of every label, else the one that lacks fewest."""
    scored = []
    for attempt in range(ATTEMPTS):
        # Ordered by a digest rather than a generator: the same on every platform and library version.
        digests = [hashlib.sha256(f"{seed}\n{attempt}\n{group}".encode()).digest() for group in groups]
        split = stratify(positive, sorted(range(len(groups)), key=digests.__getitem__), shares)
        absent = [int((~positive[split == k].any(axis=0)).sum()) for k in range(3)]
        scored.append(((absent[0], absent[1] + absent[2]), split))
        if not any(absent):
            break
    return min(scored, key=lambda pair: pair[0])[1]


def _require_both_classes(train: SeriesTable, table: SeriesTable) -> None:
    """Checked here, because the head is trained only after hours of extraction."""
    for what, absent in _absent_classes(train):
        counts = ", ".join(f"{label} {int((table.frame[label] == (what == 'positive')).sum())}" for label in absent)
        raise SplitError(
            f"{table.name}: after {ATTEMPTS} attempts training has no {what} series for: {counts} ({what} of all "
            f"{len(table)} series); add series of these types or raise --train-ratio"
        )


def _absent_classes(table: SeriesTable) -> list[tuple[str, list[str]]]:
    """("positive" or "negative", labels of which the table has no such series), if there are any."""
    classes = (("positive", 1), ("negative", 0))
    absent = [(what, [label for label in LABELS if not (table.frame[label] == one).any()]) for what, one in classes]
    return [(what, labels) for what, labels in absent if labels]


def _warnings(table: SeriesTable, parts: Sequence[SeriesTable]) -> tuple[str, ...]:
    warnings = list(table.warnings)
    if n := table.n_without_patient:
        warnings.append(
            f"the patient is unknown for {n} of {len(table)} series, which are split by study: a patient with several "
            "studies may be in more than one split, and test figures may then be too good"
        )
    warnings += [
        f"{name} has no {what} series for {', '.join(absent)}: their AUROC there is undefined"
        for name, part in zip(SPLITS, parts, strict=True)
        for what, absent in _absent_classes(part)
    ]
    return tuple(warnings)


def split_statistics(table: SeriesTable) -> dict[str, Any]:
    """Counts of a table: patients (studies where unknown), studies, series, positive series of each label."""
    return {
        "n_patients": len(set(table.groups)),
        "n_studies": int(table.frame["study_uid"].nunique()),
        "n_series": len(table),
        "n_positive": {label: int(table.frame[label].sum()) for label in LABELS},
    }


def split_document(splits: Splits) -> dict[str, object]:
    """How a split was drawn and what it holds, for JSON."""
    names = dict(splits.items())
    exclusion = splits.train.exclusion
    return {
        "series_csv": splits.train.name,
        "series_csv_sha256": splits.train.sha256,
        "unit": "patient" if not any(t.n_without_patient for t in names.values()) else "patient; study where unknown",
        "ratios": dict(zip(names, splits.ratios, strict=True)),
        "seed": splits.seed,
        "exclusion": None if exclusion is None else exclusion.document,
        "splits": {name: split_statistics(table) for name, table in names.items()},
        "warnings": list(splits.warnings),
    }


def write_splits(splits: Splits, folder: Path) -> dict[str, Path]:
    """Paths of the `train.csv`, `val.csv`, `test.csv` and `split_summary.json` written in `folder`.

    Each CSV keeps the columns of the original as they were and adds patient_id, study_uid and series_uid as resolved,
    `source_row`, the row in the original, and `split`, the name of the split.

    Raises StorageError if the folder cannot be written.
    """
    written = {}
    for name, table in splits.items():
        added = {column: table.frame[column].to_numpy() for column in (*IDENTITY_COLUMNS, "source_row")}
        written[name] = folder / f"{name}.csv"
        frame = table.original.assign(**added, split=name)
        frame = frame.map(lambda cell: public(cell) if isinstance(cell, str) else cell)
        write_text(written[name], frame.to_csv(index=False, lineterminator="\n"))
    written["summary"] = folder / "split_summary.json"
    write_json(written["summary"], {**provenance(), **split_document(splits)})
    return written
