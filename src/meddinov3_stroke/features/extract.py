"""The loop over inputs: from volumes, or the cache, to slice embeddings, for one case or a cohort.

A thread opens, checks, decodes, orients and resizes ahead while the engine works. Passes are filled across volumes.
Several processes may run it on the same inputs and one store: each volume is computed by one of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.ct import OpenedInput, Reader, Source, open_input, source_path
from meddinov3_stroke.ct.scope import judge, require_in_scope
from meddinov3_stroke.errors import (
    InputError,
    MachineError,
    MedDINOError,
    MissingInput,
    Outcome,
    OutOfScope,
    StorageError,
    StorageUnavailable,
    UnsupportedInput,
    UsageError,
)
from meddinov3_stroke.features.extractor import FeatureExtractor, naming
from meddinov3_stroke.features.leases import Leases
from meddinov3_stroke.features.memory import InputMemory
from meddinov3_stroke.features.store import EmbeddingStore, Entry, embedding_key
from meddinov3_stroke.system import names
from meddinov3_stroke.system.progress import read_ahead
from meddinov3_stroke.system.provenance import Stopwatch
from meddinov3_stroke.types import SliceEmbeddings, Volume, VolumeInput

LOGGER = logging.getLogger("meddinov3_stroke")

WINDOWS_AHEAD = 3  # windows of prepared slices that wait for the engine; enough to hide the reading of a volume
POLL_S = 0.2  # between two looks whether another run has finished a volume
LONGEST_WAIT_S = 600.0  # for a volume of another run, which may be paused; computing it twice does no harm
OnSlices = Callable[[int, int], None]  # (slices just embedded, slices of their volume); 0, 0: waits for another run


@dataclass(frozen=True, eq=False)
class Extraction:
    """How one input ended: `embeddings` are there exactly if it is done, `error` exactly if it is not."""

    input: Source | None  # None where the row of a table names no volume
    outcome: Outcome = field(default_factory=Outcome)
    embeddings: SliceEmbeddings | None = None
    volume: Volume | None = None  # the voxels, where they were asked for
    from_cache: bool = False
    error: MedDINOError | None = None
    read_s: float = 0.0  # seconds spent opening and decoding the input

    @property
    def path(self) -> Path | None:
        """The path of the input."""
        return None if self.input is None else source_path(self.input)


def extract(
    inputs: Iterable[Source | None],
    extractor: FeatureExtractor,
    store: EmbeddingStore | None = None,
    *,
    keep_volume: bool = False,
    memory: InputMemory | None = None,
    verify_inputs: bool = False,
    on_slices: OnSlices | None = None,
    check: Callable[[Volume], object] | None = None,
    force: bool = True,
    stage: Path | None = None,
) -> Generator[Extraction, None, None]:
    """The extraction of each input, in order, each as soon as it is known; an input in the store is not decoded.

    A finished volume is stored before it is yielded. One that another run on the same store is computing is taken from
    there; if that run ends before, this one computes it. Close the generator to stop reading ahead. `keep_volume`
    yields the voxels too. `memory` saves hashing unchanged inputs again, unless `verify_inputs`. `check` may raise for
    a volume that is about to be embedded; the error is then that input's. Unless `force`, so is `OutOfScope` for a
    volume outside the intended use, cached or not; with it, it is embedded with a warning. `stage`: see `ct.Reader`.

    Raises NonFiniteEmbedding (NaN or infinity; the message names the file, of which nothing is stored), StorageError
    (the store cannot be read or written) or UsageError (the extractor's slices, batch or size cannot be honoured).
    """
    report, reader = on_slices or (lambda n_done, n_chosen: None), Reader(open_input, stage)
    check = check or (lambda volume: None)
    with ExitStack() as stack:
        leases = stack.enter_context(closing(Leases(store.folder))) if store is not None else None
        run = _Run(extractor, store, leases, keep_volume, memory, verify_inputs, report, check, force, reader)
        items = stack.enter_context(closing(read_ahead(run.read(inputs), WINDOWS_AHEAD)))
        for case, pixels in items:
            is_waiting = case.is_announced and pixels is None
            run.take(case, pixels)
            run.embed(to_the_end=is_waiting)
            yield from run.finished()
        run.embed(to_the_end=True)
        yield from run.finished()


def extract_one(
    source: Source,
    extractor: FeatureExtractor,
    on_slices: OnSlices | None = None,
    check: Callable[[Volume], object] | None = None,
    force: bool = True,
) -> tuple[Volume, SliceEmbeddings, float]:
    """(volume, embeddings, seconds of reading) of one input; raises the error of an input that cannot be used."""
    (found,) = extract([source], extractor, keep_volume=True, on_slices=on_slices, check=check, force=force)
    if found.error is not None:
        raise found.error
    assert found.volume is not None
    assert found.embeddings is not None
    return found.volume, found.embeddings, found.read_s


@dataclass(eq=False)
class _Case:
    # an input on its way through the loop
    input: Source | None
    key: str = ""
    n_chosen: int = 0  # 0 where the engine has nothing to do
    finish: Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings] | None = None
    volume: Volume | None = None
    read_s: float = 0.0
    tokens: list[Float32[np.ndarray, " dim"]] = field(default_factory=list)  # class tokens so far, in order
    result: Extraction | None = None
    is_postponed: bool = False  # another run is computing it
    is_announced: bool = False  # is, or was, among the rows of the run


class _UnusableInputError(Exception):
    """Ends one input, not the run."""

    def __init__(self, error: MedDINOError) -> None:
        self.error, self.outcome = error, Outcome.of(error)
        if isinstance(error, UsageError):  # a header index without a series, say: the other inputs may be sound
            self.outcome = Outcome(UnsupportedInput.status, UnsupportedInput.code, str(error))


@contextmanager
def _ends_one_input() -> Iterator[None]:
    try:
        yield
    except StorageUnavailable:  # every further input would meet it
        raise
    except (InputError, OutOfScope, MachineError, UsageError) as error:
        raise _UnusableInputError(error) from error


_Window = tuple[_Case, Float32[np.ndarray, "n 1 r r"] | None]
"""A case, and some of its prepared slices, in order; None announces the case."""


@dataclass(eq=False)
class _Run:
    """A pass over some inputs. `read` runs in the thread that reads ahead; the rest where the engine is."""

    extractor: FeatureExtractor
    store: EmbeddingStore | None
    leases: Leases | None  # where there is a store
    keep_volume: bool
    memory: InputMemory | None
    verify_inputs: bool
    on_slices: OnSlices
    check: Callable[[Volume], object]
    force: bool
    reader: Reader
    postponed: list[_Case] = field(default_factory=list)  # cases that other runs are computing, in order
    begun: set[str] = field(default_factory=set)  # keys of the inputs being embedded or stored in this run
    rows: deque[_Case] = field(default_factory=deque)  # cases not yet yielded, in order
    waiting: deque[tuple[_Case, np.ndarray]] = field(default_factory=deque)  # slices that wait for a full pass

    def read(self, inputs: Iterable[Source | None]) -> Iterator[_Window]:
        """Each case, then its windows; holds one volume and one window of float slices at a time."""
        with closing(self.reader.ahead(inputs, self._is_new)) as sources:
            for source in sources:
                case = _Case(source)
                yield from self._settling(case, self._read_one(case))
        if self.postponed:
            LOGGER.info("waiting for %d volumes that another run is computing", len(self.postponed))
        for case in self.postponed:
            yield from self._settling(case, self._take_over(case))

    def _is_new(self, opened: OpenedInput, series_uid: str | None) -> bool:
        return self.memory is None or self.verify_inputs or self.memory.recall(opened, series_uid) is None

    def _settling(self, case: _Case, windows: Iterator[_Window]) -> Iterator[_Window]:
        """The windows of a case; a fault of its input becomes its result."""
        try:
            yield from windows
        except _UnusableInputError as fault:
            self._release(case)
            case.result = Extraction(case.input, fault.outcome, error=fault.error)
            yield case, None

    def _read_one(self, case: _Case) -> Iterator[_Window]:
        watch = Stopwatch()
        opened = self._open(case)
        if self.store is not None and case.input is not None:
            case.key, case.result = self._look_up(case.input, opened)
            if case.result is None and case.key not in self.begun and self._is_elsewhere(case):
                self.postponed.append(case)
                case.is_postponed = True
        if case.result is not None or case.key in self.begun or case.is_postponed:
            yield case, None
        else:
            yield from self._compute(case, opened, watch)

    def _take_over(self, case: _Case) -> Iterator[_Window]:
        """Wait until another run has stored the case, and compute it if that run has ended without."""
        waited = Stopwatch()
        while case.result is None and case.key not in self.begun and self._is_elsewhere(case):
            yield case, None  # the engine finishes what it has: the other run may be waiting for that
            if waited.elapsed_s > LONGEST_WAIT_S:
                LOGGER.warning("another run has held a volume for %.0f s; it is computed here too", LONGEST_WAIT_S)
                break
            time.sleep(POLL_S)
        if case.result is not None or case.key in self.begun:
            yield case, None
        else:
            yield from self._compute(case, self._open(case), Stopwatch())

    def _open(self, case: _Case) -> OpenedInput:
        with _ends_one_input():
            if case.input is None:
                raise MissingInput("nifti_path is empty; expected a NIfTI file, or dicom_path or header_index")
            return self.reader.open(case.input)

    def _compute(self, case: _Case, opened: OpenedInput, watch: Stopwatch) -> Iterator[_Window]:
        with _ends_one_input():
            volume = opened.volume()
            names.know_case(volume.source.path, volume.source.sha256)
            scope = judge(volume).document()  # the one place where a sound volume may be refused
            self._require_in_scope(scope, case.input or opened.path)
            self.check(volume)
            if case.key and self._key(volume.source.sha256) != case.key:
                raise StorageError(f"{opened.path} changed while it was read; run again to retry")
        self.begun.update([case.key] if case.key else [])
        chosen = self.extractor.chosen(volume)
        case.volume, case.read_s = volume if self.keep_volume else None, watch.elapsed_s
        case.finish, case.n_chosen = self.extractor.finisher(volume, chosen, scope), len(chosen)
        yield case, None
        yield from ((case, pixels) for pixels in self.extractor.windows(volume, chosen))

    def _is_elsewhere(self, case: _Case) -> bool:
        """Whether another run is computing the case. If not, its result is known or its lease is this run's."""
        if self.leases is None or case.input is None:
            return False
        if not self.leases.take(case.key):
            return True
        case.result = self._cached(case.input, case.key)  # stored since it was looked up, by the run that had the lease
        if case.result is not None:
            self._release(case)
        return False

    def _release(self, case: _Case) -> None:
        if self.leases is not None and case.key:
            self.leases.release(case.key)

    def _look_up(self, source: Source, opened: OpenedInput) -> tuple[str, Extraction | None]:
        # the input's key, and its extraction if it is cached; a remembered digest serves for a hit only
        series_uid = source.series_uid if isinstance(source, VolumeInput) else None
        memory = self.memory if isinstance(source, VolumeInput | Path | str) else None
        with _ends_one_input():  # listing the input's files may fail
            remembered = None if memory is None or self.verify_inputs else memory.recall(opened, series_uid)
        if remembered is not None and (found := self._cached(source, self._key(remembered))):
            return self._key(remembered), found
        with _ends_one_input():
            key = self._key(opened.digest if memory is None else memory.digest(opened, series_uid))
        return key, self._cached(source, key)

    def _require_in_scope(self, scope: Mapping[str, Any], source: Source) -> None:
        if not self.force:
            require_in_scope(scope, source_path(source))

    def _key(self, sha256: str) -> str:
        return embedding_key(sha256, self.extractor.backbone.identity, self.extractor.resize, self.extractor.selection)

    def _cached(self, source: Source, key: str) -> Extraction | None:
        entry = self.store.get(key) if self.store is not None else None
        if entry is None:
            return None
        embeddings = entry.embeddings(source_path(source), self.extractor.backbone.identity)
        with _ends_one_input():
            self._require_in_scope(embeddings.scope, source)
        return Extraction(source, embeddings=embeddings, from_cache=True)

    def take(self, case: _Case, pixels: Float32[np.ndarray, "n 1 r r"] | None) -> None:
        """Line up a case, or a window of it for the engine."""
        if pixels is not None:
            self.waiting.extend((case, one) for one in pixels)
            return
        if not case.is_announced:
            self.rows.append(case)
            case.is_announced = True
        if case.n_chosen or case.is_postponed:
            self.on_slices(0, case.n_chosen)

    def embed(self, to_the_end: bool = False) -> None:
        """Run the engine on as many full passes as wait, or on all that waits.

        A pass crosses from one volume into the next unless that would change bits: on a CPU whose engine lets a
        slice's last bits depend on its neighbours, each window is a pass.
        """
        backbone, batch = self.extractor.backbone, self.extractor.batch
        to_the_end = to_the_end or (backbone.device == "cpu" and not backbone.independent_rows)
        while len(self.waiting) >= (1 if to_the_end else batch):
            cases, slices = zip(*(self.waiting.popleft() for _ in range(min(batch, len(self.waiting)))), strict=True)
            cls = backbone.class_tokens(np.stack(slices))
            for case, rows in groupby(zip(cases, cls, strict=True), itemgetter(0)):
                self._take_tokens(case, [row for _, row in rows])

    def _take_tokens(self, case: _Case, rows: list[Float32[np.ndarray, " dim"]]) -> None:
        assert case.finish is not None
        assert case.input is not None
        with naming(source_path(case.input)):
            self.extractor.backbone.refuse_non_finite(np.stack(rows), first=len(case.tokens))
        case.tokens.extend(rows)
        self.on_slices(len(rows), case.n_chosen)
        if len(case.tokens) == case.n_chosen:
            embeddings = case.finish(np.stack(case.tokens))
            if self.store is not None:
                self.store.put(case.key, Entry.of(embeddings))
                self._release(case)
            case.result = Extraction(case.input, embeddings=embeddings, volume=case.volume, read_s=case.read_s)

    def finished(self) -> Iterator[Extraction]:
        """The extractions of the cases at the front that are complete."""
        while self.rows:
            case = self.rows[0]
            if case.result is None and case.input is not None and not case.n_chosen:
                # computed for an earlier input of this run and stored by now, or by another run and stored soon
                try:
                    case.result = self._cached(case.input, case.key)
                except _UnusableInputError as fault:
                    case.result = Extraction(case.input, fault.outcome, error=fault.error)
                if case.result is None and not case.is_postponed:
                    raise StorageError(f"the entry {case.key[:12]} was stored in this run and is gone; run again")
            if case.result is None:
                return
            self.rows.popleft()
            yield case.result
