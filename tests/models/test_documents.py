"""JSON documents that carry their own digest."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.models.documents import read_document, write_document

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CONTENT = {"cosine": 0.99995, "name": "Köpfe", "parts": [1, 2]}


@given(document=st.dictionaries(st.text().filter(lambda key: key != "sha256_of_document"), VALUES, max_size=4))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("documents") / "x.json"
    write_document(path, document)
    assert read_document(path) == document


def test_no_document_is_none_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_document(tmp_path / "x.json") is None
    assert caplog.records == []


def test_every_changed_digit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.json"
    write_document(path, CONTENT)
    text = path.read_text(encoding="utf-8")
    places = [k for k, letter in enumerate(text) if letter.isdigit()]
    for k in places:
        path.write_text(text[:k] + str((int(text[k]) + 1) % 10) + text[k + 1 :], encoding="utf-8")
        assert read_document(path) is None
    assert len(caplog.records) == len(places) > 30
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"{}", json.dumps(CONTENT).encode()],
    ids=["empty", "cut", "list", "null", "number", "text", "binary", "no keys", "no digest"],
)
def test_what_is_no_such_document_reads_as_absent_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert read_document(path) is None
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert "is damaged or unreadable" in caplog.text


def test_a_folder_in_its_place_reads_as_absent_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.json").mkdir()
    assert read_document(tmp_path / "x.json") is None
    assert "is damaged or unreadable" in caplog.text


def test_a_number_that_is_none_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(tmp_path / "x.json", {"cosine": float("nan")})
    assert list(tmp_path.iterdir()) == []
