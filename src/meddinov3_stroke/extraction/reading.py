"""From paths to what the engine is fed: cached embeddings, faults, or windows of prepared slices, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.embeddings import EmbeddingStore, embedding_key
from meddinov3_stroke.embeddings.key import CLS_VIEW
from meddinov3_stroke.errors import InputError, MachineError, MissingInput, OutOfScope, StorageError, UnsupportedInput
from meddinov3_stroke.extraction.entries import embeddings_of
from meddinov3_stroke.extraction.extractor import Extractor
from meddinov3_stroke.extraction.result import Extraction
from meddinov3_stroke.runtime.digest import sha256_of_file
from meddinov3_stroke.types import SliceEmbeddings, Volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Endings of the files that are read; a cached copy of the same bytes under another name is no exception."""

Read = Callable[[Path], Volume]
"""Reads a volume."""


@dataclass(eq=False)
class OpenVolume:
    """A volume whose slices are on their way through the engine."""

    path: Path
    key: str
    n_chosen: int
    finish: Callable[[Float32[np.ndarray, "chosen dim"]], SliceEmbeddings]
    cls: list[Float32[np.ndarray, "n dim"]] = field(default_factory=list)
    """Class tokens so far, in order."""

    @property
    def n_done(self) -> int:
        """Slices whose class token is there."""
        return sum(map(len, self.cls))


@dataclass(frozen=True, eq=False)
class Window:
    """Some prepared slices of an open volume, in order."""

    volume: OpenVolume
    pixels: Float32[np.ndarray, "n 1 row col"]


@dataclass(frozen=True)
class Repeated:
    """The same input as an earlier one of this run that was not finished when this one was looked up."""

    path: Path
    key: str


class _UnreadableError(Exception):
    """A file that the machine could not give us this time."""


def read_in_order(
    paths: Iterable[Path | None], extractor: Extractor, store: EmbeddingStore, read: Read
) -> Iterator[Extraction | Repeated | OpenVolume | Window]:
    """For each path an `Extraction` (cached, or a fault), a `Repeated`, or an `OpenVolume` and then its windows.

    One volume is held at a time, in its stored dtype, and one window of float slices.

    Raises:
        StorageError: the store cannot be read.
        UsageError: the extractor's slices, batch or size cannot be honoured.
    """
    opened: set[str] = set()
    for path in paths:
        try:
            yield from _read_one(path, extractor, store, read, opened)
        except InputError as error:
            yield Extraction(path, "rejected", error=error)
        except OutOfScope as error:
            yield Extraction(path, "refused", error=error)
        except _UnreadableError as error:
            yield Extraction(path, "failed", error=StorageError(f"{error}; run again to retry"))


def _read_one(
    path: Path | None, extractor: Extractor, store: EmbeddingStore, read: Read, opened: set[str]
) -> Iterator[Extraction | Repeated | OpenVolume | Window]:
    path = _require_nifti_file(path)
    identity = extractor.backbone.identity
    sha256 = _digest(path)
    key = embedding_key(sha256, identity, extractor.resize, extractor.selection, CLS_VIEW)
    entry = store.get(key)
    if entry is not None:
        yield Extraction(path, "done", embeddings_of(entry, path, identity), from_cache=True)
    elif key in opened:
        yield Repeated(path, key)
    else:
        volume = _read(path, sha256, read)
        chosen = extractor.chosen(volume)
        windows = extractor.windows(volume, chosen)
        opening = OpenVolume(path, key, len(chosen), extractor.finisher(volume, chosen))
        opened.add(key)
        yield opening
        yield from (Window(opening, pixels) for pixels in windows)


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


def _read(path: Path, sha256: str, read: Read) -> Volume:
    try:
        volume = read(path)
    except MachineError as error:
        raise _UnreadableError(str(error)) from error
    if volume.source.sha256 != sha256:
        raise _UnreadableError(f"{path} changed while it was read")
    return volume
