"""Checks for leaks: a patient, a study or the same pixels in two parts of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meddinov3_stroke.data.table import SeriesTable
from meddinov3_stroke.errors import SplitError

_SHOWN = 5


@dataclass(frozen=True)
class SeriesDigests:
    """What the audit of pixels needs of one series."""

    row: int
    """Row in the CSV."""
    group: str
    """As `SeriesTable.groups`."""
    split: str
    file_sha256: str
    pixels_sha256: str


def require_disjoint(splits: Mapping[str, SeriesTable]) -> None:
    """Check that the tables share no patient and no study.

    Raises:
        SplitError: they do; with the first one and its rows.
    """
    for what in ("patient_id", "study_uid"):
        seen: dict[str, dict[str, int]] = defaultdict(dict)
        for name, table in splits.items():
            for key, row in zip(table.frame[what], table.rows, strict=True):
                if key:
                    seen[str(key)].setdefault(name, row)
        crossing = [key for key, places in seen.items() if len(places) > 1]
        if crossing:
            places = "; ".join(f"{name} row {row}" for name, row in seen[crossing[0]].items())
            raise SplitError(
                f"{len(crossing)} {what} in more than one split, first {crossing[0]} ({places}); split by patient again"
            )


def audit_pixels(series: Iterable[SeriesDigests]) -> tuple[str, ...]:
    """Warnings about series of one patient and split with the same pixels.

    Raises:
        SplitError: the same file or the same pixels belong to two patients or two splits; with rows.
    """
    listed = list(series)
    found: dict[frozenset[int], list[SeriesDigests]] = {}
    for digest in ("pixels_sha256", "file_sha256"):
        alike: dict[str, list[SeriesDigests]] = defaultdict(list)
        for one in listed:
            alike[getattr(one, digest)].append(one)
        found |= {frozenset(one.row for one in same): same for same in alike.values() if len(same) > 1}
    leaks: list[str] = []
    repeats: list[str] = []
    for same in found.values():
        crosses = len({(one.group, one.split) for one in same}) > 1
        (leaks if crosses else repeats).append(" and ".join(f"{one.row} ({one.split})" for one in same[:_SHOWN]))
    if leaks:
        more = f"; and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        raise SplitError(
            f"the same pixels appear under two patients or in two splits, in rows {'; '.join(leaks[:_SHOWN])}{more}; a "
            "copy in another split makes test figures too good; remove the copies or give them one patient_id"
        )
    return tuple(f"the same pixels appear in rows {rows} of one patient" for rows in repeats[:_SHOWN])
