"""The sources of the weights: plain URLs, Hugging Face, Google Drive, and a file fetched by other means.

`huggingface_hub` and `gdown` do the transfers. `hf_hub_download` deletes a partial file when it is interrupted; a file
on the Hub is then fetched from its plain address, where transfers resume across runs.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meddinov3_stroke.errors import DownloadError, MedDINOError, StorageError, UsageError
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.contents import HEAD_BYTES, describe_impostor
from meddinov3_stroke.system.digest import sha256_of_document

if TYPE_CHECKING:
    from meddinov3_stroke.config import Settings

LOGGER = logging.getLogger("meddinov3_stroke")
HUB = "https://huggingface.co"
HUB_FILE = "model.pth"
"""File in the Hugging Face repository (FACTS: MedDINOv3 README)."""
MOST_BYTES = 8 << 30
_TRANSIENT = frozenset({None, 408, 425, 429, 500, 502, 503, 504})
_DISK_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EACCES)

Report = Callable[[int, int | None], None]
"""Called with the bytes fetched so far and the bytes of the whole file, where these are known."""


@dataclass(frozen=True)
class Limits:
    """Times in seconds."""

    connect_s: float = 10.0
    read_s: float = 30.0
    """Silence after which a connection is dropped and the transfer resumed."""
    retries: int = 3
    backoff_s: float = 1.0
    """Wait before the first retry; doubles with each one."""
    lock_wait_s: float = 3600.0
    least_bytes: int = 80_000_000
    """ViT-B/16 has 85.64 M parameters (FACTS): a smaller file has less than one byte for each."""


class SourceFailed(DownloadError):
    """One source failed; the next one is tried, and the reasons are reported together when none is left."""

    def __init__(self, reason: str, *, retry: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry, self.wait_s = retry, wait_s


@dataclass(frozen=True)
class Offer:
    """What a source states of its file, or why it has none."""

    source: Source
    size: int | None = None
    stated_sha256: str | None = None
    version: str | None = None
    """Strong ETag, else date of the last change (RFC 9110, 13.1.5)."""
    problem: str | None = None

    def check(self, folder: Path, sha256: str | None) -> None:
        """Refuse a file that is too large for us or the disk, or whose stated digest is not `sha256`."""
        if self.size is not None and self.size > MOST_BYTES:
            raise SourceFailed(f"too large: {self.size} bytes, expected at most {MOST_BYTES}")
        if sha256 and self.stated_sha256 not in (None, sha256):
            raise SourceFailed(f"it offers sha256 {self.stated_sha256}, expected {sha256}")
        free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in folder.glob("file*"))
        if self.size is not None and self.size > free:
            raise StorageError(
                f"cannot write to {folder.parent}: found {free} bytes free, expected {self.size}; free space, or "
                "choose another place with --output"
            )


@dataclass(frozen=True)
class Source:
    """A file at a URL. URL and token may hold secrets: only `str(source)` is shown and stored."""

    name: str
    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    skipped: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({_without_secrets(self.url)})"

    def offer(self, limits: Limits) -> Offer:
        """What the server states of the file; only its first bytes are read, to refuse what is not weights."""
        import requests

        if not re.match(r"https?://[^/\s]", self.url):
            raise SourceFailed("not an http or https URL")
        headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}", "Accept-Encoding": "identity"}
        timeout = (limits.connect_s, limits.read_s)
        with _library_failures(), requests.get(self.url, headers=headers, timeout=timeout, stream=True) as answer:
            answer.raise_for_status()
            if self.url.startswith("https:") and "http:" in {hop.url[:5] for hop in (*answer.history, answer)}:
                raise SourceFailed("it redirects from https to http, where the file could be altered on the way")
            refuse_impostor(next(answer.iter_content(HEAD_BYTES), b""))
            length, etag = answer.headers.get("Content-Length", ""), answer.headers.get("ETag", "")
            size = answer.headers.get("Content-Range", length).rpartition("/")[2]
            version = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
            return Offer(self, int(size) if size.isdecimal() else None, version=version)

    def fetch(self, folder: Path, limits: Limits, sha256: str | None, report: Report) -> tuple[Path, str | None]:
        """The complete file, not verified yet, and the sha256 that the source states of it.

        Raises:
            SourceFailed: the source refuses, sends something else, or keeps failing.
            StorageError: the disk is too small.
        """
        for attempt in range(limits.retries):
            try:
                return self._attempt(folder, limits, sha256, report), None
            except SourceFailed as failure:
                if not failure.retry:
                    raise
                wait_s = max(failure.wait_s, limits.backoff_s * 2**attempt)
                LOGGER.info("%s: %s; retrying in %.1f s", self.name, failure, wait_s)
                time.sleep(wait_s)
        return self._attempt(folder, limits, sha256, report), None

    def _attempt(self, folder: Path, limits: Limits, sha256: str | None, report: Report) -> Path:
        """The file; bytes of an earlier attempt or run are built upon if the server still has the same version."""
        offer = self.offer(limits)
        offer.check(folder, sha256)
        document = {"source": self.url, "version": offer.version, "size": offer.size}
        version, note = sha256_of_document(document), folder / "version"
        if not offer.version or not note.exists() or note.read_bytes() != version.encode() or len(_held(folder)) > 1:
            _discard(folder)
        write_text(note, version)
        resumed = bool(_held(folder))
        try:  # without a version gdown must not retry, as it would resume all the same
            _gdown(self.url, str(folder / "file"), limits, report, limits.retries if offer.version else 0)
        except SourceFailed as failure:
            if resumed and "byte range" in str(failure):  # the server cannot resume
                _discard(folder)
            raise
        if offer.version and self.offer(limits).version != offer.version:  # gdown does not check what If-Range returned
            _discard(folder)
            raise SourceFailed("the file changed during the transfer", retry=True)
        return folder / "file"


@dataclass(frozen=True)
class HubSource(Source):
    """A file on the Hugging Face Hub or a mirror of it, fetched by `hf_hub_download`."""

    repo: str = ""
    endpoint: str = HUB

    def offer(self, limits: Limits) -> Offer:
        """Size and digest from the Hub's metadata."""
        from huggingface_hub import get_hf_file_metadata

        with _library_failures():
            found = get_hf_file_metadata(self.url, token=self.token, timeout=limits.connect_s, endpoint=self.endpoint)
        etag = found.etag or ""
        return Offer(self, found.size, etag if re.fullmatch("[0-9a-f]{64}", etag) else None)

    def fetch(self, folder: Path, limits: Limits, sha256: str | None, report: Report) -> tuple[Path, str | None]:
        """The file as `hf_hub_download` leaves it; after an interrupted transfer, the plain address is used."""
        from huggingface_hub import hf_hub_download

        staging = folder / "hub"
        if staging.exists():
            shutil.rmtree(staging)
            raise SourceFailed("an earlier transfer was interrupted; using the plain address, where it can resume")
        offer = self.offer(limits)
        offer.check(folder, sha256)
        options: dict[str, Any] = {"endpoint": self.endpoint, "token": self.token, "etag_timeout": limits.connect_s}
        try:
            with _library_failures():
                path = hf_hub_download(self.repo, HUB_FILE, local_dir=staging, **options)
        except (SourceFailed, OSError):
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return Path(path), offer.stated_sha256


@dataclass(frozen=True)
class DriveSource(Source):
    """A file on Google Drive, fetched by `gdown`, which passes the confirmation page."""

    def offer(self, limits: Limits) -> Offer:
        """The size; the transfer is stopped after its first chunk."""
        buffer, sizes = io.BytesIO(), []

        def stop(done: int, total: int | None) -> None:
            sizes.append(total)
            raise SourceFailed("stopped")

        try:
            _gdown(self.url, buffer, limits, stop)
        except SourceFailed:
            if not sizes:
                raise
        refuse_impostor(buffer.getvalue()[:HEAD_BYTES])
        return Offer(self, sizes[0])

    def _attempt(self, folder: Path, limits: Limits, sha256: str | None, report: Report) -> Path:
        """The file; bytes of an earlier run are built upon only if the sha256 is known, as Drive states no version."""
        (folder / "version").unlink(missing_ok=True)  # what is held is no longer that of a URL
        if not sha256 or len(_held(folder)) > 1:
            _discard(folder)
        _gdown(self.url, str(folder / "file"), limits, report, limits.retries)
        return folder / "file"


@dataclass(frozen=True)
class FileSource(Source):
    """A file fetched by other means; `url` is its path."""

    def __str__(self) -> str:
        return f"file {self.url}"

    def offer(self, limits: Limits) -> Offer:
        """The size of the file."""
        if not Path(self.url).is_file():
            raise SourceFailed("not a file")
        return Offer(self, Path(self.url).stat().st_size)

    def _attempt(self, folder: Path, limits: Limits, sha256: str | None, report: Report) -> Path:
        self.offer(limits).check(folder, sha256)
        return Path(shutil.copyfile(self.url, folder / "copy"))


def configured_sources(settings: Settings) -> list[Source]:
    """The sources in the order they are tried: MEDDINOV3_URL, Hugging Face or its mirrors, Google Drive.

    Raises:
        UsageError: MEDDINOV3_HF_REPO is not owner/name.
    """
    given = re.split(r"[,\s]+", f"{settings.hf_endpoint or ''} {settings.hf_mirror or ''}")
    mirrors = [(url if "://" in url else f"https://{url}").rstrip("/") for url in dict.fromkeys(given) if url]
    sources: list[Source] = []
    for url in re.split(r"[,\s]+(?=\w+://)", (settings.meddinov3_url or "").strip()):
        if re.match(r"https://(drive|docs)\.google\.com/", url):
            sources.append(_drive_source(url))
        elif url.startswith(f"{HUB}/"):
            sources += [Source("URL", mirror + url.removeprefix(HUB)) for mirror in mirrors or [HUB]]
        elif url:
            sources.append(Source("URL", url))
    if settings.meddinov3_hf_repo:
        for mirror in mirrors or [HUB]:
            sources += _hub_sources(settings.meddinov3_hf_repo, mirror, settings.huggingface_token)
    links = (settings.meddinov3_gdrive_url, settings.meddinov3_gdrive_file_id)
    return list(dict.fromkeys([*sources, *map(_drive_source, filter(None, links))]))


def _hub_sources(repo: str, endpoint: str, token: str | None) -> list[Source]:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import logging

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"MEDDINOV3_HF_REPO: found {repo!r}, expected owner/name; correct it in .env")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings print URLs with their secrets
    url = hf_hub_url(repo, HUB_FILE, endpoint=endpoint)
    hub = HubSource("Hugging Face", url, token, repo=repo, endpoint=endpoint)
    if constants.HF_HUB_OFFLINE:
        return [replace(hub, skipped="not used: HF_HUB_OFFLINE is set")]
    return [hub, Source("Hugging Face, plain address", url)]


def _drive_source(link: str) -> DriveSource:
    return DriveSource("Google Drive", link if "/" in link else f"https://drive.google.com/uc?id={link}")


def refuse_impostor(head: bytes) -> None:
    """Raise `SourceFailed`, saying what it is, for a file that cannot be weights by its first `HEAD_BYTES` bytes."""
    if found := describe_impostor(head):
        raise SourceFailed(f"it is {found}")
    if not (head.startswith((b"PK\x03\x04", b"\x80")) or head[8:9] == b"{"):
        raise SourceFailed(f"not a weights file: it begins with {head[:16]!r}")


def _gdown(url: str, output: str | io.BytesIO, limits: Limits, report: Report, retries: int = 0) -> None:
    """Let `gdown` write the file `output`, or complete what an earlier attempt left of it in `<output>*.part`."""
    import gdown

    if isinstance(output, str) and Path(output).exists():  # renamed by gdown once it was complete
        return

    def progress(done: int, total: int | None) -> None:
        if max(done, total or 0) > MOST_BYTES:
            raise SourceFailed(f"too large: more than {MOST_BYTES} bytes")
        report(done, total)

    options: dict[str, Any] = {"timeout": (limits.connect_s, limits.read_s), "retries": retries, "progress": progress}
    with _library_failures():
        gdown.download(url, output, quiet=True, use_cookies=False, resume=isinstance(output, str), **options)


def _held(folder: Path) -> list[Path]:
    return list(folder.glob("file*"))


def _discard(folder: Path) -> None:
    for file in _held(folder):
        file.unlink()


@contextmanager
def _library_failures() -> Iterator[None]:
    """Turn whatever a library raises into `SourceFailed`, except trouble with the disk."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MedDINOError) or (isinstance(error, OSError) and error.errno in _DISK_ERRORS):
            raise
        answer: Any = getattr(error, "response", None)
        status, wait = getattr(answer, "status_code", None), ""
        reason = _printable(str(error)) or type(error).__name__
        if status is not None:
            wait = answer.headers.get("Retry-After", "")
            login = "accept the terms on the file's page and set HF_TOKEN; " if status in (401, 403) else ""
            reason = f"HTTP {status}: {login}{reason}"
        retry = status in _TRANSIENT and "CERTIFICATE_VERIFY_FAILED" not in reason
        raise SourceFailed(reason, retry=retry, wait_s=min(float(wait), 60.0) if wait.isdecimal() else 0.0) from error


def _without_secrets(url: str) -> str:
    """Scheme, host and path of a URL; user, password, query and fragment may hold secrets."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "not a URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _printable(text: str) -> str:
    """Text of a server or library on one line, without markup, control characters and secrets in URLs."""
    text = re.sub(r"https?://\S+", lambda url: _without_secrets(url[0]), re.sub(r"<[^>]*>", "", text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
