"""Which sources are tried, in which order, and what is reported of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from meddinov3_stroke.config import Settings
from meddinov3_stroke.download import Limits, Source, configured_sources, record_path, remote_offers
from meddinov3_stroke.errors import DownloadError, UsageError

Fetch = Callable[..., Any]
FILE_ID = "1_MgctUnIIFcQJCVOhkcs84qq92hlqXVA"
HUB_PATH = "/owner/name/resolve/main/model.pth"

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


def configured(**settings: Any) -> list[Source]:
    """The sources of these settings alone."""
    return configured_sources(Settings(**{"meddinov3_hf_repo": None, "meddinov3_gdrive_file_id": None} | settings))


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(server: Any, weights: bytes) -> Any:
    """The server as a Hub with one file."""
    server.put(weights, path=HUB_PATH, etag=f'"{hashlib.sha256(weights).hexdigest()}"')
    return server


@pytest.fixture
def drive(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server as Google Drive."""
    real = requests.Session.get

    def get(self: requests.Session, url: str, **options: Any) -> requests.Response:
        return real(self, url.replace("https://drive.google.com", server.url), **options)

    monkeypatch.setattr(requests.Session, "get", get)
    return server


ATTACHMENT = {"Content-Disposition": 'attachment; filename="model.pth"', "Content-Type": "application/octet-stream"}


def hub_sources(server: Any, **settings: Any) -> list[Source]:
    return configured(hf_endpoint=server.url, meddinov3_hf_repo="owner/name", **settings)


def drive_source() -> Source:
    return configured(meddinov3_gdrive_file_id="FILE")[0]


def test_the_order_is_url_then_hub_then_drive() -> None:
    sources = configured(
        meddinov3_gdrive_file_id="x", meddinov3_hf_repo="owner/name", meddinov3_url="https://a.example/f"
    )
    assert [source.name for source in sources] == [
        "URL", "Hugging Face", "Hugging Face, plain address", "Google Drive",
    ]  # fmt: skip


def test_several_urls_are_tried_in_order() -> None:
    sources = configured(meddinov3_url="https://a.example/f,1 , http://b.example/f  https://c.example/f")
    assert [source.url for source in sources] == ["https://a.example/f,1", "http://b.example/f", "https://c.example/f"]


def test_mirrors_of_the_hub_are_tried_in_order() -> None:
    sources = configured(hf_endpoint="https://one.example/", hf_mirror="two.example", meddinov3_hf_repo="owner/name")
    assert [source.url for source in sources[::2]] == [f"https://{host}.example{HUB_PATH}" for host in ("one", "two")]


def test_a_url_on_the_hub_is_asked_for_at_the_mirror() -> None:
    [source] = configured(hf_mirror="https://m.example", meddinov3_url=f"https://huggingface.co{HUB_PATH}")
    assert source.url == f"https://m.example{HUB_PATH}"


def test_a_mirror_that_fails_is_reported_and_the_next_one_is_asked(
    hub: Any, other_server: Any, fetch: Fetch, target: Path, weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fetch(*configured(hf_endpoint=other_server.url, hf_mirror=hub.url, meddinov3_hf_repo="owner/name"))
    assert target.read_bytes() == weights
    assert f"{other_server.url}{HUB_PATH}): HTTP 404" in caplog.text


@pytest.mark.parametrize("setting", ["meddinov3_url", "meddinov3_gdrive_url", "meddinov3_gdrive_file_id"])
@pytest.mark.parametrize("path", ["file/d/{}/view?usp=sharing", "uc?id={}", "open?id={}"])
def test_a_link_to_drive_is_fetched_as_drive(
    setting: str, path: str, drive: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    drive.put(weights, path="/uc", headers=ATTACHMENT)
    fetch(*configured(**{setting: "https://drive.google.com/" + path.format(FILE_ID)}))
    assert [request.path for request in drive.requests] == [f"/uc?id={FILE_ID}"]
    assert target.read_bytes() == weights


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "owner/"])
def test_a_repository_without_owner_and_name_is_a_usage_error(repo: str) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        configured(meddinov3_hf_repo=repo)


def test_offline_the_hub_is_not_asked(server: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(*hub_sources(server))
    assert server.requests == []


def test_the_hub_reports_progress_to_our_bar_and_draws_none(
    hub: Any, fetch: Fetch, weights: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="meddinov3_stroke")
    fetch(*hub_sources(hub), progress=True)
    size = f"{len(weights) / (1 << 20):.1f}"
    assert f"weights from Hugging Face: {size}/{size} MiB" in caplog.text
    assert capfd.readouterr().err == ""


def test_the_hub_gives_the_file_and_its_digest(hub: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    got = fetch(*hub_sources(hub))
    assert (got.source, got.origin) == ("Hugging Face", "stated by Hugging Face")
    assert target.read_bytes() == weights
    assert got.sha256 in record_path(target).read_text()
    left = {path.name for path in target.parent.iterdir()} - {"model.pth.lock"}
    assert left == {"model.pth", "model.pth.sha256.json"}


def test_the_token_goes_to_the_hub_and_not_to_where_it_leads(
    server: Any, other_server: Any, fetch: Fetch, weights: bytes
) -> None:
    there = other_server.put(weights, path="/blob")
    server.put(b"", path=HUB_PATH, headers={"Location": there.url, "X-Linked-Size": str(len(weights))}, code=302)
    fetch(*hub_sources(server, huggingface_token="hf_canary"))
    asked = next(request for request in server.requests if HUB_PATH in request.path)
    assert asked.headers["authorization"] == "Bearer hf_canary"
    assert other_server.requests
    assert not any("authorization" in request.headers for request in other_server.requests)


def test_the_token_is_not_in_what_a_source_says_of_itself() -> None:
    settings = Settings(huggingface_token="hf_canary")
    assert "canary" not in repr(settings) + repr(configured_sources(settings))


def test_a_file_with_another_digest_than_the_hub_states_is_refused(hub: Any, fetch: Fetch, target: Path) -> None:
    hub.files[HUB_PATH].etag = f'"{"1" * 64}"'
    with pytest.raises(DownloadError, match=f"expected {'1' * 64} .stated by Hugging Face"):
        fetch(*hub_sources(hub)[:1])
    assert not target.exists()


def test_a_hub_that_states_another_digest_than_the_pinned_one_is_not_downloaded_from(hub: Any, fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match="it offers sha256"):
        fetch(hub_sources(hub)[0], pinned="0" * 64)
    assert {request.path for request in hub.requests if HUB_PATH in request.path} == {f"HEAD {HUB_PATH}"}


@pytest.mark.parametrize("code", [401, 403])
def test_a_closed_repository_says_what_to_do(code: int, hub: Any, fetch: Fetch) -> None:
    hub.files[HUB_PATH].code = code
    with pytest.raises(DownloadError, match=rf"Hugging Face .*HTTP {code}: .*set HF_TOKEN"):
        fetch(*hub_sources(hub)[:1])


def test_after_an_interrupted_hub_download_the_plain_address_is_used(
    hub: Any, fetch: Fetch, target: Path, weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    leftover = target.with_name("model.pth.download") / "hub"
    leftover.mkdir(parents=True)
    assert fetch(*hub_sources(hub)).source == "Hugging Face, plain address"
    assert target.read_bytes() == weights
    assert "interrupted" in caplog.text


def test_a_server_without_the_hub_protocol_is_asked_for_the_plain_file(
    server: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    server.put(weights, path=HUB_PATH, etag=None)
    assert fetch(*hub_sources(server)).source == "Hugging Face, plain address"
    assert target.read_bytes() == weights


def test_the_confirmation_page_of_drive_is_passed(drive: Any, fetch: Fetch, target: Path, weights: bytes) -> None:
    drive.put(b"", page(CONFIRM_PAGE.format(action=f"{drive.url}/download")), path="/uc")
    drive.put(weights, path="/download", headers=ATTACHMENT)
    fetch(drive_source())
    assert target.read_bytes() == weights
    assert drive.requests[1].path == "/download?id=FILE&export=download&confirm=t&uuid=u-1"


def test_a_dropped_download_from_drive_is_resumed(
    drive: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    drive.put(weights, acts.drop(70_000), path="/uc", headers=ATTACHMENT)
    fetch(drive_source())
    assert drive.ranges() == [None, "bytes=70000-"]
    assert target.read_bytes() == weights


@pytest.mark.parametrize("known", [True, False])
def test_bytes_of_an_earlier_run_from_drive_are_used_only_if_the_digest_is_known(
    known: bool, drive: Any, acts: Any, fetch: Fetch, target: Path, weights: bytes
) -> None:
    drive.put(weights, acts.drop(70_000), *[acts.status(404)] * 9, path="/uc", headers=ATTACHMENT)
    with pytest.raises(DownloadError):
        fetch(drive_source(), pinned=hashlib.sha256(weights).hexdigest())
    drive.files["/uc"].next_acts.clear()
    fetch(drive_source(), pinned=hashlib.sha256(weights).hexdigest() if known else None)
    assert (drive.ranges()[-1] == "bytes=70000-") is known
    assert target.read_bytes() == weights


@pytest.mark.parametrize(
    ("text", "reason"), [(QUOTA_PAGE, "Too many users"), ("<html>Sign in</html>", "Cannot retrieve the public link")]
)
def test_a_page_of_drive_that_leads_nowhere_is_named(text: str, reason: str, drive: Any, fetch: Fetch) -> None:
    drive.put(b"", *[page(text)] * 9, path="/uc")
    with pytest.raises(DownloadError, match=f"Google Drive .*Failed to retrieve file url: {reason}"):
        fetch(drive_source())


def test_text_of_a_server_cannot_command_the_terminal(drive: Any, fetch: Fetch) -> None:
    text = '<p class="uc-error-subcaption">\x1b[2J red \x07<b>alert</b></p>'
    drive.put(b"", *[page(text)] * 9, path="/uc")
    with pytest.raises(DownloadError, match="red alert") as caught:
        fetch(drive_source())
    assert str(caught.value).isprintable()


def test_the_size_on_drive_is_found_behind_its_page(drive: Any, weights: bytes, limits: Limits) -> None:
    drive.put(b"", page(CONFIRM_PAGE.format(action=f"{drive.url}/download")), path="/uc")
    drive.put(weights, path="/download", headers=ATTACHMENT)
    [offer] = remote_offers([drive_source()], limits)
    assert offer.size == len(weights)


def test_a_proxy_of_the_environment_is_used(
    server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.put(weights, path="http://weights.invalid/model.pth")
    fetch(Source("URL", "http://weights.invalid/model.pth"))
    assert target.read_bytes() == weights


def test_a_proxy_that_cannot_be_used_is_named(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(DownloadError, match="gopher"):
        fetch(Source("URL", "http://weights.invalid/model.pth"))


def test_sizes_are_found_without_the_file_being_sent(server: Any, weights: bytes, limits: Limits) -> None:
    [offer] = remote_offers([server.put(weights)], limits)
    assert (offer.size, offer.problem) == (len(weights), None)
    assert [request.range for request in server.requests] == ["bytes=0-511"]


def test_a_server_without_ranges_states_its_size_too(server: Any, acts: Any, weights: bytes, limits: Limits) -> None:
    server.put(weights)

    def ignore_range(handler: Any, file: Any) -> None:
        acts.ignore_range(handler, file)

    ignore_range.on_probe = True  # type: ignore[attr-defined]
    [offer] = remote_offers([server.put(weights, ignore_range)], limits)
    assert offer.size == len(weights)


def test_the_size_of_a_page_is_not_taken_for_that_of_weights(
    server: Any, other_server: Any, weights: bytes, limits: Limits
) -> None:
    page_offer, offer = remote_offers([server.put(b"<html>" + bytes(999)), other_server.put(weights)], limits)
    assert page_offer.size is None
    assert "HTML page" in str(page_offer.problem)
    assert offer.size == len(weights)


def test_sizes_that_nobody_states_are_an_error(server: Any, acts: Any, limits: Limits) -> None:
    with pytest.raises(DownloadError, match="HTTP 404"):
        remote_offers([server.put(b"", acts.status(404))], limits)


def test_a_file_fetched_by_other_means_is_verified_recorded_and_copied(
    fetch: Fetch, target: Path, tmp_path: Path, weights: bytes
) -> None:
    (tmp_path / "got.pth").write_bytes(weights)
    got = fetch(Source("file", str(tmp_path / "got.pth"), "file"))
    assert (got.fetched, got.origin) == (True, "first use")
    assert target.read_bytes() == weights
    assert (tmp_path / "got.pth").read_bytes() == weights
    assert f'"source": "file {tmp_path}/got.pth"' in record_path(target).read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"<html>" + bytes(2000), "HTML page"), (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
     (b"PK\x03\x04" + bytes(2000), "truncated"), (None, "not a file")],
)  # fmt: skip
def test_a_file_fetched_by_other_means_that_is_not_weights_leaves_the_old_file(
    content: bytes | None, reason: str, fetch: Fetch, target: Path, tmp_path: Path, old_file: bytes
) -> None:
    if content is not None:
        (tmp_path / "got.pth").write_bytes(content)
    with pytest.raises(DownloadError, match=f"got.pth: .*{reason}"):
        fetch(Source("file", str(tmp_path / "got.pth"), "file"), force=True)
    assert target.read_bytes() == old_file


def test_a_file_fetched_by_other_means_is_held_to_the_pinned_digest(
    fetch: Fetch, target: Path, tmp_path: Path, weights: bytes
) -> None:
    (tmp_path / "got.pth").write_bytes(weights)
    with pytest.raises(DownloadError, match=r"expected 0+ \(pinned\)"):
        fetch(Source("file", str(tmp_path / "got.pth"), "file"), pinned="0" * 64)
    assert not target.exists()
