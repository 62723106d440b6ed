"""The sources of the weights: plain URLs, Hugging Face, Google Drive and local files.

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from meddinov3_stroke.errors import DownloadError, MedDINOError, StorageError, UsageError
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.digest import HEAD_BYTES, describe_impostor, sha256_of_document

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
    """Times in seconds, as in `config.Settings` and `--lock-wait`."""

    connect_s: float = 10.0
    read_s: float = 30.0
    retries: int = 3
    backoff_s: float = 1.0
    lock_wait_s: float = 3600.0
    least_bytes: int = 80_000_000
    """ViT-B/16 has 85.64 M parameters (FACTS): a smaller file has less than one byte for each."""


class SourceFailed(DownloadError):
    """One source failed; the next one is tried, and the reasons are reported together when none is left."""

    def __init__(self, reason: str, *, retry: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry, self.wait_s = retry, wait_s


class _EnoughRead(Exception):
    """Ends a transfer of which only the first bytes are wanted."""


@dataclass(frozen=True)
class Source:
    """A file at a URL or, of the kind `file`, a path. URL and token may be secret: only `str(source)` is shown."""

    name: str
    url: str = field(repr=False)
    kind: Literal["url", "hub", "drive", "file"] = "url"
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"file {self.url}" if self.kind == "file" else f"{self.name} ({_without_secrets(self.url)})"


@dataclass(frozen=True)
class Offer:
    """What a source states of its file, or why it has none."""

    source: Source
    size: int | None = None
    stated_sha256: str | None = None
    version: str | None = None
    """Strong ETag, else date of the last change (RFC 9110, 13.1.5)."""
    problem: str | None = None


def configured_sources(settings: Settings) -> list[Source]:
    """The sources in the order they are tried: MEDDINOV3_URL, Hugging Face or its mirrors, Google Drive.

    Raises UsageError unless MEDDINOV3_HF_REPO is owner/name.
    """
    from huggingface_hub import constants

    given = re.split(r"[,\s]+", f"{settings.hf_endpoint or ''} {settings.hf_mirror or ''}")
    mirrors = [(url if "://" in url else f"https://{url}").rstrip("/") for url in given if url] or [HUB]
    sources: list[Source] = []
    for url in filter(None, re.split(r"[,\s]+(?=\w+://)", (settings.meddinov3_url or "").strip())):
        if url.startswith(f"{HUB}/"):
            sources += [Source("URL", mirror + url.removeprefix(HUB)) for mirror in mirrors]
        else:
            on_drive = re.match(r"https://(drive|docs)\.google\.com/", url)
            sources.append(_drive_source(url) if on_drive else Source("URL", url))
    repo = settings.meddinov3_hf_repo
    if repo and not re.fullmatch("[^/]+/[^/]+", repo):
        raise UsageError(f"MEDDINOV3_HF_REPO: found {repo!r}, expected owner/name; correct it in .env")
    for mirror in mirrors if repo else []:
        url = f"{mirror}/{repo}/resolve/main/{HUB_FILE}"
        sources.append(Source("Hugging Face", url, "hub", settings.huggingface_token))
        if not constants.HF_HUB_OFFLINE:
            sources.append(Source("Hugging Face, plain address", url))
    links = (settings.meddinov3_gdrive_url, settings.meddinov3_gdrive_file_id)
    return list(dict.fromkeys([*sources, *map(_drive_source, filter(None, links))]))


def _drive_source(link: str) -> Source:
    return Source("Google Drive", link if "/" in link else f"https://drive.google.com/uc?id={link}", "drive")


def remote_offer(source: Source, limits: Limits) -> Offer:
    """What `source` states of its file; at most the first bytes are read. Raises SourceFailed if it has no weights."""
    with _library_failures():
        if source.kind == "file":
            if not Path(source.url).is_file():
                raise SourceFailed("not a file")
            return Offer(source, Path(source.url).stat().st_size)
        return {"url": _url_offer, "hub": _hub_offer, "drive": _drive_offer}[source.kind](source, limits)


def _url_offer(source: Source, limits: Limits) -> Offer:
    import requests

    if not re.match(r"https?://[^/\s]", source.url):
        raise SourceFailed("not an http or https URL")
    headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}", "Accept-Encoding": "identity"}
    with requests.get(source.url, headers=headers, timeout=(limits.connect_s, limits.read_s), stream=True) as answer:
        answer.raise_for_status()
        if source.url.startswith("https:") and "http:" in {hop.url[:5] for hop in (*answer.history, answer)}:
            raise SourceFailed("it redirects from https to http, where the file could be altered on the way")
        refuse_impostor(next(answer.iter_content(HEAD_BYTES), b""))
        length, etag = answer.headers.get("Content-Length", ""), answer.headers.get("ETag", "")
        size = answer.headers.get("Content-Range", length).rpartition("/")[2]
        version = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
        return Offer(source, int(size) if size.isdecimal() else None, version=version)


def _hub_offer(source: Source, limits: Limits) -> Offer:
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.utils import logging

    if constants.HF_HUB_OFFLINE:
        raise SourceFailed("not used: HF_HUB_OFFLINE is set")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings print URLs with their secrets
    endpoint = source.url.rsplit("/", 5)[0]
    found = get_hf_file_metadata(source.url, token=source.token, timeout=limits.connect_s, endpoint=endpoint)
    return Offer(source, found.size, found.etag if re.fullmatch("[0-9a-f]{64}", found.etag or "") else None)


def _drive_offer(source: Source, limits: Limits) -> Offer:
    buffer, sizes = io.BytesIO(), []

    def stop(done: int, total: int | None) -> None:
        sizes.append(total)
        raise _EnoughRead

    with suppress(_EnoughRead):
        _gdown(source.url, buffer, limits, stop)
    refuse_impostor(buffer.getvalue()[:HEAD_BYTES])
    return Offer(source, sizes[0])


def fetch(source: Source, folder: Path, limits: Limits, sha256: str | None, report: Report) -> tuple[Path, str | None]:
    """The complete file, not verified yet, and the sha256 that the source states of it.

    Raises SourceFailed if the source refuses, sends something else or keeps failing, StorageError for a small disk.
    """
    attempt, retries = 0, limits.retries if source.kind in ("url", "drive") else 0
    while True:
        try:
            with _library_failures():
                return _attempt(source, folder, limits, sha256, report)
        except SourceFailed as failure:
            if not failure.retry or attempt == retries:
                raise
            wait_s = max(failure.wait_s, limits.backoff_s * 2**attempt)
            LOGGER.info("%s: %s; retrying in %.1f s", source.name, failure, wait_s)
            time.sleep(wait_s)
            attempt += 1


def _attempt(
    source: Source, folder: Path, limits: Limits, sha256: str | None, report: Report
) -> tuple[Path, str | None]:
    offer = Offer(source) if source.kind == "drive" else remote_offer(source, limits)
    size, free = offer.size or 0, shutil.disk_usage(folder).free + sum(file.stat().st_size for file in _held(folder))
    if size > MOST_BYTES:
        raise SourceFailed(f"too large: {size} bytes, expected at most {MOST_BYTES}")
    if sha256 and offer.stated_sha256 not in (None, sha256):
        raise SourceFailed(f"it offers sha256 {offer.stated_sha256}, expected {sha256}")
    if size > free:
        where = f"cannot write to {folder.parent}: found {free} bytes free, expected {size}"
        raise StorageError(f"{where}; free space, or choose another place with --output")
    if source.kind == "hub":
        return _fetch_from_hub(source, folder / "hub", limits, report), offer.stated_sha256
    if source.kind == "file":
        return Path(shutil.copyfile(source.url, folder / "copy")), None
    return _fetch_resumably(offer, folder, limits, sha256, report), None


def _fetch_from_hub(source: Source, staging: Path, limits: Limits, report: Report) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Reported(tqdm):  # draws no bar of its own
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self.update(0)

        def update(self, n: int | float | None = 1) -> None:
            self.n += n or 0
            report(int(self.n), None if self.total is None else int(self.total))

    if staging.exists():
        shutil.rmtree(staging)
        raise SourceFailed("an earlier transfer was interrupted; using the plain address, where it can resume")
    endpoint, owner, name, *_ = source.url.rsplit("/", 5)
    options: dict[str, Any] = {"endpoint": endpoint, "token": source.token, "etag_timeout": limits.connect_s}
    options["tqdm_class"] = Reported
    return Path(hf_hub_download(f"{owner}/{name}", HUB_FILE, local_dir=staging, **options))


def _fetch_resumably(offer: Offer, folder: Path, limits: Limits, sha256: str | None, report: Report) -> Path:
    """Write `folder`/file; bytes of an earlier attempt or run are used only if the source still has that version.

    Google Drive states no version: there, those bytes are used only if the sha256 of the file is known.
    """
    source, on_drive, file = offer.source, offer.source.kind == "drive", folder / "file"
    version = sha256 if on_drive else offer.version
    stamp, note = sha256_of_document([source.url, version, offer.size]), folder / "version"
    if not version or not note.exists() or note.read_bytes() != stamp.encode() or len(_held(folder)) > 1:
        _discard(folder)
    write_text(note, stamp)
    resumed = bool(_held(folder))
    retries = limits.retries if version or on_drive else 0  # gdown resumes when it retries, version or none
    try:
        if not file.exists():  # renamed by gdown once it was complete
            _gdown(source.url, str(file), limits, report, retries)
    except Exception as error:
        if resumed and "byte range" in str(error):  # the server cannot resume
            _discard(folder)
        raise
    if not on_drive and version and remote_offer(source, limits).version != version:  # gdown trusts If-Range
        _discard(folder)
        raise SourceFailed("the file changed during the transfer", retry=True)
    return file


def _gdown(url: str, output: str | io.BytesIO, limits: Limits, report: Report, retries: int = 0) -> None:
    """Let `gdown` write the file `output`, or complete what an earlier attempt left of it in `<output>*.part`."""
    import gdown

    def progress(done: int, total: int | None) -> None:
        if max(done, total or 0) > MOST_BYTES:
            raise SourceFailed(f"too large: more than {MOST_BYTES} bytes")
        report(done, total)

    options: dict[str, Any] = {"timeout": (limits.connect_s, limits.read_s), "retries": retries, "progress": progress}
    gdown.download(url, output, quiet=True, use_cookies=False, resume=isinstance(output, str), **options)


def _held(folder: Path) -> list[Path]:
    return list(folder.glob("file*"))


def _discard(folder: Path) -> None:
    for file in _held(folder):
        file.unlink()


def refuse_impostor(head: bytes) -> None:
    """Raise `SourceFailed` for a file that cannot be weights, saying what it is by its first `HEAD_BYTES` bytes."""
    if found := describe_impostor(head):
        raise SourceFailed(f"it is {found}")
    if not (head.startswith((b"PK\x03\x04", b"\x80")) or head[8:9] == b"{"):
        raise SourceFailed(f"not a weights file: it begins with {head[:16]!r}")


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
        # on one line, without markup, control characters and secrets in URLs
        text = re.sub(r"https?://\S+", lambda url: _without_secrets(url[0]), re.sub(r"<[^>]*>", "", str(error)))
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
        reason = text or type(error).__name__
        if status is not None:
            wait = answer.headers.get("Retry-After", "")
            login = "accept the terms on the file's page and set HF_TOKEN; " if status in (401, 403) else ""
            reason = f"HTTP {status}: {login}{reason}"
        retry = status in _TRANSIENT and "CERTIFICATE_VERIFY_FAILED" not in reason
        raise SourceFailed(reason, retry=retry, wait_s=min(float(wait), 60.0) if wait.isdecimal() else 0.0) from error


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "not a URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"  # user, password, query may hold secrets
