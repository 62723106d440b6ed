"""Whatever the server does, what arrives is the file or an error."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddinov3_stroke.download import Limits, Source, download_weights, sources
from meddinov3_stroke.errors import DownloadError, StorageError

Fetch = Callable[..., Any]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_an_honest_server_gives_the_file(server: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    got = fetch(server.put(weights))
    assert target.read_bytes() == weights
    assert (got.sha256, got.fetched) == (sha256(weights), True)


def test_nothing_but_the_file_its_record_and_its_lock_is_left(
    server: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights))
    left = {path.name for path in target.parent.iterdir()} - {"model.pth.lock"}
    assert left == {"model.pth", "model.pth.sha256.json"}


def test_a_dropped_connection_costs_only_the_missing_bytes(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.drop(70_000), acts.drop(50_000)))
    assert server.ranges() == [None, "bytes=70000-", "bytes=120000-"]
    assert target.read_bytes() == weights


def test_resuming_asks_for_the_same_version(server: Any, acts: Any, fetch: Fetch, weights: bytes) -> None:
    fetch(server.put(weights, acts.drop(70_000)))
    assert server.requests[-2].headers["if-range"] == '"v1"'


def test_a_date_of_change_serves_where_there_is_no_etag(server: Any, acts: Any, fetch: Fetch, weights: bytes) -> None:
    date = "Sat, 01 Nov 2025 10:00:00 GMT"
    fetch(server.put(weights, acts.drop(70_000), etag=None, headers={"Last-Modified": date}))
    assert (server.ranges()[-1], server.requests[-2].headers["if-range"]) == ("bytes=70000-", date)


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_nothing_is_resumed(
    etag: str | None, server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.drop(70_000), etag=etag))
    assert server.ranges() == [None, None]
    assert target.read_bytes() == weights


def test_a_server_that_ignores_the_range_starts_the_file_again(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.drop(70_000), acts.ignore_range))
    assert target.read_bytes() == weights


@pytest.mark.parametrize("act", ["honest", "ignore_if_range"])
@pytest.mark.parametrize("larger_by", [0, 1000])
def test_two_versions_of_a_file_are_never_spliced(
    act: str, larger_by: int, server: Any, acts: Any, fetch: Fetch, target: Path, make_weights: Any
) -> None:
    old, new = make_weights(1), make_weights(2, 200_000 + larger_by)

    def drop_and_change(handler: Any, file: Any) -> None:
        acts.drop(70_000)(handler, file)
        file.body, file.etag = new, '"v2"'

    fetch(server.put(old, drop_and_change, getattr(acts, act)))
    assert server.ranges()[1] == "bytes=70000-"
    assert target.read_bytes() == new


def test_another_range_than_asked_for_is_not_appended(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.drop(70_000), acts.shift_range(-10)))
    assert target.read_bytes() == weights
    assert server.ranges() == [None, "bytes=70000-", None, "bytes=70000-"]


def test_a_server_that_stalls_is_dropped_and_resumed(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.stall(70_000)))
    assert server.ranges() == [None, "bytes=70000-"]
    assert target.read_bytes() == weights


def test_a_length_longer_than_the_file_is_an_error(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    lie = acts.promise_size(len(weights) + 500)
    with pytest.raises(DownloadError, match="incomplete"):
        fetch(server.put(weights, *[lie] * 20))
    assert not target.exists()


def test_a_length_shorter_than_the_file_is_noticed_in_the_archive(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    with pytest.raises(DownloadError, match="truncated"):
        fetch(server.put(weights, *[acts.promise_size(len(weights) - 500)] * 20))
    assert not target.exists()


def test_a_chunked_body_needs_no_length(server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    fetch(server.put(weights, acts.chunked))
    assert target.read_bytes() == weights


def test_a_body_without_any_end_is_checked_by_its_archive(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    source = server.put(weights[:-500], *[acts.endless] * 9)
    with pytest.raises(DownloadError, match="truncated"):
        fetch(source)
    assert not target.exists()


def test_a_body_without_any_end_is_taken_where_its_digest_is_known(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.endless), pinned=sha256(weights))
    assert target.read_bytes() == weights


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_refusals_are_asked_again(
    code: int, server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    fetch(server.put(weights, acts.status(code)))
    assert target.read_bytes() == weights


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_lasting_refusals_are_not_asked_again(code: int, server: Any, acts: Any, fetch: Fetch, weights: bytes) -> None:
    with pytest.raises(DownloadError, match=f"HTTP {code}"):
        fetch(server.put(weights, *[acts.status(code)] * 5))
    assert len(server.requests) == 1


def test_retries_are_bounded(server: Any, acts: Any, fetch: Fetch, weights: bytes, limits: Limits) -> None:
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(server.put(weights, *[acts.status(503)] * 50))
    assert len(server.requests) == 1 + limits.retries


def test_a_transfer_survives_more_drops_than_retries(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes, limits: Limits
) -> None:
    drops = [acts.drop(20_000)] * (limits.retries + 2)
    fetch(server.put(weights, *drops))
    assert target.read_bytes() == weights


def test_the_wait_that_a_server_asks_for_is_kept(
    server: Any, acts: Any, fetch: Fetch, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", waits.append)
    fetch(server.put(weights, acts.status(429, Retry_After="7")))
    assert waits == [7.0]


def test_a_server_that_asks_to_wait_for_hours_is_asked_again_within_a_minute(
    server: Any, acts: Any, fetch: Fetch, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", waits.append)
    fetch(server.put(weights, acts.status(429, Retry_After="7200")))
    assert waits == [60.0]


def test_a_server_that_is_not_there_is_an_error(fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match=r"URL .*127\.0\.0\.1:1/"):
        fetch(Source("URL", "http://127.0.0.1:1/model.pth"))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/model.pth", "/a/path", "http://[::1", "", "http://a:b:c/"])
def test_what_is_not_a_web_address_is_an_error(url: str, fetch: Fetch) -> None:
    with pytest.raises(DownloadError):
        fetch(Source("URL", url))


def test_redirects_are_followed(
    server: Any, other_server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    there = other_server.put(weights, path="/blob")
    fetch(server.put(b"", *[acts.redirect(there.url)] * 3))
    assert target.read_bytes() == weights


def test_redirects_in_a_circle_are_an_error(server: Any, acts: Any, fetch: Fetch) -> None:
    source = server.put(b"", *[acts.redirect("/model.pth")] * 99)
    with pytest.raises(DownloadError, match="redirects"):
        fetch(source)


def test_being_led_from_https_to_http_is_refused(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(url: str, **options: Any) -> requests.Response:
        first, answer = requests.Response(), requests.Response()
        first.url, answer.url = url, "http://127.0.0.1/model.pth"
        answer.status_code, answer.history, answer.raw = 200, [first], io.BytesIO(b"PK\x03\x04")
        return answer

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DownloadError, match="https to http"):
        fetch(Source("URL", "https://127.0.0.1/model.pth"))


def test_a_file_above_the_cap_is_refused_unread(
    server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 100_000)
    with pytest.raises(DownloadError, match="too large"):
        fetch(server.put(weights))
    assert server.ranges() == []


def test_a_body_without_length_stops_at_the_cap(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 100_000)

    def chunked(handler: Any, file: Any) -> None:
        acts.chunked(handler, file)

    chunked.on_probe = True  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match="more than 100000 bytes"):
        fetch(server.put(weights, *[chunked] * 9))
    assert not target.exists()


def test_a_disk_too_small_is_reported_before_the_transfer(
    server: Any, fetch: Fetch, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="1000 bytes free"):
        fetch(server.put(weights))
    assert server.ranges() == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(st.tuples(st.sampled_from(["drop", "again", "change", "503"]), st.integers(0, 90_000)), max_size=6)
)
def test_any_chain_of_faults_ends_in_the_file_as_it_last_was(
    plan: list[tuple[str, int]], server: Any, acts: Any, limits: Limits, make_weights: Any
) -> None:
    bodies = iter([make_weights(seed) for seed in range(len(plan) + 1)])

    def drop_and_change(after: int) -> Any:
        def act(handler: Any, file: Any) -> None:
            acts.drop(after)(handler, file)
            file.body = next(bodies)
            file.etag = f'"{sha256(file.body)}"'

        return act

    def drop_from_start(after: int) -> Any:
        def act(handler: Any, file: Any) -> None:
            handler.promise(file, 0)
            handler.send(file.body[:after])
            handler.hang_up()

        return act

    make = {"drop": acts.drop, "again": drop_from_start, "change": drop_and_change, "503": lambda n: acts.status(503)}
    source = server.put(next(bodies), *(make[kind](after) for kind, after in plan))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        download_weights(path, [source], limits=replace(limits, retries=10, backoff_s=0.0))
        assert path.read_bytes() == server.files["/model.pth"].body
