"""Where weights can be had, in the order in which they are asked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from meddinov3_stroke.download.packages import Package
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.digest import sha256_of_bytes

DRIVE_URL = "https://drive.google.com/uc"
"""Answers `?id=…&export=download` with a small file itself and with a confirmation page for a large one."""


@dataclass(frozen=True)
class HubAccess:
    """What huggingface_hub says of its environment: HF_ENDPOINT, the token, HF_HUB_OFFLINE."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    offline: bool = False


@dataclass(frozen=True)
class Source:
    """One place to ask. Its URL and headers may hold secrets: only `where` is shown and stored."""

    name: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    confirms: bool = False
    """Whether large files stand behind a page with a form (Google Drive)."""
    skipped: str | None = None
    """Why this source is not asked at all."""

    @property
    def where(self) -> str:
        """The URL without user, password and query."""
        return without_secrets(self.url)

    @property
    def key(self) -> str:
        """Digest of the URL: whether a part file came from here."""
        return sha256_of_bytes(self.url.encode("utf-8"))

    def __str__(self) -> str:
        return f"{self.name} ({self.where})"


def without_secrets(url: str) -> str:
    """Scheme, host and path of a URL; user, password, query and fragment may hold secrets."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "not a URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def configured_sources(
    package: Package,
    hub: HubAccess,
    *,
    url: str | None = None,
    hf_repo: str | None = None,
    gdrive_file_id: str | None = None,
    drive_url: str = DRIVE_URL,
) -> list[Source]:
    """The sources that are set, in the order URL, Hugging Face, Google Drive.

    Raises:
        UsageError: the Hugging Face repository's name is none.
    """
    sources = []
    if url:
        sources.append(_url_source(url, drive_url))
    if hf_repo:
        sources.append(_hub_source(hf_repo, package.hub_file, hub))
    if gdrive_file_id:
        sources.append(_drive_source(gdrive_file_id, drive_url))
    return sources


def _url_source(url: str, drive_url: str) -> Source:
    file_id = _drive_id(url)
    return _drive_source(file_id, drive_url) if file_id else Source("URL", url)


def _drive_id(url: str) -> str | None:
    """The file id in a link to Google Drive; None for any other URL."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    if host not in ("drive.google.com", "docs.google.com"):
        return None
    from gdown.parse_url import parse_url

    with warnings.catch_warnings():  # gdown 5 warns of links to the viewer, which are fine here
        warnings.simplefilter("ignore")
        file_id, _ = parse_url(url)
    return str(file_id) if file_id else None


def _hub_source(repo: str, file: str, hub: HubAccess) -> Source:
    from huggingface_hub import hf_hub_url

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"MEDDINOV3_HF_REPO: found {repo!r}, expected owner/name; correct it in .env")
    return Source(
        "Hugging Face",
        hf_hub_url(repo, file, endpoint=hub.endpoint),
        headers={"Authorization": f"Bearer {hub.token}"} if hub.token else {},
        skipped="not asked: HF_HUB_OFFLINE is set" if hub.offline else None,
    )


def _drive_source(file_id: str, drive_url: str) -> Source:
    query = urlencode({"id": file_id, "export": "download"})
    return Source("Google Drive", f"{drive_url}?{query}", confirms=True)
