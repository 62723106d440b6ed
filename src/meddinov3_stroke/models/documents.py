"""JSON documents that carry their own digest: damage reads as absence, and is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.digest import sha256_of_document

LOGGER = logging.getLogger("meddinov3_stroke")

DIGEST_KEY = "sha256_of_document"
"""Under which a document states the digest of all its other keys."""


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document with its digest, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    plain = json.loads(json.dumps(document, allow_nan=False))
    write_json(path, {**plain, DIGEST_KEY: sha256_of_document(plain)})


def read_document(path: Path) -> dict[str, Any] | None:
    """The document without its digest; None where there is none, or, with a warning, where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = content.pop(DIGEST_KEY)
        if stated == sha256_of_document(content):
            return dict(content)
        reason = "its digest does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    LOGGER.warning("%s is damaged or unreadable (%s); it is not used", path, reason)
    return None
