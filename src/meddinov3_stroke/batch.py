"""Many cases in one run: a folder for each, a row in `results.csv` for each, and a ledger from which a run resumes."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meddinov3_stroke.cases import EndedCase, case_id
from meddinov3_stroke.ct import open_input
from meddinov3_stroke.errors import MedDINOError, PartialFailure, UsageError
from meddinov3_stroke.features.ledger import PENDING, Ledger, input_name, settled_state
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.system.progress import console, finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import ending, provenance
from meddinov3_stroke.types import VolumeInput

RESULTS_NAME = "results.csv"
SETTINGS_DIGITS = 16
FIRST_COLUMNS = ("input", "series", "case_id", "status", "code", "message")


class Batch:
    """A folder of cases that were computed with the same settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Raises UsageError for a folder with results of other settings, or of a single case, unless `overwrite`."""
        self.folder, self.ledger = folder, Ledger(folder)
        self.inputs: Sequence[VolumeInput] = ()
        self.settings = sha256_of_document(settings)[:SETTINGS_DIGITS]
        if overwrite:
            return
        if self.ledger.settings not in (None, self.settings):
            raise UsageError(
                f"{folder} holds results of other settings (backbone, head or flags); choose another --output-dir, or "
                "pass --overwrite to replace them"
            )
        if self.ledger.settings is None and (folder / "summary.json").exists():
            raise UsageError(f"{folder} holds the result of a single case; choose another --output-dir, or --overwrite")

    def run(
        self,
        inputs: Sequence[VolumeInput],
        compute: Callable[[Sequence[VolumeInput]], Iterator[EndedCase]],
        show_progress: bool = True,
    ) -> None:
        """Compute every input that is not done yet, in order, and write `results.csv`.

        `compute` gives how each input ended, in order. Raises PartialFailure if any input is not done, and
        KeyboardInterrupt after SIGINT, once the case in work is saved.
        """
        self.inputs, names = inputs, [input_name(source) for source in inputs]
        self.ledger.begin(self.settings, names)
        todo = [source for source, name in zip(inputs, names, strict=True) if not self._is_done(source, name)]
        with (
            progress_bar("cases", len(inputs), "cases", show_progress) as advance,
            finish_on_interrupt("case") as interruption,
        ):
            advance(len(inputs) - len(todo))
            try:
                for source, ended in zip(todo, compute(todo), strict=True):
                    self._record(source, ended)
                    advance()
                    interruption.check()
            finally:
                write_text(self.folder / RESULTS_NAME, csv_text(self.rows()))
        self._require_all_done()

    def _is_done(self, source: VolumeInput, name: str) -> bool:
        if name not in self.ledger.records:
            return False
        try:
            return self.ledger.finished(name, open_input(source))
        except MedDINOError:
            return False

    def _record(self, source: VolumeInput, ended: EndedCase) -> None:
        facts: dict[str, Any] = {"row": ended.row()}
        if ended.sha256:
            facts |= {"sha256": ended.sha256, "files": settled_state(open_input(source))}
            ended.save(self.folder / case_id(ended.sha256))
        self.ledger.add(input_name(source), ended.outcome, **facts)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `results.csv`: one an input of this run, in order."""
        rows = []
        for source in self.inputs:
            record = self.ledger.records.get(input_name(source), {"status": PENDING})
            named = (str(source.path), source.series_uid or "", case_id(record.get("sha256", "")))
            first = (*named, *(record.get(name, "") for name in FIRST_COLUMNS[len(named) :]))
            rows.append({**dict(zip(FIRST_COLUMNS, first, strict=True)), **record.get("row", {})})
        return rows

    def print(self, as_json: bool) -> None:
        """Print counts by state and the positive cases on standard output; or the counts and every row, as JSON."""
        totals, rows = self.ledger.totals(), self.rows()
        if as_json:
            print(json.dumps({**provenance(), "totals": totals, "results": rows}, ensure_ascii=False))
            return
        counts = ", ".join(f"{count} {state}" for state, count in totals.items() if count and state != "total")
        n_positive = sum(bool(row.get("positive_any")) for row in rows)
        answer = f"{totals['total']} cases: {counts}; {n_positive} positive for any haemorrhage"
        console().print(ending(answer, self.folder / RESULTS_NAME), markup=False)

    def _require_all_done(self) -> None:
        rows = self.rows()
        codes = Counter(row["code"] for row in rows if row["status"] != "done")
        if codes:
            reasons = ", ".join(f"{count} {code}" for code, count in codes.most_common())
            raise PartialFailure(
                f"{codes.total()} of {len(rows)} cases have no result: {reasons}; {self.folder / RESULTS_NAME} says "
                "why; the others are kept, and the same command tries these again"
            )


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, with every column that any of them has; None is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; paths are written as they are.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row)) or list(FIRST_COLUMNS)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(name: str, value: Any) -> Any:
    is_formula = isinstance(value, str) and name != "input" and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value
