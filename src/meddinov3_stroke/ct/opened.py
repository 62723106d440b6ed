"""What every opened input offers, NIfTI or DICOM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from meddinov3_stroke.types import Volume


class OpenedInput(ABC):
    """An input whose files have been found. Each is read once, even if both digest and volume are wanted."""

    path: Path
    """The path that represents the input in messages and names."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files on disk whose stat identifies the input; found without reading their contents."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hex sha256 of the content, that of `Volume.source`; known before a voxel is decoded."""

    @abstractmethod
    def volume(self) -> Volume:
        """The volume in canonical orientation; errors as `ct.read_volume` lists them."""
