"""How one input of the loop over inputs ended, and what is known of it on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from meddinov3_stroke.ct import Source, source_path
from meddinov3_stroke.errors import (
    InputError,
    MachineError,
    MedDINOError,
    Outcome,
    OutOfScope,
    StorageUnavailable,
    UnsupportedInput,
    UsageError,
)
from meddinov3_stroke.features.extractor import Tokens
from meddinov3_stroke.features.store import Entry
from meddinov3_stroke.types import SliceEmbeddings, Volume
from meddinov3_stroke.views import View


@dataclass(frozen=True, eq=False)
class Extraction:
    """How one input ended: `embeddings` are there exactly if it is done, `error` exactly if it is not.

    Their rows are those of the extractor's first view; the other views are in the store, under `keys`.
    """

    input: Source | None  # None where the row of a table names no volume
    outcome: Outcome = field(default_factory=Outcome)
    embeddings: SliceEmbeddings | None = None
    volume: Volume | None = None  # the voxels, where they were asked for
    from_cache: bool = False
    error: MedDINOError | None = None
    keys: Mapping[str, str] = field(default_factory=dict)  # view -> key of its entry in the store, if there is one
    entries: Mapping[str, Entry] = field(default_factory=dict)  # view -> its entry, where they were asked for
    read_s: float = 0.0  # seconds spent opening and decoding the input

    @property
    def path(self) -> Path | None:
        """The path of the input."""
        return None if self.input is None else source_path(self.input)


@dataclass(eq=False)
class Case:
    """An input on its way through the loop."""

    input: Source | None
    missing: list[View]  # views that are neither stored nor computed yet
    keys: dict[View, str] = field(default_factory=dict)  # empty without a store
    entries: dict[str, Entry] = field(default_factory=dict)  # where they were asked for
    n_chosen: int = 0  # 0 where the engine has nothing to do
    n_done: int = 0  # slices that the engine is done with
    finish: Callable[[np.ndarray], SliceEmbeddings] | None = None
    embeddings: SliceEmbeddings | None = None  # the rows of the first view, once they are known
    volume: Volume | None = None
    read_s: float = 0.0
    values: dict[View, list[np.ndarray]] = field(default_factory=dict)  # of the missing views so far, in slice order
    result: Extraction | None = None
    is_postponed: bool = False  # another run is computing it
    is_announced: bool = False  # is, or was, among the rows of the run

    @property
    def key(self) -> str:
        """The key of the first view; empty without a store."""
        return next(iter(self.keys.values()), "")

    def done(self, from_cache: bool) -> Extraction:
        """The result of a case of which nothing is missing."""
        keys = {view.name: key for view, key in self.keys.items()}
        embeddings = self.embeddings
        if embeddings is not None and self.entries:
            embeddings = replace(embeddings, others={name: one.values for name, one in self.entries.items()})
        return Extraction(
            self.input,
            embeddings=embeddings,
            volume=self.volume,
            from_cache=from_cache,
            read_s=self.read_s,
            keys=keys,
            entries=self.entries,
        )


class UnusableInputError(Exception):
    """Ends one input, not the run."""

    def __init__(self, error: MedDINOError) -> None:
        self.error, self.outcome = error, Outcome.of(error)
        if isinstance(error, UsageError):  # a header index without a series, say: the other inputs may be sound
            self.outcome = Outcome(UnsupportedInput.status, UnsupportedInput.code, str(error))


@contextmanager
def ends_one_input() -> Iterator[None]:
    """Makes errors of the input in the block `UnusableInputError`."""
    try:
        yield
    except StorageUnavailable:  # every further input would meet it
        raise
    except (InputError, OutOfScope, MachineError, UsageError) as error:
        raise UnusableInputError(error) from error


def of_cases(tokens: Tokens, cases: list[Case]) -> Iterator[tuple[Case, Tokens]]:
    """The tokens of each case's slices."""
    start = 0
    for case, n in Counter(cases).items():
        own = slice(start, start := start + n)
        cls, patches, blocks = (None if one is None else one[own] for one in tokens)
        assert cls is not None
        yield case, (cls, patches, blocks)
