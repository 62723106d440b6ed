"""What a server or a clone leaves in place of a file."""

from __future__ import annotations

HEAD_BYTES = 512
"""Bytes from the start of a file that `describe_impostor` needs."""

_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")
_XML_STARTS = (b"<?xml", b"<!doctype", b"<error")


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
