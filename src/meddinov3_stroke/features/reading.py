"""From inputs to what the engine is fed: cached embeddings, faults, or windows of prepared slices, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.ct import input_digest
from meddinov3_stroke.ct.contents import is_nifti_name
from meddinov3_stroke.errors import (
    InputError,
    MachineError,
    MissingInput,
    OutOfScope,
    StorageError,
    UnsupportedInput,
    UsageError,
)
from meddinov3_stroke.features.entries import embeddings_of
from meddinov3_stroke.features.extractor import Extractor
from meddinov3_stroke.features.key import CLS_VIEW, embedding_key
from meddinov3_stroke.features.result import Extraction
from meddinov3_stroke.features.store import EmbeddingStore
from meddinov3_stroke.types import SliceEmbeddings, Volume, VolumeInput

Read = Callable[[VolumeInput], Volume]
"""Reads a volume."""

Digest = Callable[[VolumeInput], str]
"""Hex sha256 of a volume before it is decoded; that of `Volume.source` once it is."""


@dataclass(eq=False)
class OpenVolume:
    """A volume whose slices are on their way through the engine."""

    input: VolumeInput
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

    input: VolumeInput
    key: str


class _UnreadableError(Exception):
    """A file that the machine could not give us this time."""


def read_in_order(
    inputs: Iterable[VolumeInput | None], extractor: Extractor, store: EmbeddingStore, read: Read, digest: Digest
) -> Iterator[Extraction | Repeated | OpenVolume | Window]:
    """For each input an `Extraction` (cached, or a fault), a `Repeated`, or an `OpenVolume` and then its windows.

    One volume is held at a time, in its stored dtype, and one window of float slices.

    Raises:
        StorageError: the store cannot be read.
        UsageError: the extractor's slices, batch or size cannot be honoured.
    """
    opened: set[str] = set()
    for source in inputs:
        try:
            yield from _read_one(source, extractor, store, read, digest, opened)
        except InputError as error:
            yield Extraction(source, "rejected", error=error)
        except OutOfScope as error:
            yield Extraction(source, "refused", error=error)
        except _UnreadableError as error:
            yield Extraction(source, "failed", error=StorageError(f"{error}; run again to retry"))


def _read_one(
    source: VolumeInput | None,
    extractor: Extractor,
    store: EmbeddingStore,
    read: Read,
    digest: Digest,
    opened: set[str],
) -> Iterator[Extraction | Repeated | OpenVolume | Window]:
    if source is None:
        raise MissingInput("nifti_path is empty; expected a .nii or .nii.gz file, or a dicom_path or header_index")
    identity = extractor.backbone.identity
    sha256 = _digest(source, digest)
    key = embedding_key(sha256, identity, extractor.resize, extractor.selection, CLS_VIEW)
    entry = store.get(key)
    if entry is not None:
        yield Extraction(source, "done", embeddings_of(entry, source.path, identity), from_cache=True)
    elif key in opened:
        yield Repeated(source, key)
    else:
        volume = _read(source, sha256, read)
        chosen = extractor.chosen(volume)
        windows = extractor.windows(volume, chosen)
        opening = OpenVolume(source, key, len(chosen), extractor.finisher(volume, chosen))
        opened.add(key)
        yield opening
        yield from (Window(opening, pixels) for pixels in windows)


def nifti_digest(source: VolumeInput) -> str:
    """`input_digest` of a source that must be a NIfTI file, as what stands under `nifti_path` must.

    Raises:
        MissingInput: a directory, or nothing.
        UnsupportedInput: another ending than .nii or .nii.gz.
        InputError, MachineError: as `input_digest`.
    """
    path = source.path
    if path.is_dir():
        raise MissingInput(
            f"{path} is a directory; expected a .nii or .nii.gz file; a DICOM folder belongs under dicom_path"
        )
    if not path.exists():
        raise MissingInput(f"{path}: no such file; expected a .nii or .nii.gz file")
    if not is_nifti_name(path):
        raise UnsupportedInput(f"{path} is no .nii or .nii.gz file; DICOM belongs under dicom_path")
    return input_digest(source)


@contextmanager
def _faults_of_one_input() -> Iterator[None]:
    """Turn what would end the run into what ends one input alone."""
    try:
        yield
    except MachineError as error:
        raise _UnreadableError(str(error)) from error
    except UsageError as error:  # a header index without a series, say: the others may be sound
        raise UnsupportedInput(str(error)) from error


def _digest(source: VolumeInput, digest: Digest) -> str:
    with _faults_of_one_input():
        return digest(source)


def _read(source: VolumeInput, sha256: str, read: Read) -> Volume:
    with _faults_of_one_input():
        volume = read(source)
    if volume.source.sha256 != sha256:
        raise _UnreadableError(f"{source.path} changed while it was read")
    return volume
