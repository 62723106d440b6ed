"""What a benchmark gives back, printed for people and written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of one benchmark; every row has the same keys, units stand in the keys (`slices_per_s`, `peak_mib`)."""

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    """What a reader must know: what was compared, what fell short and why."""

    def document(self) -> dict[str, Any]:
        """The table as JSON holds it."""
        return asdict(self)

    def text(self) -> str:
        """The table for a terminal or a Markdown page."""
        columns = list(self.rows[0])
        cells = [columns, *([shown(row[column]) for column in columns] for row in self.rows)]
        widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
        lines = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return "\n".join([f"## {self.title}", "", *lines, "", *(f"- {note}" for note in self.notes)])


def shown(value: Any) -> str:
    """A cell's text: four significant digits are all that such machines are good for; cosines keep six decimals."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.6f}" if 0.99 < abs(value) < 1.0 else f"{value:.4g}"
