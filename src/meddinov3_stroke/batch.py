"""Many cases in one run: a folder for each, a row in `results.csv` for each, and a ledger from which a run resumes."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from meddinov3_stroke.cases import EndedCase, FailedCase, case_id
from meddinov3_stroke.ct import Source, open_input, source_path
from meddinov3_stroke.errors import (
    MachineError,
    MedDINOError,
    Outcome,
    PartialFailure,
    StorageUnavailable,
    UsageError,
    WorkerLost,
)
from meddinov3_stroke.features import FeatureExtractor, extract_one
from meddinov3_stroke.features.extract import OnSlices, extract
from meddinov3_stroke.features.ledger import PENDING, Ledger, input_name, settled_state
from meddinov3_stroke.features.shards import Shard
from meddinov3_stroke.features.workers import Work, Workers
from meddinov3_stroke.options import InputOptions
from meddinov3_stroke.system import names
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

Compute = Callable[[Iterable[VolumeInput], OnSlices | None], Iterator[EndedCase]]
"""Gives how each input ended, in order; the function it is given hears of every forward pass."""

Opener = Callable[[str], tuple[Compute, Mapping[str, Any]]]
"""Loads the model on a device: what computes there, and the settings that decide its results."""

SourceT = TypeVar("SourceT", bound=Source)
_Ended = tuple[VolumeInput, Outcome, dict[str, Any]]


class Batch:
    """A folder of cases that were computed with the same settings."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False, shard: Shard | None = None
    ) -> None:
        """Raises UsageError for a folder with results of other settings, or of a single case, unless `overwrite`."""
        self.folder, self.ledger = folder, Ledger(folder, shard)
        self.inputs: Sequence[VolumeInput] = ()
        self.settings = _settings_name(settings)
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
        compute: Compute,
        options: InputOptions,
        workers: Workers | None = None,
        opener: Opener | None = None,
    ) -> None:
        """Compute every input that is not done yet, write `results.csv` unless this is a shard, and print the counts.

        With workers, `opener` (picklable) gives `compute` in each. Raises PartialFailure if any input is not done, and
        KeyboardInterrupt after SIGINT, once the case in work is saved.
        """
        chosen = self.ledger.begin(self.settings, [input_name(source) for source in inputs])
        self.inputs = [inputs[k] for k in chosen]
        named = [input_name(source) for source in self.inputs]
        lost = self.ledger.lost(named)
        todo = [
            self.inputs[k] for k, name in enumerate(named) if k not in lost and not self._is_done(self.inputs[k], name)
        ]
        bar = progress_bar("cases", len(self.inputs), "cases", options.show_progress)
        run = self._here(todo, compute) if workers is None else self._in_workers(todo, workers, opener)
        try:
            with bar as advance, finish_on_interrupt("case") as interruption, closing(run) as ended:
                advance(len(self.inputs) - len(todo))
                for source, outcome, facts in ended:
                    self.ledger.add(input_name(source), outcome, **facts)
                    advance()
                    interruption.check()
        finally:
            if self.ledger.shard is None:
                write_text(self.folder / RESULTS_NAME, csv_text(public_document(self.rows())))
            self._print(options.json)
        self._require_all_done()

    def _here(self, todo: Sequence[VolumeInput], compute: Compute) -> Generator[_Ended, None, None]:
        for source, one in zip(todo, _saved(todo, compute, self.folder, None), strict=True):
            yield source, *one

    def _in_workers(
        self, todo: Sequence[VolumeInput], workers: Workers, opener: Opener | None
    ) -> Generator[_Ended, None, None]:
        assert opener is not None
        prepare = partial(_opened, opener, self.settings, self.folder, names.are_hidden())
        with closing(workers.map(todo, prepare)) as results:
            for k, found in results:
                yield todo[k], *((Outcome.of(found), {}) if isinstance(found, WorkerLost) else found)

    def _is_done(self, source: VolumeInput, name: str) -> bool:
        written = self.ledger.records.get(name, {}).get("written")
        if written is None or not (self.folder / written).exists():
            return False
        try:
            return self.ledger.finished(name, open_input(source))
        except MedDINOError:
            return False

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


def _settings_name(settings: Mapping[str, Any]) -> str:
    return sha256_of_document(settings)[:SETTINGS_DIGITS]


def _opened(opener: Opener, settings: str, folder: Path, is_hidden: bool, device: str, sign: OnSlices) -> Work:
    """Runs in a worker."""
    names.begin(is_hidden=is_hidden, in_logs=False)
    compute, own = opener(device)
    if _settings_name(own) != settings:
        raise MachineError(
            f"{device} has another engine or precision than the first; name both with --engine, --precision"
        )
    return lambda inputs: _saved(inputs, compute, folder, sign)


def _saved(
    inputs: Iterable[VolumeInput], compute: Compute, folder: Path, on_slices: OnSlices | None
) -> Generator[tuple[Outcome, dict[str, Any]], None, None]:
    """(outcome, facts of the ledger) of each input, in order, once its files are written."""
    begun = deque[VolumeInput]()
    watch = Stopwatch()
    for ended in compute(_noted(iter(inputs), begun), on_slices):
        source = begun.popleft()
        facts: dict[str, Any] = {"row": {**ended.row(), "seconds": round(watch.elapsed_s, 2)}}
        if ended.sha256:
            *_, last = ended.save(folder / case_id(ended.sha256)).values()
            facts |= {"sha256": ended.sha256, "written": last.relative_to(folder).as_posix()}
            with suppress(MedDINOError):  # the input is gone by now; its digest is known
                facts["files"] = settled_state(open_input(source))
        public = public_document({**asdict(ended.outcome), **facts})  # a worker knows names that its parent does not
        yield Outcome(**{name: public.pop(name) for name in asdict(ended.outcome)}), public
        watch = Stopwatch()


def map_cases(
    sources: Iterable[Source],
    extractor: FeatureExtractor,
    finish: Callable[[Volume, SliceEmbeddings], EndedCase],
    *,
    on_slices: OnSlices | None = None,
    check: Callable[[Volume], object] | None = None,
    force: bool = True,
    stage: Path | None = None,
) -> Iterator[EndedCase]:
    """How each source ended, in order: `finish` of its volume and embeddings, or a `FailedCase`; the rest goes on.

    The next volumes are read while the engine works, and its passes are filled across volumes. `on_slices`, `check`
    and `force` as for `extract`.
    """

    def one(source: Source) -> EndedCase:
        volume, embeddings, _ = extract_one(source, extractor, on_slices, check, force)
        return finish(volume, embeddings)

    remaining, ahead = iter(sources), deque[Source]()
    while True:
        run = extract(
            _noted(remaining, ahead),
            extractor,
            keep_volume=True,
            on_slices=on_slices,
            check=check,
            force=force,
            stage=stage,
        )
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
        except StorageUnavailable:
            raise
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


def _noted(sources: Iterator[SourceT], ahead: deque[SourceT]) -> Iterator[SourceT]:
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
