"""Only weights that are whole and expected take the file's place; what was there stays until they do."""

from __future__ import annotations

import builtins
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.download import Limits, download_weights, parse_sha256, record_path
from meddinov3_stroke.errors import DownloadError, StorageError, UsageError, WeightsMismatch

Fetch = Callable[..., Any]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def unfinished(target: Path) -> Path:
    """Where the bytes of an unfinished download are kept."""
    return target.with_name("model.pth.download")


def is_verified(target: Path) -> bool:
    """Whether the file has the digest that is recorded beside it."""
    return bool(json.loads(record_path(target).read_bytes())["sha256"] == sha256(target.read_bytes()))


def held_file(target: Path) -> Path:
    [file] = unfinished(target).glob("file*")
    return file


def safetensors(n_bytes: int, promised: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [promised], "data_offsets": [0, promised]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(n_bytes)


IMPOSTORS = {
    "HTML page": b"<!DOCTYPE html><html><body>Quota exceeded</body></html>" + b" " * 2000,
    "an XML document": b"<?xml version='1.0'?><Error/>" + b" " * 2000,
    "HTML page ": b"\xef\xbb\xbf\n <html>" + b"x" * 2000,
    "Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 343000000\n",
    "empty file": b"",
    "not a weights file": b'{"error": "not found"}' + b" " * 2000,
    "too small": safetensors(10, 10),
    "truncated": safetensors(5000, 6000),
    "truncated ": b"PK\x03\x04" + bytes(5000),
}


@pytest.mark.parametrize("name", sorted(IMPOSTORS))
def test_a_file_that_is_not_weights_is_named_and_the_old_file_stays(
    name: str, server: Any, fetch: Fetch, target: Path, old_file: bytes
) -> None:
    record = record_path(target).read_bytes()
    with pytest.raises(DownloadError, match=name.strip()):
        fetch(server.put(IMPOSTORS[name]), force=True)
    assert target.read_bytes() == old_file
    assert record_path(target).read_bytes() == record
    assert not unfinished(target).exists()


@pytest.mark.parametrize("fault", ["drop", "stall", "status", "promise_size"])
def test_a_source_that_fails_leaves_the_old_file(
    fault: str, server: Any, acts: Any, fetch: Fetch, limits: Limits, target: Path, old_file: bytes, weights: bytes
) -> None:
    act = getattr(acts, fault)({"status": 500, "promise_size": len(weights) + 9}.get(fault, 0))
    with pytest.raises(DownloadError, match="was left as it was"):
        fetch(server.put(weights, *[act] * 20), force=True, limits=replace(limits, retries=1))
    assert target.read_bytes() == old_file
    assert is_verified(target)


def test_weights_in_safetensors_are_taken(server: Any, fetch: Fetch, target: Path) -> None:
    fetch(server.put(safetensors(5000, 5000)))
    assert target.read_bytes() == safetensors(5000, 5000)


def test_a_pinned_digest_that_differs_names_both(
    server: Any, fetch: Fetch, target: Path, weights: bytes, old_file: bytes
) -> None:
    with pytest.raises(DownloadError, match=f"sha256 {sha256(weights)}, expected {'0' * 64}.*pinned"):
        fetch(server.put(weights), pinned="0" * 64, force=True)
    assert target.read_bytes() == old_file


def test_a_pinned_digest_needs_no_other_sign_of_weights(
    server: Any, fetch: Fetch, target: Path, limits: Limits
) -> None:
    body = b"\x80\x02small"
    assert len(body) < limits.least_bytes
    assert fetch(server.put(body), pinned=sha256(body)).origin == "pinned"


def test_the_first_download_is_recorded(server: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    fetch(server.put(weights))
    document = json.loads(record_path(target).read_bytes())
    assert document["schema_version"] == 1
    assert document["disclaimer"].startswith("research use only")
    assert (document["sha256"], document["size"], document["origin"]) == (sha256(weights), len(weights), "first use")
    assert document["source"] == f"URL ({server.url}/model.pth)"


def test_a_file_that_is_there_and_verified_is_not_asked_for(
    server: Any, fetch: Fetch, old_file: bytes, weights: bytes
) -> None:
    got = fetch(server.put(weights))
    assert (got.fetched, got.sha256, server.requests) == (False, sha256(old_file), [])


def test_a_file_that_differs_from_its_record_is_refused_and_left(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes
) -> None:
    changed = old_file[:-1] + b"!"
    target.write_bytes(changed)
    with pytest.raises(WeightsMismatch, match=f"found sha256 {sha256(changed)}, expected {sha256(old_file)}"):
        fetch(server.put(weights))
    assert target.read_bytes() == changed
    assert server.requests == []


def test_a_file_that_differs_from_the_pinned_digest_is_refused_and_left(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes
) -> None:
    with pytest.raises(WeightsMismatch, match="pinned"):
        fetch(server.put(weights), pinned=sha256(weights))
    assert target.read_bytes() == old_file


def test_a_pinned_digest_wins_over_the_recorded_one(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes
) -> None:
    target.write_bytes(weights)
    got = fetch(server.put(old_file), pinned=sha256(weights))
    assert (got.fetched, got.origin) == (False, "pinned")


def test_a_later_download_is_held_to_the_record(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes
) -> None:
    target.unlink()
    with pytest.raises(DownloadError, match=f"expected {sha256(old_file)}.*recorded"):
        fetch(server.put(weights))
    assert not target.exists()


def test_force_replaces_the_file_and_its_record(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes
) -> None:
    fetch(server.put(weights), force=True)
    assert target.read_bytes() == weights
    assert is_verified(target)


def test_a_file_placed_manually_is_recorded_with_a_warning(
    fetch: Fetch, target: Path, weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    target.parent.mkdir()
    target.write_bytes(weights)
    got = fetch()
    assert (got.origin, got.fetched) == ("found on disk", False)
    assert "no digest to compare it with" in caplog.text
    assert is_verified(target)


def test_a_page_saved_as_weights_is_refused_and_left(fetch: Fetch, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(IMPOSTORS["HTML page"])
    with pytest.raises(WeightsMismatch, match="HTML page"):
        fetch()
    assert target.read_bytes() == IMPOSTORS["HTML page"]
    assert not record_path(target).exists()


def test_a_record_that_cannot_be_read_is_an_error(fetch: Fetch, target: Path, old_file: bytes) -> None:
    record_path(target).write_text('{"sha256": 3}')
    with pytest.raises(WeightsMismatch, match="cannot be read"):
        fetch()
    assert target.read_bytes() == old_file


def interrupted(acts: Any, after: int) -> list[Any]:
    """Answers to a run that gets so many bytes and then gives up."""
    return [acts.drop(after), *[acts.status(404)] * 2]


@pytest.mark.parametrize("flipped", [0, 69_999])
def test_damaged_bytes_of_an_earlier_run_cost_one_more_transfer(
    flipped: int, server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    source = server.put(weights, *interrupted(acts, 70_000))
    with pytest.raises(DownloadError):
        fetch(source)
    part = held_file(target)
    held = bytearray(part.read_bytes())
    assert len(held) == 70_000
    held[flipped] ^= 1
    part.write_bytes(held)
    fetch(source, pinned=sha256(weights))
    assert target.read_bytes() == weights
    assert server.ranges()[-2:] == ["bytes=70000-", None]


def test_a_later_run_resumes_an_earlier_one(server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    source = server.put(weights, *interrupted(acts, 70_000))
    with pytest.raises(DownloadError):
        fetch(source)
    fetch(source)
    assert server.ranges()[-1] == "bytes=70000-"
    assert target.read_bytes() == weights


def test_a_page_in_place_of_the_rest_costs_none_of_the_bytes_held(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    def page(handler: Any, file: Any) -> None:
        handler.begin(200, {"Content-Length": "2000"})
        handler.send(b"<html>" + bytes(1994))

    fetch(server.put(weights, acts.drop(70_000), page))
    assert server.ranges() == [None, "bytes=70000-", None, "bytes=70000-"]  # None: gdown first asks for the headers
    assert target.read_bytes() == weights


def test_a_page_in_place_of_the_file_costs_none_of_the_bytes_of_an_earlier_run(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    source = server.put(weights, *interrupted(acts, 70_000))
    with pytest.raises(DownloadError):
        fetch(source)
    server.files["/model.pth"].body = b"<html>" + bytes(1994)
    with pytest.raises(DownloadError, match="HTML page"):
        fetch(source)
    server.files["/model.pth"].body = weights
    fetch(source)
    assert server.ranges()[-1] == "bytes=70000-"
    assert target.read_bytes() == weights


@pytest.mark.parametrize("note", [None, "", "[]", "{}", '{"source": 1}'])
def test_bytes_whose_note_is_lost_are_not_built_upon(
    note: str | None, server: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    folder = unfinished(target)
    folder.mkdir(parents=True)
    (folder / "file12345678.part").write_bytes(b"x" * 70_000)
    if note is not None:
        (folder / "version").write_text(note)
    fetch(server.put(weights))
    assert server.ranges() == [None]
    assert target.read_bytes() == weights


def test_bytes_of_one_source_are_not_continued_from_another(
    server: Any, other_server: Any, acts: Any, fetch: Fetch, target: Path, make_weights: Any
) -> None:
    first = server.put(make_weights(1), *interrupted(acts, 70_000))
    second = other_server.put(make_weights(2))
    fetch(first, second)
    assert other_server.ranges() == [None]
    assert target.read_bytes() == make_weights(2)


def test_the_next_source_is_tried_and_the_reason_logged(
    server: Any, other_server: Any, fetch: Fetch, target: Path, weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    missing = replace(server.put(weights), url=f"{server.url}/nowhere")
    fetch(missing, other_server.put(weights))
    assert target.read_bytes() == weights
    assert "HTTP 404" in caplog.text


def test_the_error_lists_every_source_with_its_reason(
    server: Any, fetch: Fetch, acts: Any, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    page = server.put(IMPOSTORS["HTML page"], path="/page")
    gone = server.put(weights, acts.status(404), path="/gone")
    offline = replace(gone, name="Hugging Face", kind="hub")
    with pytest.raises(DownloadError) as caught:
        fetch(page, gone, offline)
    message = str(caught.value)
    assert "\n" not in message
    for phrase in (
        "/page): it is an HTML page",
        "/gone): HTTP 404",
        "Hugging Face",
        "HF_HUB_OFFLINE is set",
        "--from-file",
    ):
        assert phrase in message


def test_no_source_at_all_says_what_to_set(fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match="MEDDINOV3_URL, MEDDINOV3_HF_REPO, MEDDINOV3_GDRIVE_FILE_ID"):
        fetch()


def test_secrets_in_an_address_are_neither_logged_nor_stored(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="meddinov3_stroke")
    source = server.put(weights, *interrupted(acts, 70_000))
    secret = replace(source, url=f"{server.url.replace('//', '//me:canary1@')}/model.pth?token=canary2")
    with pytest.raises(DownloadError) as caught:
        fetch(secret)
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    part = "".join(file.read_text(errors="replace") for file in unfinished(target).iterdir())
    fetch(secret)
    said = str(caught.value) + repr(secret) + part + record_path(target).read_text() + caplog.text
    assert "canary" not in said
    assert f"{server.url}/model.pth" in said


def test_a_full_disk_leaves_the_old_file_and_nothing_torn(
    server: Any, fetch: Fetch, target: Path, old_file: bytes, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *args: real("/dev/full" if str(file).endswith(".part") else file, *args)
    )
    with pytest.raises(StorageError, match="No space left"):
        fetch(server.put(weights), force=True)
    assert target.read_bytes() == old_file


def test_a_folder_that_cannot_be_made_is_a_storage_error(server: Any, tmp_path: Path, weights: bytes) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        download_weights(tmp_path / "file" / "model.pth", [server.put(weights)])


def test_a_folder_in_place_of_the_file_is_a_usage_error(server: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the file in it"):
        download_weights(tmp_path, [server.put(b"")])


def test_verifying_a_file_writes_nothing(fetch: Fetch, target: Path, old_file: bytes) -> None:
    before = sorted(target.parent.iterdir())
    fetch()
    assert sorted(target.parent.iterdir()) == before


@pytest.mark.parametrize("text", ["abc", "g" * 64, "0" * 63, ""])
def test_a_digest_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="64 hex digits"):
        parse_sha256(text, "--sha256")


def test_a_digest_may_be_written_in_capitals_and_with_its_prefix() -> None:
    assert parse_sha256(" sha256:" + "AB" * 32, "--sha256") == "ab" * 32
