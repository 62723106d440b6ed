"""Telling weights from the pages, pointers and stumps that servers send in their place."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from meddinov3_stroke.download.failures import SourceFailed
from meddinov3_stroke.download.packages import Package

HEAD_BYTES = 512
"""Enough of a file's beginning to say what it is."""

_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<!--", b"<?xml", b"<error")
_LARGEST_SAFETENSORS_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""


def refuse_impostor(head: bytes) -> None:
    """Return if a file that begins with `head` may be weights of torch or safetensors.

    Raises:
        SourceFailed: empty, an HTML or XML page, a Git-LFS pointer, or anything else, named for what it is.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise SourceFailed("an empty file")
    if text.startswith(_PAGE_STARTS):
        raise SourceFailed("an HTML page instead of weights (a login or quota page, or no direct link)")
    if text.startswith(b"version https://git-lfs"):
        raise SourceFailed("a Git-LFS pointer instead of weights (the link must lead to the file itself)")
    if not (head.startswith((b"PK\x03\x04", b"\x80")) or _is_safetensors(head)):
        raise SourceFailed(f"no weights file: it begins with {head[:16]!r}")


def refuse_stump(path: Path, package: Package) -> None:
    """Return if `path` may be a whole file of `package`: large enough and, where its format tells, not cut short.

    Raises:
        SourceFailed: too small, or truncated.
    """
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    refuse_impostor(head)
    size = path.stat().st_size
    if size < package.smallest_bytes:
        raise SourceFailed(
            f"too small for {package.name}: found {size} bytes, expected at least {package.smallest_bytes}"
        )
    if head.startswith(b"PK"):
        _refuse_cut_archive(path)
    elif _is_safetensors(head):
        _refuse_cut_safetensors(path, size)


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= _LARGEST_SAFETENSORS_HEADER


def _refuse_cut_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:  # reads the directory, which stands at the end of the file
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise SourceFailed(f"truncated or damaged: {error}") from error
    if not members:
        raise SourceFailed("an empty archive")


def _refuse_cut_safetensors(path: Path, size: int) -> None:
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length)
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise SourceFailed("truncated or damaged: its safetensors header cannot be read") from error
    if size != expected:
        raise SourceFailed(f"truncated or damaged: found {size} bytes, its header says {expected}")
