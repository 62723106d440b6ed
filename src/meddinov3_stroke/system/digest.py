"""What bytes are: their sha256, and what a server or a clone leaves in place of a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

HEAD_BYTES = 512  # bytes from the start of a file that `describe_impostor` needs

_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")
_XML_STARTS = (b"<?xml", b"<!doctype", b"<error")


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


def describe_impostor(head: bytes) -> str | None:
    """A phrase that names a file which is not the one that was wanted, by its first bytes; None if it may be that one.

    The phrase reads on from "is": an empty file, an HTML page, an XML document or a Git-LFS pointer, with the likely
    cause.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text:
        return "an empty file"
    if text.startswith(_HTML_STARTS):
        return "an HTML page (a login or quota page saved in place of the file?)"
    if text.startswith(_XML_STARTS):
        return "an XML document (an error message saved in place of the file?)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer (run git lfs pull, or download the file itself)"
    return None
