"""Files that a server or a clone leaves in place of the one that was wanted are named."""

from __future__ import annotations

import gzip

import pytest

from meddinov3_stroke.system.digest import describe_impostor


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", "an empty file"),
        (b" \r\n\t", "an empty file"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "an HTML page"),
        (b"\xef\xbb\xbf\n <HTML>", "an HTML page"),
        (b"<head><title>Sign in</title>", "an HTML page"),
        (b"<!-- saved from -->", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML document"),
        (b"<Error><Code>AccessDenied</Code>", "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "a Git-LFS pointer"),
    ],
)
def test_an_impostor_is_named(head: bytes, name: str) -> None:
    assert (describe_impostor(head) or "").startswith(name)


@pytest.mark.parametrize(
    "head",
    [gzip.compress(b"x"), b"PK\x03\x04", b"\x80\x02}", b'@\0\0\0\0\0\0\0{"w":', b"\x5c\x01\0\0", b"version 1.0", b"<"],
    ids=["gzip", "zip", "pickle", "safetensors", "NIfTI", "text", "an angle bracket"],
)
def test_what_may_be_data_is_not_named(head: bytes) -> None:
    assert describe_impostor(head) is None
