"""Verb `inspect`: the series of a DICOM input, and which of them would be read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.progress import console as results_console
from meddinov3_stroke.system.provenance import ending

if TYPE_CHECKING:
    from rich.console import Console

    from meddinov3_stroke.ct.dicom.choice import Inspection, SeriesFacts

LOGGER = logging.getLogger("meddinov3_stroke")

MOST_FILES = 5
"""Files without an image, damaged or dropped that are named individually."""

_STYLES = {"used": "bold green", "set aside": "dim", "refused": "red"}


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """List the studies and series of a DICOM folder, archive or file, each with a verdict and a reason."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder, .zip, .tar(.gz), .txt list of files, DICOM file, or NIfTI volume."""
    join_series: bool = False
    """List the slices of a study as one series, as --join-series of the other commands reads them."""
    output_json: Path | None = None
    """JSON file to write the same facts to."""


def run(args: Args) -> dict[str, Any]:
    """The facts, as written to `--output-json`."""
    from meddinov3_stroke.ct.contents import is_nifti_name
    from meddinov3_stroke.system.atomic import require_writable, write_json
    from meddinov3_stroke.system.provenance import provenance

    if args.output_json is not None:
        require_writable(files=[args.output_json], inputs=[args.path])
    facts = _volume_facts(args.path) if is_nifti_name(args.path) else _series_facts(args.path, args.join_series)
    document = {**provenance(), "input": str(args.path), **facts}
    if args.output_json is not None:
        write_json(args.output_json, document)
        print(f"wrote {args.output_json}")
    n_used = facts.get("n_used", 1)  # a NIfTI file is one volume
    print(ending(f"{n_used} of {len(facts.get('series', [0]))} series used", args.output_json or "nothing written"))
    return document


def _volume_facts(path: Path) -> dict[str, Any]:
    from meddinov3_stroke.ct import read_volume

    volume = read_volume(path)
    n_slices, n_rows, n_columns = volume.stored.shape
    sides = " x ".join(f"{side:.3f}" for side in volume.spacing_mm)
    print(f"NIfTI volume of {n_slices} slices of {n_rows} x {n_columns}, {sides} mm, {volume.stored.dtype}")
    for warning in volume.warnings:
        LOGGER.warning("%s", warning)
    return {
        "format": "nifti",
        "shape": [n_slices, n_rows, n_columns],
        "spacing_mm": list(volume.spacing_mm),
        "input_sha256": volume.source.sha256,
        "warnings": list(volume.warnings),
    }


def _series_facts(path: Path, join_series: bool) -> dict[str, Any]:
    from meddinov3_stroke.ct.dicom.choice import RULE, inspect_dicom

    found = inspect_dicom(path, join_series=join_series)
    print_inspection(found, RULE)
    document = asdict(found)
    for one in document["series"]:
        del one["outcome"]
    return {"format": "dicom", "rule": RULE, "n_used": found.n_used, **document}


def print_inspection(found: Inspection, rule: str, console: Console | None = None) -> None:
    """Print a block for each series, in a study those used first, then the other files."""
    console = console or results_console()
    in_order = sorted(found.series, key=lambda one: (one.study_instance_uid, one.verdict != "used"))
    for study, series in groupby(in_order, key=lambda one: one.study_instance_uid):
        console.print(f"Study {study or '(no UID)'}", markup=False)
        for one in series:
            style, (title, *lines) = _STYLES[one.verdict], map(escape, _lines(one))
            _print_rows(console, [f"[{style}]{title}[/]", *lines], f"[{style}]{one.verdict}[/]")
    for what, files in (("without an image", found.without_images), ("damaged", found.damaged)):
        if files:
            console.print(f"{_count(len(files), 'file')} {what}")
            lines = [reason if name in reason else f"{name}: {reason}" for name, reason in files[:MOST_FILES]]
            lines += [f"and {len(files) - MOST_FILES} more"] if len(files) > MOST_FILES else []
            _print_rows(console, map(escape, lines))
    if found.damaged:
        console.print(
            "a damaged file makes its series unreadable, or the whole input if its series is unknown; to read the "
            "rest, list the good files in a .txt"
        )
    n_series = len({one.series_instance_uid for one in found.series})
    console.print(f"{_count(found.n_files, 'file')}, {n_series} series, {found.n_used} used")
    if any(one.name != one.series_instance_uid for one in found.series):
        console.print(
            "UID#1, UID#2, ...: volumes of one series, in order of phase, acquisition and series number, then of size"
        )
    if found.is_of_single_images:
        console.print("every image has a series UID of its own: --join-series lists and reads them as one series")
    if found.n_used:
        console.print(f"rule: {rule}")
    if found.n_used > 1:
        console.print("several patients or studies: to read one, name its series with --series UID")


def _print_rows(console: Console, lines: Iterable[str], label: str = "") -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=max(map(len, _STYLES)))
    table.add_column(overflow="fold")
    for k, line in enumerate(lines):
        table.add_row("" if k else label, line)
    console.print(table)


def _lines(one: SeriesFacts) -> list[str]:
    """The title of a series and the facts below it."""
    named = "" if one.series_number is None else f"series {one.series_number}: "
    what = " ".join(filter(None, (one.modality, one.description or "(no description)")))
    size = f" of {one.rows} x {one.columns}" if one.rows else ""
    sides = "" if one.spacing_mm is None else " x ".join(f"{side:.3f}" for side in one.spacing_mm) + " mm"
    facts = [sides, one.kernel and f"kernel {one.kernel}", one.transfer_syntax if one.rows else ""]
    copies = ", ".join(one.duplicates[:MOST_FILES]) + (", ..." if len(one.duplicates) > MOST_FILES else "")
    lines = [
        f"{named}{what}, {_count(one.n_images, 'image' if one.rows else 'object')}{size}",
        one.reason,
        ", ".join(filter(None, facts)),
        *one.notes,
        one.contrast and f"contrast: {one.contrast}",
        copies and f"{_count(len(one.duplicates), 'duplicate')} dropped: {copies}",
        f"UID {one.name}",
    ]
    return list(filter(None, lines))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
