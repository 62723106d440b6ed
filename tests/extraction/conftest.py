"""A volume reader and a backbone that cost nothing and count how often they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke.embeddings import EmbeddingStore, select_slices
from meddinov3_stroke.errors import CorruptInput, NonFiniteEmbedding, OutOfScope, StorageError
from meddinov3_stroke.runtime.digest import sha256_of_array, sha256_of_file
from meddinov3_stroke.types import (
    BackboneIdentity,
    Preprocessing,
    SliceEmbeddings,
    SliceSelection,
    Volume,
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
    """Reads `<number of slices>` from a text file that only calls itself NIfTI."""

    calls: list[Path] = field(default_factory=list)

    def __call__(self, path: Path) -> Volume:
        self.calls.append(path)
        text = path.read_text()
        if text.startswith("corrupt"):
            raise CorruptInput(f"{path}: the gzip stream ends early")
        if text.startswith("oblique"):
            raise OutOfScope(f"{path}: slices are 60 degrees off axial")
        if text.startswith("unreadable"):
            raise StorageError(f"{path}: Input/output error")
        stored = np.full((int(text.split()[0]), 2, 2), len(text), dtype=np.int16)
        source = VolumeSource(path, "nifti", sha256_of_file(path), sha256_of_array(stored))
        return Volume(
            stored, 1.0, 0.0, np.eye(4), np.zeros((len(stored), 3)), (5.0, 1.0, 1.0), source, warnings=("a warning",)
        )


@dataclass
class FakeBackbone:
    """Has an identity and nothing else."""

    identity: BackboneIdentity = IDENTITY


@dataclass
class CountingExtractor:
    """Embeddings that are a function of the slice index and the voxels."""

    backbone: FakeBackbone = field(default_factory=FakeBackbone)
    resize: int = 224
    selection: SliceSelection = field(default_factory=SliceSelection)
    calls: int = 0

    def embed(self, volume: Volume) -> SliceEmbeddings:
        self.calls += 1
        indices = select_slices(volume.n_slices, self.selection)
        cls = np.stack([indices, indices + 1, volume.hu[indices, 0, 0]], axis=1).astype(np.float32)
        if volume.n_slices == 13:
            raise NonFiniteEmbedding("NaN in the class token of slice 3")
        return SliceEmbeddings(
            cls,
            indices,
            volume.n_slices,
            self.resize,
            self.selection,
            self.backbone.identity,
            volume.source,
            volume.warnings,
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
