"""A web server on the loopback that drops, lies and stalls on request, and small files that pass for weights."""

from __future__ import annotations

import io
import random
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.download import Download, Limits, Source, download_weights

PROBE = "bytes=0-511"
"""Range of the request that comes before a transfer."""

Act = Callable[[Any, "RemoteFile"], None]
"""How one request is answered."""


@dataclass
class RemoteFile:
    """A file on the server, and how the next requests for it are answered; honestly once that list is used up."""

    body: bytes
    etag: str | None = '"v1"'
    headers: dict[str, str] = field(default_factory=dict)
    next_acts: list[Act] = field(default_factory=list)
    code: int = 200
    """What a HEAD is answered with."""


@dataclass
class Request:
    """A request as it came."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        """Which bytes were asked for."""
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    """Serves `files` by path and remembers `requests`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, RemoteFile] = {}
        self.requests: list[Request] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, body: bytes, *acts: Act, path: str = "/model.pth", **fields: Any) -> Source:
        """The source of a file with these next answers."""
        self.files[path] = RemoteFile(body, next_acts=list(acts), **fields)
        return Source("URL", self.url + path)

    def ranges(self) -> list[str | None]:
        """The Range of each request except probes."""
        return [request.range for request in self.requests if request.range != PROBE]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is expected here."""


class Handler(BaseHTTPRequestHandler):
    """Answers as the file's next act says."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.path, headers))
        file = self.server.files.get(self.path) or self.server.files.get(self.path.split("?")[0])
        if file is None:
            status(404)(self, RemoteFile(b""))
            return
        act: Any = file.next_acts[0] if file.next_acts else honest
        if file.next_acts and (self.headers.get("Range") != PROBE or getattr(act, "on_probe", False)):
            file.next_acts.pop(0)
        elif file.next_acts:
            act = honest
        act(self, file)

    def do_HEAD(self) -> None:
        """What the Hub says of a file."""
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(f"HEAD {self.path}", headers))
        file = self.server.files.get(self.path)
        found = {"X-Repo-Commit": "c" * 40, "Content-Length": str(len(file.body))} if file else {}
        if file and file.etag:
            found["ETag"] = file.etag
        self.begin(file.code if file else 404, found | (file.headers if file else {}))

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def begin(self, code: int, headers: dict[str, str]) -> None:
        """Status line and headers."""
        self.send_response(code)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body: bytes) -> None:
        """Part of the body, on the wire at once."""
        self.wfile.write(body)
        self.wfile.flush()

    def hang_up(self) -> None:
        """Close the connection under the client's eyes."""
        self.connection.shutdown(socket.SHUT_RDWR)

    def asked_start(self, file: RemoteFile) -> int:
        """Where the range asked for begins, if it still holds for this file."""
        asked, held = self.headers.get("Range"), self.headers.get("If-Range")
        current = file.etag or file.headers.get("Last-Modified")
        return int(asked[6:].split("-")[0]) if asked and held in (None, current) else 0

    def promise(self, file: RemoteFile, start: int, size: int | None = None) -> None:
        """Headers of the file from `start` on; `size` lies about its length."""
        size = len(file.body) if size is None else size
        headers = {**file.headers, "Content-Length": str(size - start)}
        if file.etag:
            headers["ETag"] = file.etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.begin(206 if start else 200, headers)


def honest(handler: Handler, file: RemoteFile) -> None:
    """The range asked for; for a bounded range just the size, as a 206."""
    asked = handler.headers.get("Range")
    if asked and not asked.endswith("-"):
        first, last = map(int, asked[6:].split("-"))
        body = file.body[first : last + 1]
        extent = f"bytes {first}-{first + len(body) - 1}/{len(file.body)}"
        tag = {"ETag": file.etag} if file.etag else {}
        handler.begin(206, {**file.headers, **tag, "Content-Length": str(len(body)), "Content-Range": extent})
        handler.send(body)
        return
    start = handler.asked_start(file)
    if start >= len(file.body) > 0:
        handler.begin(416, {"Content-Range": f"bytes */{len(file.body)}", "Content-Length": "0"})
        return
    handler.promise(file, start)
    handler.send(file.body[start:])


def drop(after: int) -> Act:
    """Hang up after so many bytes."""

    def act(handler: Handler, file: RemoteFile) -> None:
        start = handler.asked_start(file)
        handler.promise(file, start)
        handler.send(file.body[start : start + after])
        handler.hang_up()

    return act


def stall(after: int) -> Act:
    """Say nothing more after so many bytes, until the test is over."""

    def act(handler: Handler, file: RemoteFile) -> None:
        start = handler.asked_start(file)
        handler.promise(file, start)
        handler.send(file.body[start : start + after])
        handler.server.release.wait(30)

    return act


def trickle(every_s: float) -> Act:
    """A byte now and then after the first kilobyte."""

    def act(handler: Handler, file: RemoteFile) -> None:
        handler.promise(file, 0)
        handler.send(file.body[:1024])
        for k in range(1024, len(file.body)):
            if handler.server.release.wait(every_s):
                return
            handler.send(file.body[k : k + 1])

    return act


def promise_size(size: int) -> Act:
    """Lie about the length."""

    def act(handler: Handler, file: RemoteFile) -> None:
        start = handler.asked_start(file)
        handler.promise(file, start, size)
        handler.send(file.body[start:size])
        handler.hang_up()

    return act


def ignore_range(handler: Handler, file: RemoteFile) -> None:
    """The whole file, whatever was asked for."""
    handler.promise(file, 0)
    handler.send(file.body)


def ignore_if_range(handler: Handler, file: RemoteFile) -> None:
    """The range asked for of a file that has meanwhile changed."""
    asked = handler.headers.get("Range")
    start = int(asked[6:-1]) if asked else 0
    handler.promise(file, start)
    handler.send(file.body[start:])


def shift_range(by: int) -> Act:
    """Another range than the one asked for."""

    def act(handler: Handler, file: RemoteFile) -> None:
        start = handler.asked_start(file) + by
        handler.promise(file, start)
        handler.send(file.body[start:])

    return act


def status(code: int, **headers: str) -> Act:
    """A refusal."""

    def act(handler: Handler, file: RemoteFile) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.begin(code, {"Content-Length": "0"} | named)

    act.on_probe = True  # type: ignore[attr-defined]
    return act


def chunked(handler: Handler, file: RemoteFile) -> None:
    """The whole file in chunks, its length never stated."""
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    for k in range(0, len(file.body), 5000):
        piece = file.body[k : k + 5000]
        handler.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.send(b"0\r\n\r\n")


def endless(handler: Handler, file: RemoteFile) -> None:
    """Neither length nor chunks: the end of the connection is the end of the file."""
    handler.begin(200, {})
    handler.send(file.body)


def redirect(to: str, **headers: str) -> Act:
    """Elsewhere."""
    return status(302, Location=to, **headers)


@pytest.fixture
def acts() -> Any:
    """The acts above, by name."""
    import types

    return types.SimpleNamespace(
        drop=drop, stall=stall, trickle=trickle, promise_size=promise_size, ignore_range=ignore_range,
        ignore_if_range=ignore_if_range, shift_range=shift_range, status=status, chunked=chunked, endless=endless,
        redirect=redirect, honest=honest,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def _serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of its own for each test."""
    yield from _serving()


@pytest.fixture
def other_server() -> Iterator[Server]:
    """Another origin."""
    yield from _serving()


def archive(seed: int = 0, size: int = 200_000) -> bytes:
    """A stored zip archive as torch writes them, of seeded noise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02}q\x00.")
        zipped.writestr(zipfile.ZipInfo("archive/data/0"), random.Random(seed).randbytes(size))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., bytes]:
    """Bytes of a small file that passes for weights; another seed is another file."""
    return archive


@pytest.fixture(scope="session")
def weights() -> bytes:
    """One such file."""
    return archive()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """An impatient client with small chunks; too small a file is one below 1000 bytes."""
    import gdown  # noqa: F401

    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1000)
    monkeypatch.setattr(sys.modules["gdown.download"], "_wait_or_cancel", lambda **options: None)
    return Limits(connect_s=5.0, read_s=0.4, retries=2, backoff_s=0.01, lock_wait_s=20.0, least_bytes=1000)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the weights go."""
    return tmp_path / "models" / "model.pth"


@pytest.fixture
def fetch(target: Path, limits: Limits) -> Callable[..., Download]:
    """`download_weights` into `target`."""

    def run(*sources: Source, **options: Any) -> Download:
        return download_weights(target, sources, **{"limits": limits} | options)

    return run


@pytest.fixture
def old_file(target: Path, limits: Limits) -> bytes:
    """A good file that is already there, recorded, and its bytes."""
    body = archive(seed=99)
    target.parent.mkdir(parents=True)
    target.write_bytes(body)
    download_weights(target, [], limits=limits)
    return body
