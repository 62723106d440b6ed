"""A case on the terminal: probabilities, suspicious slices, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meddinov3_stroke.report.pictures import AID_NOTE
from meddinov3_stroke.system.provenance import DISCLAIMER
from meddinov3_stroke.types import CaseFindings


def print_case(findings: CaseFindings, files: Mapping[str, Path], console: Console | None = None) -> None:
    """Print a case on standard output, or on `console`."""
    console = console or Console(soft_wrap=True)
    console.print(_probabilities(findings))
    console.print(_top_slices(findings))
    console.print(escape(findings.ranking))
    console.print(AID_NOTE)
    for path in files.values():
        console.print(f"wrote {path}", markup=False, highlight=False)
    console.print(DISCLAIMER)


def _probabilities(findings: CaseFindings) -> Table:
    table = Table("label", "probability", "threshold", "decision", title="Haemorrhage", title_justify="left")
    for column in table.columns[1:3]:
        column.justify = "right"
    for label, probability in findings.probabilities.items():
        decided = findings.decisions[label]
        table.add_row(
            escape(label),
            f"{probability:.4f}",
            f"{findings.thresholds[label].value:.4f}",
            "positive" if decided else "negative",
            style="bold" if decided else None,
        )
    return table


def _top_slices(findings: CaseFindings) -> Table:
    table = Table("slice", "score", "z in mm", "highest type", title="Suspicious slices", title_justify="left")
    for column in table.columns[:3]:
        column.justify = "right"
    for one in findings.top_slices:
        types = {label: value for label, value in one.probabilities.items() if label != "any"}
        highest = max(types, key=types.__getitem__) if types else "-"
        named = f"{highest} {types[highest]:.4f}" if types else highest
        table.add_row(str(one.slice_index), f"{one.score:.4f}", f"{one.position_mm[2]:.1f}", escape(named))
    return table
