"""A volume reader and a backbone that cost nothing and count how often they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke.errors import CorruptInput, MissingInput, NonFiniteEmbedding, OutOfScope, StorageError
from meddinov3_stroke.features import EmbeddingStore, select_slices
from meddinov3_stroke.system.digest import sha256_of_array, sha256_of_document, sha256_of_file
from meddinov3_stroke.types import (
    BackboneIdentity,
    Preprocessing,
    SliceEmbeddings,
    SliceImage,
    SliceSelection,
    Volume,
    VolumeInput,
    VolumeSource,
)

IDENTITY = BackboneIdentity(
    name="fake",
    weights_sha256="ab" * 32,
    embed_dim=3,
    patch_size=16,
    rope_dtype="bf16",
    preprocessing=Preprocessing(-1000.0, 1000.0, 65.0, 178.0, "fake-1"),
    engine="torch",
    precision="fp32",
)


@dataclass
class CountingReader:
    """Reads `<number of slices>` from a text file that only calls itself NIfTI; knows images of a named series."""

    calls: list[Path] = field(default_factory=list)

    def __call__(self, source: VolumeInput) -> Volume:
        path, uid = source.path, source.series_uid
        self.calls.append(path)
        text = path.read_text()
        if text.startswith("corrupt"):
            raise CorruptInput(f"{path}: the gzip stream ends early")
        if text.startswith("oblique"):
            raise OutOfScope(f"{path}: slices are 60 degrees off axial")
        if text.startswith("unreadable"):
            raise StorageError(f"{path}: Input/output error")
        stored = np.full((int(text.split()[0]), 2, 2), len(text), dtype=np.int16)
        images = tuple(SliceImage(f"1.2.{uid}.{k}", k + 1) for k in range(len(stored))) if uid else ()
        study = uid and f"1.{uid}"
        known = VolumeSource(path, "nifti", self.digest(source), sha256_of_array(stored), study, uid, images)
        return Volume(
            stored,
            slope=1.0,
            intercept=0.0,
            affine=np.eye(4),
            slice_positions_mm=np.zeros((len(stored), 3)),
            slice_steps_mm=np.zeros((len(stored), 3, 2)),
            spacing_mm=(5.0, 1.0, 1.0),
            source=known,
            warnings=("a warning",),
        )

    def digest(self, source: VolumeInput) -> str:
        """Of the file's bytes and the series asked for."""
        if source.path.is_dir() or not source.path.exists():
            raise MissingInput(f"{source.path}: nothing to read")
        return sha256_of_document([sha256_of_file(source.path), source.series_uid])


@dataclass
class FakeBackbone:
    """Tokens that are a function of the slice's first two values; the number 13 gives NaN."""

    identity: BackboneIdentity = IDENTITY
    device: str = "cpu"
    independent_rows: bool = True
    passes: list[int] = field(default_factory=list)
    """Slices of each pass."""

    def class_tokens(self, pixels: np.ndarray) -> np.ndarray:
        self.passes.append(len(pixels))
        index, value = pixels[:, 0, 0, 0], pixels[:, 0, 0, 1]
        return np.stack([index, index + 1, np.where(value == 13, np.nan, value)], axis=1).astype(np.float32)

    def refuse_non_finite(self, cls: np.ndarray, *, first: int = 0) -> None:
        if not np.isfinite(cls).all():
            raise NonFiniteEmbedding(f"NaN in the class token of slice {first + int(np.isnan(cls).any(1).argmax())}")


@dataclass
class CountingExtractor:
    """Windows that hold the slice's index and the number of slices; counts the volumes it opened."""

    backbone: FakeBackbone = field(default_factory=FakeBackbone)
    resize: int = 224
    batch: int = 4
    selection: SliceSelection = field(default_factory=SliceSelection)
    calls: int = 0

    def chosen(self, volume: Volume) -> np.ndarray:
        self.calls += 1
        return select_slices(volume.n_slices, self.selection)

    def windows(self, volume: Volume, chosen: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(chosen), self.batch):
            pixels = np.zeros((len(chosen[start : start + self.batch]), 1, 1, 2), np.float32)
            pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = chosen[start : start + self.batch], volume.n_slices
            yield pixels

    def finisher(self, volume: Volume, chosen: np.ndarray) -> Callable[[np.ndarray], SliceEmbeddings]:
        return partial(
            SliceEmbeddings,
            slice_indices=chosen,
            n_slices=volume.n_slices,
            resize=self.resize,
            selection=self.selection,
            backbone=self.backbone.identity,
            source=volume.source,
            warnings=volume.warnings,
        )


@pytest.fixture
def extractor() -> CountingExtractor:
    return CountingExtractor()


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "cache")


@pytest.fixture
def scan(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / "scans" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write
