"""sha256 of files, bytes and small documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Hex sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_document(document: Any) -> str:
    """Hex sha256 of a JSON document in canonical form (sorted keys, no blanks)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256_of_bytes(text.encode("ascii"))


def sha256_of_array(array: np.ndarray, **context: Any) -> str:
    """Hex sha256 of an array's values with its dtype and shape and any JSON-like `context`."""
    digest = hashlib.sha256()
    head = {"dtype": array.dtype.newbyteorder("<").str, "shape": array.shape, "context": context}
    digest.update(json.dumps(head, sort_keys=True).encode("ascii"))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    for part in little if little.ndim > 1 else (little,):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
