"""The bytes of an unfinished download and the note that says which file they belong to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from meddinov3_stroke.system.atomic import commit, write_json


@dataclass(frozen=True)
class PartNote:
    """What the bytes in a part file are a beginning of."""

    source: str
    """Name and URL without secrets, for people."""
    source_key: str
    """Digest of the source's URL."""
    validator: str | None
    """Strong ETag or Last-Modified of the remote file; without one nothing is resumed (RFC 9110, 13.1.5)."""
    total: int | None
    """Bytes of the whole file, where the server says so."""
    stated_sha256: str | None
    """Digest that the source states of the file."""
    verified_sha256: str | None = None
    """Set just before the part takes the file's place."""
    origin: str | None = None
    """What `verified_sha256` was held against."""


class PartFile:
    """`<name>.part` and `<name>.part.json` beside the file that is being downloaded."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note_path = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes held."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> PartNote | None:
        """The note; None where there is none or it cannot be read: then the bytes are worth nothing."""
        try:
            return _as_note(json.loads(self.note_path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def resumable(self, source_key: str) -> PartNote | None:
        """The note, if the bytes held are a beginning of that source's file that can be gone on with."""
        note, held = self.note(), self.size
        if note is None or note.source_key != source_key or held == 0:
            return None
        if note.total is not None and held >= note.total:
            return note if held == note.total else None
        return note if note.validator else None

    def start(self, note: PartNote) -> None:
        """Forget the bytes held; the next ones are the beginning of what `note` describes."""
        self.path.unlink(missing_ok=True)
        self.write_note(note)

    def write_note(self, note: PartNote) -> None:
        """Replace the note."""
        write_json(self.note_path, asdict(note))

    def append(self) -> BinaryIO:
        """A handle that adds to the bytes held."""
        return self.path.open("ab")

    def discard(self) -> None:
        """Remove the bytes and the note."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def take_the_place(self) -> None:
        """Make the bytes durable and rename them to the target; the note stays until its digest is recorded."""
        with self.path.open("rb+") as handle:
            os.fsync(handle.fileno())
        commit(self.path, self.target)


def _as_note(document: Any) -> PartNote:
    note = PartNote(**document)
    texts = (note.source, note.source_key)
    optional_texts = (note.validator, note.stated_sha256, note.verified_sha256, note.origin)
    sound = (
        all(isinstance(value, str) for value in texts)
        and all(value is None or isinstance(value, str) for value in optional_texts)
        and (note.total is None or isinstance(note.total, int))
    )
    if not sound:
        raise ValueError("fields of the wrong kind")
    return note
