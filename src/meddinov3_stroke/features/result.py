"""What became of one volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meddinov3_stroke.errors import MedDINOError
from meddinov3_stroke.types import SliceEmbeddings, VolumeInput

Status = Literal["done", "rejected", "refused", "failed"]
"""Every input ends in exactly one: embedded; corrupt or unsupported; out of scope; not read this time (retryable)."""


@dataclass(frozen=True, eq=False)
class Extraction:
    """One line of the ledger: `embeddings` are there exactly if `status` is `done`, `error` exactly if it is not."""

    input: VolumeInput | None
    """None where the row of a table names no volume."""
    status: Status
    embeddings: SliceEmbeddings | None = None
    error: MedDINOError | None = None
    from_cache: bool = False

    @property
    def path(self) -> Path | None:
        """Where the volume was to be read from."""
        return None if self.input is None else self.input.path

    @property
    def code(self) -> str:
        """Code of the error, empty when done."""
        return self.error.code if self.error else ""

    @property
    def message(self) -> str:
        """What was wrong, empty when done."""
        return str(self.error) if self.error else ""
