"""Trust on first use: the digest of a file is written down once and held to ever after; a pinned one wins."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from meddinov3_stroke.errors import UsageError, WeightsMismatch
from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.provenance import provenance

PINNED = "pinned"
RECORDED = "recorded"
STATED = "stated by Hugging Face"
FIRST_USE = "first use"
FOUND = "found on disk"


@dataclass(frozen=True)
class Expected:
    """A digest that a file must have, and who says so."""

    sha256: str
    origin: str

    def check(self, sha256: str, path: Path) -> None:
        """Return if `sha256`, of `path`, is the expected one.

        Raises:
            WeightsMismatch: it is another.
        """
        if sha256 != self.sha256:
            raise WeightsMismatch(
                f"{path}: found sha256 {sha256}, expected {self.sha256} ({self.origin}); the file was left as it is; "
                "move it away, or replace it with meddinov3-stroke download --force"
            )


def record_path(path: Path) -> Path:
    """Where the digest of `path` is recorded."""
    return path.with_name(f"{path.name}.sha256.json")


def parse_sha256(text: str, where: str) -> str:
    """`text` as a lower-case hex sha256; `where` names the flag or key it came from.

    Raises:
        UsageError: it is no sha256.
    """
    digest = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"{where}: found {text!r}, expected a sha256 of 64 hex digits; correct or remove it")
    return digest


def expected_digest(path: Path, pinned: str | None, *, ignore_record: bool = False) -> Expected | None:
    """The digest that `path` must have: the pinned one, else the recorded one; None on first use.

    Raises:
        WeightsMismatch: the record is there and cannot be read.
    """
    if pinned is not None:
        return Expected(pinned, PINNED)
    return None if ignore_record else _recorded(path)


def verify_recorded(path: Path) -> bool:
    """Whether a record of `path` exists; its bytes have then been compared with it.

    Raises:
        WeightsMismatch: the file differs from its record, or the record cannot be read.
    """
    expected = _recorded(path)
    if expected is None:
        return False
    expected.check(sha256_of_file(path), path)
    return True


def write_record(path: Path, sha256: str, source: str, origin: str) -> None:
    """Record the digest of `path`, where it came from and what the digest was held against."""
    document = provenance() | {
        "file": path.name,
        "sha256": sha256,
        "size": path.stat().st_size,
        "source": source,
        "origin": origin,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(record_path(path), document)


def _recorded(path: Path) -> Expected | None:
    found = record_path(path)
    try:
        document = json.loads(found.read_bytes())
        return Expected(parse_sha256(document["sha256"], str(found)), f"{RECORDED} in {found.name}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise WeightsMismatch(
            f"{found} cannot be read; expected the sha256 of {path.name} in it; delete it to trust {path.name} anew"
        ) from error
