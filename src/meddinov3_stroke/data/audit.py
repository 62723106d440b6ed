"""Looking for what must not be: a patient, a study or the same pixels on two sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meddinov3_stroke.data.table import SeriesTable
from meddinov3_stroke.errors import SplitError

_SHOWN = 5


@dataclass(frozen=True)
class SeriesDigests:
    """What the audit of pixels needs to know of one series."""

    row: int
    """Row in the CSV."""
    group: str
    """As `SeriesTable.groups`."""
    split: str
    file_sha256: str
    pixels_sha256: str


def require_disjoint(splits: Mapping[str, SeriesTable]) -> None:
    """Pass only tables that share no patient and no study.

    Raises:
        SplitError: one is in two splits; with the first few, and their rows.
    """
    for what in ("patient_id", "study_uid"):
        seen: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, table in splits.items():
            for key, row in zip(table.frame[what], table.rows, strict=True):
                if key:
                    seen[str(key)][name].append(row)
        crossing = [key for key, places in seen.items() if len(places) > 1]
        if crossing:
            places = "; ".join(f"{name} row {rows[0]}" for name, rows in seen[crossing[0]].items())
            raise SplitError(
                f"{len(crossing)} {what} in more than one split, first {crossing[0]} ({places}); split by patient again"
            )


def audit_pixels(series: Iterable[SeriesDigests]) -> tuple[str, ...]:
    """Warnings on series of one patient and split that hold the same pixels.

    Raises:
        SplitError: the same file or the same pixels stand under two patients or in two splits; rows are named.
    """
    leaks: list[str] = []
    repeats: list[str] = []
    for same in _sharing(list(series)):
        rows = " and ".join(f"{one.row} ({one.split})" for one in same[:_SHOWN])
        crosses = len({(one.group, one.split) for one in same}) > 1
        (leaks if crosses else repeats).append(rows)
    if leaks:
        listed = "; ".join(leaks[:_SHOWN]) + (f"; and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else "")
        raise SplitError(
            f"the same pixels stand under two patients or in two splits, in rows {listed}; a copy that crosses splits "
            "makes test figures too good; remove the copies or give them one patient_id"
        )
    return tuple(f"the same pixels stand in rows {rows} of one patient" for rows in repeats[:_SHOWN])


def _sharing(series: list[SeriesDigests]) -> list[list[SeriesDigests]]:
    by_pixels: dict[str, list[SeriesDigests]] = defaultdict(list)
    for one in series:
        by_pixels[one.pixels_sha256].append(one)
    groups = [same for same in by_pixels.values() if len(same) > 1]
    by_file: dict[str, list[SeriesDigests]] = defaultdict(list)
    for one in series:
        by_file[one.file_sha256].append(one)
    pixels = {frozenset(one.row for one in same) for same in groups}
    return groups + [
        same for same in by_file.values() if len(same) > 1 and frozenset(one.row for one in same) not in pixels
    ]
