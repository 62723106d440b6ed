"""A reader and a backbone that cost nothing and count how often they are used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.ct import OpenedInput
from meddinov3_stroke.ct.reader import source_path
from meddinov3_stroke.errors import CorruptInput, MissingInput, OutOfScope, StorageError
from meddinov3_stroke.features import EmbeddingStore, FeatureExtractor, extract
from meddinov3_stroke.system.digest import sha256_of_array, sha256_of_document, sha256_of_file
from meddinov3_stroke.types import (
    BackboneIdentity,
    Preprocessing,
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


class FakeInput(OpenedInput):
    """A text file `<number of slices>` that only calls itself NIfTI; knows images of a named series."""

    files: tuple[Path, ...] = ()

    def __init__(self, path: Path, series_uid: str | None, reader: CountingReader) -> None:
        if path.is_dir() or not path.exists():
            raise MissingInput(f"{path}: no such file")
        self.path, self.series_uid, self.reader = path, series_uid, reader
        self.files = (path,)

    @property
    def digest(self) -> str:
        self.reader.hashed.append(self.path)
        return sha256_of_document([sha256_of_file(self.path), self.series_uid])

    def volume(self) -> Volume:
        path, uid = self.path, self.series_uid
        self.reader.calls.append(path)
        self.reader.before_read(path)
        text = path.read_text()
        if text.startswith("corrupt"):
            raise CorruptInput(f"{path}: the gzip stream ends early")
        if text.startswith("oblique"):
            raise OutOfScope(f"{path}: slices are 60 degrees off axial")
        if text.startswith("unreadable"):
            raise StorageError(f"{path}: Input/output error")
        stored = np.zeros((int(text.split()[0]), 2, 2), dtype=np.int16)
        stored[:, 0, 0], stored[:, 0, 1] = np.arange(len(stored)), len(stored)
        images = tuple(SliceImage(f"1.2.{uid}.{k}", k + 1) for k in range(len(stored))) if uid else ()
        sha256 = sha256_of_document([sha256_of_file(path), uid])
        known = VolumeSource(path, "nifti", sha256, sha256_of_array(stored), uid and f"1.{uid}", uid, images)
        volume = Volume(
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
        self.reader.on_volume(volume)
        return volume


@dataclass
class CountingReader:
    """Opens fake inputs and keeps a record of what was hashed and decoded."""

    calls: list[Path] = field(default_factory=list)
    """Files decoded."""
    hashed: list[Path] = field(default_factory=list)
    before_read: Callable[[Path], None] = lambda path: None
    on_volume: Callable[[Volume], None] = lambda volume: None

    def __call__(self, source: Path | VolumeInput) -> FakeInput:
        return FakeInput(source_path(source), source.series_uid if isinstance(source, VolumeInput) else None, self)


class FakeBackbone(Backbone):
    """Tokens that are a function of the slice's first two values (its index, the number of slices); 13 gives NaN."""

    identity = IDENTITY
    device = "cpu"
    warnings = ()
    independent_rows = True

    def __init__(self) -> None:
        self.passes: list[int] = []
        """Slices of each pass."""

    def side(self, resize: int) -> int:
        return resize // 16

    def prepare(self, hu: np.ndarray, resize: int) -> np.ndarray:
        return hu[:, None]

    def class_tokens(self, pixels: np.ndarray) -> np.ndarray:
        self.passes.append(len(pixels))
        index, value = pixels[:, 0, 0, 0], pixels[:, 0, 0, 1]
        return np.stack([index, index + 1, np.where(value == 13, np.nan, value)], axis=1).astype(np.float32)


class CountingExtractor(FeatureExtractor):
    """Counts the volumes it opened; its fields may be changed between runs."""

    def __init__(self) -> None:
        self.__dict__.update(backbone=FakeBackbone(), resize=224, batch=4, selection=SliceSelection(), calls=0)

    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def chosen(self, volume: Volume) -> np.ndarray:
        self.calls += 1
        return super().chosen(volume)


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., FakeBackbone]:
    """A fake backbone; keywords replace its attributes."""

    def make(**changes: object) -> FakeBackbone:
        backbone = FakeBackbone()
        backbone.__dict__.update(changes)
        return backbone

    return make


@pytest.fixture
def extractor() -> CountingExtractor:
    return CountingExtractor()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    """Takes the place of the reader of files."""
    counting = CountingReader()
    monkeypatch.setattr(sys.modules[extract.__module__], "open_input", counting)
    return counting


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
