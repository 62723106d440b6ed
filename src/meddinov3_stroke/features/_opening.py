"""Temporary: stands in for `ct.open_input` until the reader delivers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from meddinov3_stroke.ct import input_digest, read_volume
from meddinov3_stroke.ct.contents import is_nifti_name
from meddinov3_stroke.ct.reader import Source, source_path
from meddinov3_stroke.errors import MissingInput, UnsupportedInput
from meddinov3_stroke.types import Volume, VolumeInput


class OpenedInput(ABC):
    """An input."""

    path: Path
    files: tuple[Path, ...]

    @property
    @abstractmethod
    def digest(self) -> str:
        """Its digest."""

    @abstractmethod
    def volume(self) -> Volume:
        """Its volume."""


@dataclass(frozen=True, eq=False)
class _Opened(OpenedInput):
    source: Source
    series: str | None
    path: Path

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Its digest."""
        return input_digest(self.source, series=self.series)

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """Its files."""
        if self.path.is_dir():
            return tuple(path for path in sorted(self.path.rglob("*")) if path.is_file())
        return (self.path,)

    def volume(self) -> Volume:
        """Its volume."""
        return read_volume(self.source, series=self.series)


def open_input(source: Source, series: str | None = None) -> OpenedInput:
    """The input."""
    path = source_path(source)
    if isinstance(source, VolumeInput) and source.format == "nifti":
        if path.is_dir():
            raise MissingInput(f"{path} is a directory; expected a .nii or .nii.gz file; use dicom_path for DICOM")
        if not path.exists():
            raise MissingInput(f"{path}: no such file; expected a .nii or .nii.gz file")
        if not is_nifti_name(path):
            raise UnsupportedInput(f"{path} is no .nii or .nii.gz file; use dicom_path for DICOM")
    return _Opened(source, series, path)
