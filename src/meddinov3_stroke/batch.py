"""Many cases in one run: a folder for each, a row in `results.csv` for each, and a ledger from which a run resumes."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from meddinov3_stroke.cases import EndedCase, FailedCase, case_id
from meddinov3_stroke.ct import Source, open_input, source_path
from meddinov3_stroke.errors import MedDINOError, Outcome, PartialFailure, UsageError
from meddinov3_stroke.features import FeatureExtractor, extract_one
from meddinov3_stroke.features.extract import extract
from meddinov3_stroke.features.ledger import PENDING, Ledger, input_name, settled_state
from meddinov3_stroke.options import InputOptions
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.system.names import print_document, public_document
from meddinov3_stroke.system.progress import console, finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import SUMMARY_NAME, Stopwatch, ending, provenance
from meddinov3_stroke.types import SliceEmbeddings, Volume, VolumeInput

LOGGER = logging.getLogger("meddinov3_stroke")

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
        if self.ledger.settings is None and (folder / SUMMARY_NAME).exists():
            raise UsageError(f"{folder} holds the result of a single case; choose another --output-dir, or --overwrite")

    def run(
        self,
        inputs: Sequence[VolumeInput],
        compute: Callable[[Sequence[VolumeInput]], Iterator[EndedCase]],
        options: InputOptions,
    ) -> None:
        """Compute every input that is not done yet, in order, write `results.csv`, and print the counts.

        `compute` gives how each input ended, in order. Raises PartialFailure if any input is not done, and
        KeyboardInterrupt after SIGINT, once the case in work is saved.
        """
        self.inputs, names = inputs, [input_name(source) for source in inputs]
        self.ledger.begin(self.settings, names)
        todo = [source for source, name in zip(inputs, names, strict=True) if not self._is_done(source, name)]
        watch = Stopwatch()
        bar = progress_bar("cases", len(inputs), "cases", options.show_progress)
        try:
            with bar as advance, finish_on_interrupt("case") as interruption:
                advance(len(inputs) - len(todo))
                for source, ended in zip(todo, compute(todo), strict=True):
                    self._record(source, ended, watch.elapsed_s)
                    watch = Stopwatch()
                    advance()
                    interruption.check()
        finally:
            write_text(self.folder / RESULTS_NAME, csv_text(public_document(self.rows())))
            self._print(options.json)
        self._require_all_done()

    def _is_done(self, source: VolumeInput, name: str) -> bool:
        written = self.ledger.records.get(name, {}).get("written")
        if written is None or not (self.folder / written).exists():
            return False
        try:
            return self.ledger.finished(name, open_input(source))
        except MedDINOError:
            return False

    def _record(self, source: VolumeInput, ended: EndedCase, seconds: float) -> None:
        facts: dict[str, Any] = {"row": {**ended.row(), "seconds": round(seconds, 2)}}
        if ended.sha256:
            *_, last = ended.save(self.folder / case_id(ended.sha256)).values()
            written = last.relative_to(self.folder).as_posix()
            facts |= {"sha256": ended.sha256, "written": written}
            with suppress(MedDINOError):  # the input is gone by now; its digest is known
                facts["files"] = settled_state(open_input(source))
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

    def _print(self, as_json: bool) -> None:
        """Print counts by state, and the positive cases, on standard output; or the counts and every row, as JSON."""
        totals, rows = self.ledger.totals(), self.rows()
        if as_json:
            print_document({**provenance(), "totals": totals, "results": rows})
            return
        counts = ", ".join(f"{count} {state}" for state, count in totals.items() if count and state != "total")
        decided = [row["positive_any"] for row in rows if "positive_any" in row]
        answer = f"{totals['total']} cases: {counts}"
        answer += f"; {sum(map(bool, decided))} positive for any haemorrhage" if decided else ""
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


def map_cases(
    sources: Iterable[Source],
    extractor: FeatureExtractor,
    finish: Callable[[Volume, SliceEmbeddings], EndedCase],
    *,
    check: Callable[[Volume], object] | None = None,
    force: bool = True,
) -> Iterator[EndedCase]:
    """How each source ended, in order: `finish` of its volume and embeddings, or a `FailedCase`; the rest goes on.

    The next volumes are read while the engine works, and its passes are filled across volumes. `check` and `force` as
    for `extract`.
    """

    def one(source: Source) -> EndedCase:
        volume, embeddings, _ = extract_one(source, extractor, check=check, force=force)
        return finish(volume, embeddings)

    remaining, ahead = iter(sources), deque[Source]()
    while True:
        run = extract(_noted(remaining, ahead), extractor, keep_volume=True, check=check, force=force)
        try:
            with closing(run) as extractions:
                for found in extractions:
                    if found.volume is None or found.embeddings is None:
                        ended: EndedCase = FailedCase(found.path or Path(), found.outcome)
                    else:
                        volume, embeddings = found.volume, found.embeddings
                        ended = attempt(volume.source.path, lambda: finish(volume, embeddings))  # noqa: B023
                    ahead.popleft()
                    yield ended
            return
        except Exception as error:  # the engine's; the cases it has begun are tried one by one
            LOGGER.debug("%s: %s; the cases in work are tried one by one", type(error).__name__, error)
            while ahead:
                source = ahead.popleft()
                yield attempt(source, lambda: one(source))  # noqa: B023


def attempt(source: Source, compute: Callable[[], EndedCase]) -> EndedCase:
    """The computed case, or the `FailedCase` with the error that it raised."""
    try:
        return compute()
    except Exception as error:
        path = Path()
        with suppress(UsageError):  # the source itself is the fault
            path = source_path(source)
        if not isinstance(error, MedDINOError):
            LOGGER.error("%s: %s: %s", path, type(error).__name__, error, exc_info=error)
        return FailedCase(path, Outcome.of(error))


def _noted(sources: Iterator[Source], ahead: deque[Source]) -> Iterator[Source]:
    """The sources, each noted before it is given out."""
    for source in sources:
        ahead.append(source)
        yield source


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
