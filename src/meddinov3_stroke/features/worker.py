"""The one loop over volumes. Several processes may run it on parts of the inputs and on one store.

A thread reads, checks, decodes, orients and resizes ahead while the engine works; passes are filled across volumes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from meddinov3_stroke.ct import input_digest, read_volume
from meddinov3_stroke.errors import NonFiniteEmbedding, StorageError
from meddinov3_stroke.features.entries import embeddings_of, entry_of
from meddinov3_stroke.features.extractor import Extractor
from meddinov3_stroke.features.key import CLS_VIEW
from meddinov3_stroke.features.packing import Packer
from meddinov3_stroke.features.reading import Digest, OpenVolume, Read, Repeated, Window, read_in_order
from meddinov3_stroke.features.result import Extraction
from meddinov3_stroke.features.store import EmbeddingStore
from meddinov3_stroke.system.prefetch import read_ahead
from meddinov3_stroke.types import VolumeInput

WINDOWS_AHEAD = 3
"""Windows of prepared slices that wait for the engine; enough to hide the reading of a volume behind one pass each."""


def extract_series(
    inputs: Iterable[VolumeInput | Path | None],
    extractor: Extractor,
    store: EmbeddingStore,
    read: Read = read_volume,
    digest: Digest = input_digest,
) -> Generator[Extraction, None, None]:
    """What became of each input, in order, each as soon as it is known; a volume in the store is not decoded again.

    A path stands for the input of that path. A finished volume is on disk before it is yielded, so whoever stops
    between two loses nothing; close the generator to end the reading ahead at once.

    Raises:
        NonFiniteEmbedding: the backbone gave NaN or infinity; the volume is named and nothing of it is stored.
        StorageError: the store cannot be read or written.
    """
    run = _Run(extractor, store)
    sources = (VolumeInput(one) if isinstance(one, Path) else one for one in inputs)
    with closing(read_ahead(read_in_order(sources, extractor, store, read, digest), WINDOWS_AHEAD)) as items:
        for item in items:
            run.take(item)
            yield from run.finished()
    run.packer.flush()
    yield from run.finished()


class _Run:
    """One pass over some inputs: the rows not yet told, in order, and the volumes on their way through the engine."""

    def __init__(self, extractor: Extractor, store: EmbeddingStore) -> None:
        self.packer = Packer(extractor, self._look_at)
        self._extractor, self._store = extractor, store
        self._rows: deque[Extraction | Repeated | OpenVolume] = deque()
        self._done: dict[OpenVolume, Extraction] = {}

    def take(self, item: Extraction | Repeated | OpenVolume | Window) -> None:
        """Line up a row, or send a window to the engine."""
        if isinstance(item, Window):
            self.packer.add(item)
        else:
            self._rows.append(item)

    def finished(self) -> Iterator[Extraction]:
        """The rows at the front that are settled."""
        while self._rows:
            row = self._rows[0]
            if isinstance(row, OpenVolume):
                if row not in self._done:
                    return
                yield self._done.pop(row)
            else:
                yield self._again(row) if isinstance(row, Repeated) else row
            self._rows.popleft()

    def _look_at(self, volume: OpenVolume) -> None:
        """Judge the tokens a volume just got; store it when all are there."""
        try:
            self._extractor.backbone.refuse_non_finite(volume.cls[-1], first=volume.n_done - len(volume.cls[-1]))
        except NonFiniteEmbedding as error:
            raise NonFiniteEmbedding(f"{volume.input.path}: {error}") from error
        if volume.n_done == volume.n_chosen:
            embeddings = volume.finish(np.concatenate(volume.cls))
            self._store.put(volume.key, entry_of(embeddings, CLS_VIEW))
            self._done[volume] = Extraction(volume.input, "done", embeddings)

    def _again(self, row: Repeated) -> Extraction:
        entry = self._store.get(row.key)
        if entry is None:
            raise StorageError(f"the entry of {row.input.path} was stored in this run and is gone; run again")
        embeddings = embeddings_of(entry, row.input.path, self._extractor.backbone.identity)
        return Extraction(row.input, "done", embeddings, from_cache=True)
