"""Asking a server for a file or the rest of it, and reading what it promises before its body is read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from meddinov3_stroke.download.contents import HEAD_BYTES
from meddinov3_stroke.download.failures import SourceFailed
from meddinov3_stroke.download.limits import Limits
from meddinov3_stroke.download.sources import Source
from meddinov3_stroke.errors import MachineError

RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a later attempt may change."""

_HINTS = {
    401: "it asks for a login: accept the terms on its page and set HF_TOKEN",
    403: "no permission, or a quota is used up",
    404: "no such file there",
}
_LARGEST_PAGE = 1 << 20
"""Bytes of a confirmation page that are read."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a server promises of a file; the body is still unread."""

    response: httpx.Response
    start: int
    """Where in the file the body begins."""
    total: int | None
    """Bytes of the whole file."""
    validator: str | None
    """Strong ETag, else Last-Modified."""
    stated_sha256: str | None
    """Digest that Hugging Face states of the file."""
    ends: bool
    """Whether a body cut short could be told from a whole one (it has a length, or is chunked)."""


def make_client(limits: Limits) -> httpx.Client:
    """An HTTP client that follows redirects and honours the usual proxy and certificate variables.

    Raises:
        MachineError: these variables name a proxy or certificates that cannot be used.
    """
    try:
        return httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(limits.stall_s),
            headers={"User-Agent": "meddinov3-stroke", "Accept-Encoding": "identity"},
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise MachineError(
            f"the proxy or certificate settings of the environment cannot be used: {_printable(str(error))}; correct "
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR"
        ) from error


@contextmanager
def ask(client: httpx.Client, source: Source, headers: dict[str, str], limits: Limits) -> Iterator[Answer]:
    """The answer to a GET of the source, past its confirmation page; what breaks in the body fails as the source does.

    Raises:
        SourceFailed: no connection, a refusal, or an answer that cannot be used.
    """
    with _as_source_failures(limits):
        asked = {} if source.confirms else headers  # a range of the confirmation page would cut its form
        response = _send(client, source.url, {**source.headers, **asked})
        try:
            if source.confirms and response.headers.get("Content-Type", "").startswith("text/html"):
                url = _confirmed_url(response)
                response.close()
                response = _send(client, url, headers)
            yield read_answer(response)
        finally:
            response.close()


def read_answer(response: httpx.Response) -> Answer:
    """The promises in a response's status and headers.

    Raises:
        SourceFailed: a refusal, a compressed body, a redirect from https to http, or a range that was not asked for.
    """
    _refuse_status(response)
    hops = [*response.history, response]
    _refuse_downgrade(*(hop.url for hop in hops))
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceFailed(f"it sends the file compressed ({_printable(response.headers['Content-Encoding'])})")
    start, total = _extent(response)
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return Answer(response, start, total, _validator(response), _stated_sha256(hops), chunked or total is not None)


def read_head(chunks: Iterator[bytes]) -> bytes:
    """The first chunks, joined: at least `HEAD_BYTES` bytes where the body has as many."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    return head


def range_headers(start: int, validator: str | None) -> dict[str, str]:
    """Headers that ask for the file from byte `start` on, if it is still the one with this validator."""
    if start == 0 or validator is None:
        return {}
    return {"Range": f"bytes={start}-", "If-Range": validator}


def _send(client: httpx.Client, url: str, headers: dict[str, str]) -> httpx.Response:
    return client.send(client.build_request("GET", url, headers=headers), stream=True)


@contextmanager
def _as_source_failures(limits: Limits) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise SourceFailed(f"silent for {limits.stall_s:g} s", retryable=True) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise SourceFailed("no http or https URL") from error
    except httpx.TransportError as error:
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
        raise SourceFailed(_printable(str(error)) or type(error).__name__, retryable=not untrusted) from error
    except httpx.HTTPError as error:
        raise SourceFailed(_printable(str(error)) or type(error).__name__) from error


def _refuse_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    said = response.headers.get("X-Error-Message") or _HINTS.get(status, "")
    reason = f"HTTP {status} {response.reason_phrase}" + (f": {_printable(said)}" if said else "")
    if status == 416:  # the range asked for lies outside the file, so what is held is no part of it
        raise SourceFailed(reason, retryable=True, spoiled=True)
    raise SourceFailed(reason, retryable=status in RETRYABLE_STATUSES, wait_s=_retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float:
    said = response.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        raise SourceFailed("it sends a part of the file and does not say which", retryable=True, spoiled=True)
    return int(found[1]), None if found[3] == "*" else int(found[3])


def _validator(response: httpx.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return None if modified is None else str(modified)


def _stated_sha256(hops: list[httpx.Response]) -> str | None:
    """Hugging Face states the sha256 of a large file as the ETag of the linked one, in its own answer or redirect."""
    tags = [hop.headers.get("X-Linked-ETag", "").strip('"').lower() for hop in hops]
    return next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{64}", tag)), None)


def _confirmed_url(response: httpx.Response) -> str:
    """Where the form on Google Drive's page leads; the page may name a quota instead."""
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    _refuse_status(response)
    page = bytearray()
    for chunk in response.iter_raw():
        page += chunk
        if len(page) > _LARGEST_PAGE:
            break
    try:
        url = get_url_from_gdrive_confirmation(page[:_LARGEST_PAGE].decode("utf-8", "replace"))
    except FileURLRetrievalError as error:
        said = _printable(re.sub(r"<[^>]*>", "", str(error)))
        raise SourceFailed(f"an HTML page instead of weights (quota or permission): {said}") from error
    target = response.url.join(url)
    _refuse_downgrade(response.url, target)
    return str(target)


def _refuse_downgrade(*hops: httpx.URL) -> None:
    if hops[0].scheme == "https" and any(hop.scheme != "https" for hop in hops):
        raise SourceFailed("it leads from https to http, where anyone on the way could change the file")


def _printable(text: str, longest: int = 200) -> str:
    """Text of a server on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]
