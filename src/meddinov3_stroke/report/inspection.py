"""Prints an inspection: a block for each series, those used first, then the other files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meddinov3_stroke.ct.dicom.choice import Inspection, SeriesFacts

MOST_FILES = 5
"""Files without an image, or damaged, that are named individually."""

_STYLES = {"used": "bold green", "set aside": "dim", "refused": "red"}


def print_inspection(found: Inspection, rule: str, console: Console | None = None) -> None:
    """Print an inspection on standard output, or on `console`."""
    console = console or Console(soft_wrap=False)
    in_order = sorted(found.series, key=lambda one: (one.study_instance_uid, one.verdict != "used"))
    for study, series in groupby(in_order, key=lambda one: one.study_instance_uid):
        console.print(f"Study {study or '(no UID)'}", markup=False, highlight=False)
        for one in series:
            console.print(_series_block(one))
    _print_files(console, "without an image", found.without_images)
    _print_files(console, "damaged", found.damaged)
    if found.damaged:
        console.print(
            "a damaged file makes the whole input unreadable; to read the rest, list the good files in a .txt",
            highlight=False,
        )
    n_series = len({one.series_instance_uid for one in found.series})
    n_files = f"{found.n_files} file{'s' if found.n_files > 1 else ''}"
    console.print(f"{n_files}, {n_series} series, {found.n_used} used", highlight=False)
    if found.n_used:
        console.print(f"rule: {rule}", highlight=False)
    if found.n_used > 1:
        console.print("several patients or studies: to read one, name its series with --series UID", highlight=False)


def _series_block(one: SeriesFacts) -> Table:
    """A series as a grid: its verdict on the left, its title and facts on the right."""
    table = _grid()
    style = _STYLES[one.verdict]
    table.add_row(f"[{style}]{one.verdict}[/]", f"[{style}]{escape(_title(one))}[/]")
    for line in _lines(one):
        table.add_row("", escape(line))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=max(map(len, _STYLES)))
    table.add_column(overflow="fold")
    return table


def _title(one: SeriesFacts) -> str:
    named = "" if one.series_number is None else f"series {one.series_number}: "
    what = " ".join(filter(None, (one.modality, one.description or "(no description)")))
    counted = f"{one.n_images} {'image' if one.rows else 'object'}{'s' if one.n_images > 1 else ''}"
    return f"{named}{what}, {counted}" + (f" of {one.rows} x {one.columns}" if one.rows else "")


def _lines(one: SeriesFacts) -> list[str]:
    lines = [one.reason] if one.reason else []
    facts = []
    if one.spacing_mm is not None:
        between, rows, columns = one.spacing_mm
        facts.append(f"{between:.3f} x {rows:.3f} x {columns:.3f} mm")
    if one.kernel:
        facts.append(f"kernel {one.kernel}")
    if one.rows:
        facts.append(one.transfer_syntax)
    lines += [", ".join(facts)] if facts else []
    lines += one.notes
    if one.contrast:
        lines.append(f"contrast: {one.contrast}")
    if one.duplicates:
        n_copies = len(one.duplicates)
        lines.append(f"{n_copies} duplicate{'s' if n_copies > 1 else ''} dropped: {_some(one.duplicates)}")
    lines.append(f"UID {one.series_instance_uid}")
    return lines


def _print_files(console: Console, what: str, files: Sequence[tuple[str, str]]) -> None:
    if not files:
        return
    console.print(f"{len(files)} file{'s' if len(files) > 1 else ''} {what}", highlight=False)
    table = _grid()
    for name, reason in files[:MOST_FILES]:
        table.add_row("", escape(reason if name in reason else f"{name}: {reason}"))
    if len(files) > MOST_FILES:
        table.add_row("", f"and {len(files) - MOST_FILES} more")
    console.print(table)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_FILES]) + (", ..." if len(names) > MOST_FILES else "")
