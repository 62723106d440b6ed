"""Which sources are asked, in which order and how each is spoken to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.download import (
    MEDDINOV3,
    HubAccess,
    Limits,
    Source,
    configured_sources,
    record_path,
    remote_offers,
)
from meddinov3_stroke.errors import DownloadError, MachineError, UsageError

Fetch = Callable[..., Any]
HUB = HubAccess("https://hub.example")
FILE_ID = "1_MgctUnIIFcQJCVOhkcs84qq92hlqXVA"

CONFIRM_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>\
<input type="hidden" name="id" value="FILE"><input type="hidden" name="export" value="download">\
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="u-1"></form></body></html>"""
QUOTA_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""


def page(text: str) -> Any:
    def act(handler: Any, file: Any) -> None:
        body = text.encode()
        handler.begin(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body))})
        handler.send(body)

    return act


def hub_source(server: Any, **access: Any) -> Source:
    return configured_sources(MEDDINOV3, HubAccess(server.url, **access), hf_repo="owner/name")[0]


def drive_source(server: Any) -> Source:
    return configured_sources(MEDDINOV3, HUB, gdrive_file_id="FILE", drive_url=f"{server.url}/uc")[0]


def test_the_order_is_url_then_hub_then_drive() -> None:
    sources = configured_sources(MEDDINOV3, HUB, gdrive_file_id="x", hf_repo="owner/name", url="https://a.example/f")
    assert [source.name for source in sources] == ["URL", "Hugging Face", "Google Drive"]


def test_the_hub_file_is_asked_for_at_the_endpoint_that_is_set() -> None:
    [source] = configured_sources(MEDDINOV3, HUB, hf_repo="owner/name")
    assert source.url == "https://hub.example/owner/name/resolve/main/model.pth"


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "owner/"])
def test_a_repository_without_owner_and_name_is_a_usage_error(repo: str) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        configured_sources(MEDDINOV3, HUB, hf_repo=repo)


@pytest.mark.parametrize(
    "link",
    [
        f"https://drive.google.com/file/d/{FILE_ID}/view?usp=sharing",
        f"https://drive.google.com/uc?id={FILE_ID}",
        f"https://drive.google.com/open?id={FILE_ID}",
    ],
)
def test_a_link_to_drive_is_spoken_to_as_drive(link: str) -> None:
    [source] = configured_sources(MEDDINOV3, HUB, url=link)
    assert (source.name, source.confirms) == ("Google Drive", True)
    assert f"id={FILE_ID}" in source.url


def test_offline_the_hub_is_not_asked(server: Any, fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(hub_source(server, offline=True))
    assert server.requests == []


def test_the_token_goes_to_the_hub_and_not_to_where_it_leads(
    server: Any, other_server: Any, acts: Any, fetch: Fetch, weights: bytes
) -> None:
    there = other_server.put(weights, path="/blob")
    server.put(b"", acts.redirect(there.url), path="/owner/name/resolve/main/model.pth")
    fetch(hub_source(server, token="hf_canary"))
    assert server.requests[0].headers["authorization"] == "Bearer hf_canary"
    assert "authorization" not in other_server.requests[0].headers


def test_the_token_is_not_in_what_a_source_says_of_itself() -> None:
    assert "canary" not in repr(configured_sources(MEDDINOV3, HubAccess("https://h", "hf_canary"), hf_repo="a/b"))


@pytest.mark.parametrize("stated_for", ["this file", "another file"])
def test_the_digest_that_the_hub_states_is_held_to(
    stated_for: str, server: Any, other_server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    digest = hashlib.sha256(weights if stated_for == "this file" else b"").hexdigest()
    moved = acts.redirect(other_server.put(weights, path="/blob").url, X_Linked_ETag=f'"{digest}"')
    server.put(b"", *[moved] * 3, path="/owner/name/resolve/main/model.pth")
    if stated_for == "this file":
        assert fetch(hub_source(server)).origin == "stated by Hugging Face"
        assert digest in record_path(target).read_text()
    else:
        with pytest.raises(DownloadError, match=f"expected {digest} .stated by Hugging Face"):
            fetch(hub_source(server))


def test_a_hub_that_states_another_digest_than_the_pinned_one_is_not_downloaded_from(
    server: Any, other_server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    moved = acts.redirect(other_server.put(weights, path="/blob").url, X_Linked_ETag=f'"{"1" * 64}"')
    server.put(b"", moved, path="/owner/name/resolve/main/model.pth")
    with pytest.raises(DownloadError, match="it offers sha256 1111"):
        fetch(hub_source(server), pinned="0" * 64)
    assert not target.with_name("model.pth.part").exists()


def test_a_closed_repository_says_what_to_do(server: Any, acts: Any, fetch: Fetch) -> None:
    server.put(b"", acts.status(401), path="/owner/name/resolve/main/model.pth")
    with pytest.raises(DownloadError, match="set HF_TOKEN"):
        fetch(hub_source(server))


def test_the_confirmation_page_of_drive_is_passed(server: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    server.put(b"", page(CONFIRM_PAGE.format(action=f"{server.url}/download")), path="/uc")
    server.put(weights, path="/download")
    fetch(drive_source(server))
    assert target.read_bytes() == weights
    assert server.requests[1].path == "/download?id=FILE&export=download&confirm=t&uuid=u-1"


def test_a_dropped_download_from_drive_is_resumed_past_its_page(
    server: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    server.put(b"", *[page(CONFIRM_PAGE.format(action=f"{server.url}/download"))] * 2, path="/uc")
    server.put(weights, acts.drop(70_000), path="/download")
    fetch(drive_source(server))
    assert server.ranges() == [None, None, None, "bytes=70000-"]
    assert target.read_bytes() == weights


def test_a_small_file_comes_from_drive_without_a_page(server: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    server.put(weights, path="/uc")
    fetch(drive_source(server))
    assert target.read_bytes() == weights


@pytest.mark.parametrize(
    ("text", "reason"), [(QUOTA_PAGE, "Too many users"), ("<html>Sign in</html>", "Cannot retrieve the public link")]
)
def test_a_page_of_drive_that_leads_nowhere_is_told(text: str, reason: str, server: Any, fetch: Fetch) -> None:
    server.put(b"", page(text), path="/uc")
    with pytest.raises(DownloadError, match=f"HTML page instead of weights .quota or permission.: {reason}"):
        fetch(drive_source(server))


def test_text_of_a_server_cannot_command_the_terminal(server: Any, acts: Any, fetch: Fetch) -> None:
    text = '<p class="uc-error-subcaption">\x1b[2J red \x07<b>alert</b></p>'
    server.put(b"", page(text), path="/uc")
    with pytest.raises(DownloadError, match="red alert") as caught:
        fetch(drive_source(server))
    assert str(caught.value).isprintable()


def test_a_proxy_of_the_environment_is_used(
    server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.put(weights, path="http://weights.invalid/model.pth")
    fetch(Source("URL", "http://weights.invalid/model.pth"))
    assert target.read_bytes() == weights


def test_a_proxy_that_cannot_be_used_is_told(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(MachineError, match="ALL_PROXY"):
        fetch(Source("URL", "http://weights.invalid/model.pth"))


def test_sizes_are_told_without_the_file_being_sent(server: Any, weights: bytes, limits: Limits) -> None:
    [offer] = remote_offers([server.put(weights)], limits)
    assert (offer.size, offer.problem) == (len(weights), None)
    assert server.ranges() == ["bytes=0-511"]


def test_a_server_without_ranges_tells_its_size_too(server: Any, acts: Any, weights: bytes, limits: Limits) -> None:
    [offer] = remote_offers([server.put(weights, acts.ignore_range)], limits)
    assert offer.size == len(weights)


def test_the_size_of_a_page_is_not_taken_for_that_of_weights(
    server: Any, other_server: Any, weights: bytes, limits: Limits
) -> None:
    page_offer, offer = remote_offers([server.put(b"<html>" + bytes(999)), other_server.put(weights)], limits)
    assert page_offer.size is None
    assert "HTML page" in str(page_offer.problem)
    assert offer.size == len(weights)


def test_sizes_that_nobody_tells_are_an_error(server: Any, acts: Any, limits: Limits) -> None:
    with pytest.raises(DownloadError, match="HTTP 404"):
        remote_offers([server.put(b"", acts.status(404))], limits)
