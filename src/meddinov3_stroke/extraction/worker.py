"""The one loop over volumes. Several processes may run it on parts of the paths and on one store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from meddinov3_stroke.embeddings import EmbeddingStore, embedding_key
from meddinov3_stroke.embeddings.key import CLS_VIEW
from meddinov3_stroke.errors import (
    InputError,
    MachineError,
    MissingInput,
    NonFiniteEmbedding,
    OutOfScope,
    StorageError,
    UnsupportedInput,
)
from meddinov3_stroke.extraction.entries import embeddings_of, entry_of
from meddinov3_stroke.extraction.result import Extraction
from meddinov3_stroke.runtime.digest import sha256_of_file
from meddinov3_stroke.types import BackboneIdentity, SliceEmbeddings, SliceSelection, Volume
from meddinov3_stroke.volume import read_volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Endings of the files that are read; a cached copy of the same bytes under another name is no exception."""


@runtime_checkable
class Identified(Protocol):
    """A backbone, as far as a cache key needs it."""

    @property
    def identity(self) -> BackboneIdentity:
        """What decides its output."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """What the loop needs of a `FeatureExtractor`."""

    @property
    def backbone(self) -> Identified:
        """The loaded backbone."""
        ...

    @property
    def resize(self) -> int:
        """Side of the square in pixels."""
        ...

    @property
    def selection(self) -> SliceSelection:
        """Which slices."""
        ...

    def embed(self, volume: Volume) -> SliceEmbeddings:
        """Embeddings of the chosen slices."""
        ...


class _UnreadableError(Exception):
    """A file that the machine could not give us this time."""


def extract_series(
    paths: Iterable[Path | None],
    extractor: Extractor,
    store: EmbeddingStore,
    read: Callable[[Path], Volume] = read_volume,
) -> Iterator[Extraction]:
    """What became of each path, in order, each as soon as it is known; a volume in the store is not decoded again.

    A finished volume is on disk before it is yielded, so whoever stops between two loses nothing.

    Raises:
        NonFiniteEmbedding: the backbone gave NaN or infinity; the volume is named and nothing of it is stored.
        StorageError: the store cannot be read or written.
    """
    for path in paths:
        try:
            yield _extract_one(path, extractor, store, read)
        except InputError as error:
            yield Extraction(path, "rejected", error=error)
        except OutOfScope as error:
            yield Extraction(path, "refused", error=error)
        except NonFiniteEmbedding as error:
            raise NonFiniteEmbedding(f"{path}: {error}") from error
        except _UnreadableError as error:
            yield Extraction(path, "failed", error=StorageError(f"{error}; run again to retry"))


def _extract_one(
    path: Path | None, extractor: Extractor, store: EmbeddingStore, read: Callable[[Path], Volume]
) -> Extraction:
    path = _require_nifti_file(path)
    identity = extractor.backbone.identity
    sha256 = _digest(path)
    key = embedding_key(sha256, identity, extractor.resize, extractor.selection, CLS_VIEW)
    entry = store.get(key)
    if entry is not None:
        return Extraction(path, "done", embeddings_of(entry, path, identity), from_cache=True)
    embeddings = extractor.embed(_read(path, sha256, read))
    store.put(key, entry_of(embeddings, CLS_VIEW))
    return Extraction(path, "done", embeddings)


def _require_nifti_file(path: Path | None) -> Path:
    if path is None:
        raise MissingInput("nifti_path is empty; expected a .nii or .nii.gz file")
    if path.is_dir():
        raise MissingInput(f"{path} is a directory; expected a .nii or .nii.gz file")
    if not path.exists():
        raise MissingInput(f"{path}: no such file; expected a .nii or .nii.gz file")
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise UnsupportedInput(f"{path} is no .nii or .nii.gz file")
    return path


def _digest(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise _UnreadableError(f"{path} cannot be read: {error.strerror}") from error


def _read(path: Path, sha256: str, read: Callable[[Path], Volume]) -> Volume:
    try:
        volume = read(path)
    except MachineError as error:
        raise _UnreadableError(str(error)) from error
    if volume.source.sha256 != sha256:
        raise _UnreadableError(f"{path} changed while it was read")
    return volume
