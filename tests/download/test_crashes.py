"""Killed at any moment, or run twice at once: the old file or the whole new one."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest

from meddinov3_stroke.download import Limits, record_path
from meddinov3_stroke.download import weights as weights_module
from meddinov3_stroke.errors import LockTimeout

Fetch = Callable[..., Any]

DOWNLOADER = """
import sys
from pathlib import Path
import gdown
from meddinov3_stroke.download import Limits, Source, download_weights
sys.modules["gdown.download"].CHUNK_SIZE = 1000
limits = Limits(read_s=600.0, least_bytes=1000)
got = download_weights(Path(sys.argv[1]), [Source("URL", sys.argv[2])], limits=limits)
print(got.fetched)
"""


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the package may catch it."""


def kill_at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die right before or right after the file is renamed into place."""
    rename = weights_module.commit

    def commit(temporary: Path, path: Path) -> None:
        if moment == "after the rename":
            rename(temporary, path)
        raise Killed

    monkeypatch.setattr(weights_module, "commit", commit)


@pytest.fixture
def start_downloader() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Starts a process of its own that downloads; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(target: Path, url: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DOWNLOADER, target, url]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def held(target: Path) -> int:
    """Bytes of an unfinished download."""
    return sum(file.stat().st_size for file in target.with_name("model.pth.download").glob("file*"))


def is_verified(target: Path) -> bool:
    """Whether the file has the digest that is recorded beside it."""
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    return f'"sha256": "{digest}"' in record_path(target).read_text()


def test_after_a_kill_only_the_missing_bytes_are_asked_for(
    server: Any, fetch: Fetch, target: Path, weights: bytes, start_downloader: Callable[..., Any]
) -> None:
    def stall(handler: Any, file: Any) -> None:
        handler.promise(file, 0)
        handler.send(file.body[:120_000])
        handler.server.release.wait(600)  # a connection that ends would close the file, and so flush it

    source = server.put(weights, stall)
    process = start_downloader(target, source.url)
    wait_until(lambda: held(target) >= 100_000)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    arrived = held(target)
    fetch(source)
    assert server.ranges()[-1] == f"bytes={arrived}-"
    assert target.read_bytes() == weights


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_after_the_last_byte_nothing_is_asked_for_again(
    moment: str, server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.put(weights)
    with monkeypatch.context() as patch:
        kill_at(moment, patch)
        with pytest.raises(Killed):
            fetch(source)
    assert fetch(source).sha256 == hashlib.sha256(weights).hexdigest()
    assert target.read_bytes() == weights
    assert server.ranges() == [None]
    assert is_verified(target)
    assert not target.with_name("model.pth.download").exists()


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_while_replacing_a_file_the_record_follows_the_file(
    moment: str,
    server: Any,
    fetch: Fetch,
    target: Path,
    old_file: bytes,
    weights: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = server.put(weights)
    with monkeypatch.context() as patch:
        kill_at(moment, patch)
        with pytest.raises(Killed):
            fetch(source, force=True)
    fetch(source)
    assert target.read_bytes() == (old_file if moment == "before the rename" else weights)
    assert is_verified(target)


def test_the_origin_of_the_digest_survives_a_kill(
    server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = server.put(weights), hashlib.sha256(weights).hexdigest()
    with monkeypatch.context() as patch:
        kill_at("after the rename", patch)
        with pytest.raises(Killed):
            fetch(source, pinned=digest)
    fetch(source)
    assert '"origin": "pinned"' in record_path(target).read_text()


def test_two_processes_at_once_make_one_transfer(
    server: Any, fetch: Fetch, limits: Limits, target: Path, weights: bytes, start_downloader: Callable[..., Any]
) -> None:
    def slowly(handler: Any, file: Any) -> None:
        handler.promise(file, 0)
        handler.send(file.body[:1000])
        handler.server.release.wait(1.5)
        handler.send(file.body[1000:])

    source = server.put(weights, slowly)
    process = start_downloader(target, source.url)
    wait_until(lambda: bool(server.ranges()))
    assert not fetch(source, limits=replace(limits, lock_wait_s=120.0)).fetched
    assert process.communicate(timeout=240)[0].strip() == "True"
    assert server.ranges() == [None]
    assert target.read_bytes() == weights


def test_a_lock_held_for_too_long_is_an_error_that_names_it(
    server: Any, fetch: Fetch, target: Path, weights: bytes, limits: Limits
) -> None:
    target.parent.mkdir()
    with filelock.FileLock(f"{target}.lock"), pytest.raises(LockTimeout, match=r"model\.pth\.lock"):
        fetch(server.put(weights), limits=replace(limits, lock_wait_s=0.1))
    assert server.requests == []
