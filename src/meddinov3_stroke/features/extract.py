"""The loop over inputs: from volumes, or the cache, to slice embeddings, for one case or a cohort.

A thread opens, checks, decodes, orients and resizes ahead while the engine works. Passes are filled across volumes.
Several processes may run it on the same inputs and one store: each volume is computed by one of them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from meddinov3_stroke.backbone.architecture import Pixels
from meddinov3_stroke.ct import OpenedInput, Reader, Source, open_input, source_path
from meddinov3_stroke.ct.scope import judge, require_in_scope
from meddinov3_stroke.errors import MissingInput, StorageError
from meddinov3_stroke.features.extraction import Case, Extraction, UnusableInputError, ends_one_input, of_cases
from meddinov3_stroke.features.extractor import FeatureExtractor, Tokens, naming, rows_of
from meddinov3_stroke.features.leases import Leases
from meddinov3_stroke.features.memory import InputMemory
from meddinov3_stroke.features.store import EmbeddingStore, Entry, embedding_key
from meddinov3_stroke.system import names
from meddinov3_stroke.system.progress import read_ahead
from meddinov3_stroke.system.provenance import Stopwatch
from meddinov3_stroke.types import SliceEmbeddings, Volume, VolumeInput
from meddinov3_stroke.views import View

LOGGER = logging.getLogger("meddinov3_stroke")

WINDOWS_AHEAD = 3  # windows of prepared slices that wait for the engine; enough to hide the reading of a volume
POLL_S = 0.2  # between two looks whether another run has finished a volume
LONGEST_WAIT_S = 600.0  # for a volume of another run, which may be paused; computing it twice does no harm
OnSlices = Callable[[int, int], None]  # (slices just embedded, slices of their volume); 0, 0: waits for another run


def extract(
    inputs: Iterable[Source | None],
    extractor: FeatureExtractor,
    store: EmbeddingStore | None = None,
    *,
    keep_volume: bool = False,
    keep_views: bool = False,
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
    yields the voxels too, `keep_views` the entries of all views. A view that is stored is not computed again. `memory`
    saves hashing unchanged inputs again, unless `verify_inputs`. `check` may raise for a volume that is about to be
    embedded; the error is then that input's. Unless `force`, so is `OutOfScope` for a volume outside the intended use,
    cached or not; with it, it is embedded with a warning. `stage`: see `ct.Reader`.

    Raises NonFiniteEmbedding (NaN or infinity; the message names the file, of which nothing is stored), StorageError
    (the store cannot be read or written) or UsageError (the extractor's slices, batch or size cannot be honoured).
    """
    report, reader = on_slices or (lambda n_done, n_chosen: None), Reader(open_input, stage)
    check = check or (lambda volume: None)
    with ExitStack() as stack:
        leases = stack.enter_context(closing(Leases(store.folder))) if store is not None else None
        keep = keep_volume, keep_views
        run = _Run(extractor, store, leases, *keep, memory, verify_inputs, report, check, force, reader)
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
    (found,) = extract(
        [source],
        extractor,
        keep_volume=True,
        keep_views=len(extractor.views) > 1,
        on_slices=on_slices,
        check=check,
        force=force,
    )
    if found.error is not None:
        raise found.error
    assert found.volume is not None
    assert found.embeddings is not None
    return found.volume, found.embeddings, found.read_s


_Inputs = Mapping[str, Pixels]
"""What the backbone is given of some slices, for each input of the views."""

_Window = tuple[Case, _Inputs | None]
"""A case, and some of its prepared slices, in order; None announces the case."""


@dataclass(eq=False)
class _Run:
    """A pass over some inputs. `read` runs in the thread that reads ahead; the rest where the engine is."""

    extractor: FeatureExtractor
    store: EmbeddingStore | None
    leases: Leases | None  # where there is a store
    keep_volume: bool
    keep_views: bool
    memory: InputMemory | None
    verify_inputs: bool
    on_slices: OnSlices
    check: Callable[[Volume], object]
    force: bool
    reader: Reader
    lock: Lock = field(default_factory=Lock)
    postponed: list[Case] = field(default_factory=list)  # cases that other runs are computing, in order
    begun: set[str] = field(default_factory=set)  # keys of the inputs being embedded or stored in this run
    rows: deque[Case] = field(default_factory=deque)  # cases not yet yielded, in order
    waiting: deque[tuple[Case, _Inputs]] = field(default_factory=deque)  # slices that wait for a full pass

    def read(self, inputs: Iterable[Source | None]) -> Iterator[_Window]:
        """Each case, then its windows; holds one volume and one window of float slices at a time."""
        with closing(self.reader.ahead(inputs, self._is_new)) as sources:
            for source in sources:
                case = Case(source, list(self.extractor.views))
                yield from self._settling(case, self._read_one(case))
        if self.postponed:
            LOGGER.info("waiting for %d volumes that another run is computing", len(self.postponed))
        for case in self.postponed:
            yield from self._settling(case, self._take_over(case))

    def _is_new(self, opened: OpenedInput, series_uid: str | None) -> bool:
        return self.memory is None or self.verify_inputs or self.memory.recall(opened, series_uid) is None

    def _settling(self, case: Case, windows: Iterator[_Window]) -> Iterator[_Window]:
        """The windows of a case; a fault of its input becomes its result."""
        try:
            yield from windows
        except UnusableInputError as fault:
            self._release(case)
            case.result = Extraction(case.input, fault.outcome, error=fault.error)
            yield case, None

    def _read_one(self, case: Case) -> Iterator[_Window]:
        watch = Stopwatch()
        opened = self._open(case)
        if self.store is not None and case.input is not None:
            case.result = self._look_up(case, case.input, opened)
            if case.result is None and case.key not in self.begun and self._is_elsewhere(case):
                self.postponed.append(case)
                case.is_postponed = True
        if case.result is not None or case.key in self.begun or case.is_postponed:
            yield case, None
        else:
            yield from self._compute(case, opened, watch)

    def _take_over(self, case: Case) -> Iterator[_Window]:
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

    def _open(self, case: Case) -> OpenedInput:
        with ends_one_input():
            if case.input is None:
                raise MissingInput("nifti_path is empty; expected a NIfTI file, or dicom_path or header_index")
            return self.reader.open(case.input)

    def _compute(self, case: Case, opened: OpenedInput, watch: Stopwatch) -> Iterator[_Window]:
        with ends_one_input():
            volume = opened.volume()
            names.know_case(volume.source.path, volume.source.sha256)
            scope = judge(volume).document()  # the one place where a sound volume may be refused
            self._require_in_scope(scope, case.input or opened.path)
            self.check(volume)
            if case.keys and self._keys(volume.source.sha256) != case.keys:
                raise StorageError(f"{opened.path} changed while it was read; run again to retry")
        self.begun.update([case.key] if case.key else [])
        chosen = self.extractor.chosen(volume)
        case.volume, case.read_s = volume if self.keep_volume else None, watch.elapsed_s
        case.finish, case.n_chosen = self.extractor.finisher(volume, chosen, scope), len(chosen)
        yield case, None
        yield from ((case, inputs) for inputs in self.extractor.inputs(volume, chosen, tuple(case.missing)))

    def _is_elsewhere(self, case: Case) -> bool:
        """Whether another run is computing the case. If not, its result is known or its lease is this run's."""
        if self.leases is None or case.input is None:
            return False
        wanted = sorted(case.keys[view] for view in case.missing)  # in one order, so that two runs do not block another
        if not all(map(self.leases.take, wanted)):
            self._release(case)  # waits without a lease
            return True
        case.result = self._cached(case, case.input)  # stored since it was looked up, by the run that had the leases
        if case.result is not None:
            self._release(case)
        return False

    def _release(self, case: Case) -> None:
        if self.leases is not None:
            for key in case.keys.values():
                self.leases.release(key)

    def _look_up(self, case: Case, source: Source, opened: OpenedInput) -> Extraction | None:
        # sets the case's keys, and finds its extraction if it is cached; a remembered digest serves for a hit only
        series_uid = source.series_uid if isinstance(source, VolumeInput) else None
        memory = self.memory if isinstance(source, VolumeInput | Path | str) else None
        with ends_one_input():  # listing the input's files may fail
            remembered = None if memory is None or self.verify_inputs else memory.recall(opened, series_uid)
        if remembered is not None:
            case.keys = self._keys(remembered)
            if found := self._cached(case, source):
                return found
        with ends_one_input():
            keys = self._keys(opened.digest if memory is None else memory.digest(opened, series_uid))
        if keys != case.keys:
            case.keys, case.missing = keys, list(self.extractor.views)
        return self._cached(case, source)

    def _require_in_scope(self, scope: Mapping[str, Any], source: Source) -> None:
        if not self.force:
            require_in_scope(scope, source_path(source))

    def _keys(self, sha256: str) -> dict[View, str]:
        identity, resize, selection = self.extractor.backbone.identity, self.extractor.resize, self.extractor.selection
        return {view: embedding_key(sha256, identity, resize, selection, view.key) for view in self.extractor.views}

    def _cached(self, case: Case, source: Source) -> Extraction | None:
        """The extraction of a case if the store has all its views; those it has are no longer missing."""
        with self.lock:  # the thread that reads looks too, while another run computes the case
            for view in list(case.missing):
                if self.store is None or (entry := self.store.get(case.keys[view])) is None:
                    continue
                case.missing.remove(view)
                if view == self.extractor.views[0]:
                    case.embeddings = entry.embeddings(source_path(source), self.extractor.identity)
                self._keep(case, view, entry)
        if case.missing or case.embeddings is None:
            return None
        with ends_one_input():
            self._require_in_scope(case.embeddings.scope, source)
        return case.done(from_cache=True)

    def _keep(self, case: Case, view: View, entry: Entry) -> None:
        if self.keep_views:
            case.entries[view.name] = entry

    def take(self, case: Case, inputs: _Inputs | None) -> None:
        """Line up a case, or a window of it for the engine."""
        if inputs is not None:
            n = len(next(iter(inputs.values())))
            self.waiting.extend((case, {name: pixels[k] for name, pixels in inputs.items()}) for k in range(n))
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
        backbone, batch = self.extractor.backbone, self.extractor.in_window
        to_the_end = to_the_end or (backbone.device == "cpu" and not backbone.independent_rows)
        while len(self.waiting) >= (1 if to_the_end else batch):
            rows = [self.waiting.popleft() for _ in range(min(batch, len(self.waiting)))]
            tokens: dict[Case, dict[str, Tokens]] = {case: {} for case, _ in rows}
            for name in dict.fromkeys(name for _, inputs in rows for name in inputs):
                given = [(case, inputs[name]) for case, inputs in rows if name in inputs]
                views = {view for case, _ in given for view in case.missing if view.input == name}
                found = self.extractor.infer(np.stack([pixels for _, pixels in given]), views)
                for case, own in of_cases(found, [case for case, _ in given]):
                    tokens[case][name] = own
            for case, n in Counter(case for case, _ in rows).items():
                self._take_tokens(case, n, tokens[case])

    def _take_tokens(self, case: Case, n_slices: int, tokens: Mapping[str, Tokens]) -> None:
        assert case.input is not None
        with naming(source_path(case.input)):
            for cls, patches, _ in tokens.values():
                self.extractor.backbone.refuse_non_finite(cls, patches, first=case.n_done)
            for view in case.missing:
                case.values.setdefault(view, []).append(rows_of(view, tokens[view.input]))
        case.n_done += n_slices
        self.on_slices(n_slices, case.n_chosen)
        if case.n_done == case.n_chosen:
            self._complete(case)

    def _complete(self, case: Case) -> None:
        """Store what was computed of a case."""
        assert case.finish is not None
        values = {view: np.concatenate(parts) for view, parts in case.values.items()}
        case.embeddings = case.embeddings or case.finish(values[self.extractor.views[0]])
        for view in case.missing:
            entry = Entry.of(case.embeddings, view, values[view])
            if self.store is not None:
                self.store.put(case.keys[view], entry)
            self._keep(case, view, entry)
        case.values.clear()
        self._release(case)
        case.result = case.done(from_cache=False)

    def finished(self) -> Iterator[Extraction]:
        """The extractions of the cases at the front that are complete."""
        while self.rows:
            case = self.rows[0]
            if case.result is None and case.input is not None and not case.n_chosen:
                # computed for an earlier input of this run and stored by now, or by another run and stored soon
                try:
                    case.result = self._cached(case, case.input)
                except UnusableInputError as fault:
                    case.result = Extraction(case.input, fault.outcome, error=fault.error)
                if case.result is None and not case.is_postponed:
                    raise StorageError(f"the entry {case.key[:12]} was stored in this run and is gone; run again")
            if case.result is None:
                return
            self.rows.popleft()
            yield case.result
