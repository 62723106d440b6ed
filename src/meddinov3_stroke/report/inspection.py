"""What an inspection says to the terminal: one block a study, one line a series, then what holds no image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meddinov3_stroke.volume.dicom.inspection import Inspection, SeriesFacts

MOST_FILES = 5
"""Files that are no images, or are damaged, named one by one."""

_STYLES = {"used": "bold green", "set aside": "dim", "refused": "red"}


def print_inspection(found: Inspection, rule: str, console: Console | None = None) -> None:
    """Print an inspection on standard output, or on `console`."""
    console = console or Console(soft_wrap=False)
    in_order = sorted(found.series, key=lambda one: one.study_instance_uid)
    for study, series in groupby(in_order, key=lambda one: one.study_instance_uid):
        console.print(f"Study {study or '(no UID)'}", markup=False, highlight=False)
        for one in series:
            console.print(_series_block(one))
    _print_files(console, "without an image", found.without_images)
    _print_files(console, "damaged", found.damaged)
    n_series = len(found.series)
    console.print(f"{found.n_files} files, {n_series} series, {found.n_used} used", highlight=False)
    if found.n_used:
        console.print(f"rule: {rule}", highlight=False)
    if found.n_used > 1:
        console.print("more than one study: reading needs --series UID", highlight=False)


def _series_block(one: SeriesFacts) -> Table:
    """A series as a grid: verdict and what it is at the left, its facts at the right."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=9)
    table.add_column(overflow="fold")
    style = _STYLES[one.verdict]
    table.add_row(f"[{style}]{one.verdict}[/]", f"[{style}]{escape(_title(one))}[/]")
    for line in _lines(one):
        table.add_row("", escape(line))
    return table


def _title(one: SeriesFacts) -> str:
    named = "" if one.series_number is None else f"series {one.series_number}: "
    what = " ".join(filter(None, (one.modality, one.description or "(no description)")))
    return f"{named}{what}, {one.n_images} image{'s' if one.n_images > 1 else ''} of {one.rows} x {one.columns}"


def _lines(one: SeriesFacts) -> list[str]:
    lines = [one.reason] if one.reason else []
    facts = []
    if one.spacing_mm is not None:
        between, rows, columns = one.spacing_mm
        facts.append(f"{between:.3f} x {rows:.3f} x {columns:.3f} mm")
    if one.kernel:
        facts.append(f"kernel {one.kernel}")
    facts.append(one.transfer_syntax)
    lines.append(", ".join(facts))
    lines += one.notes
    if one.contrast:
        lines.append(f"contrast: {one.contrast}")
    if one.duplicates:
        lines.append(f"{len(one.duplicates)} duplicates dropped: {_some(one.duplicates)}")
    lines.append(f"UID {one.series_instance_uid}")
    return lines


def _print_files(console: Console, what: str, files: Sequence[tuple[str, str]]) -> None:
    if not files:
        return
    console.print(f"{len(files)} file{'s' if len(files) > 1 else ''} {what}", highlight=False)
    for name, reason in files[:MOST_FILES]:
        told = reason if name in reason else f"{name}: {reason}"
        console.print(f"           {told}", markup=False, highlight=False)
    if len(files) > MOST_FILES:
        console.print(f"           and {len(files) - MOST_FILES} more", highlight=False)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_FILES]) + (", ..." if len(names) > MOST_FILES else "")
