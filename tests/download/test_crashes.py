"""Killed at any moment, or run twice at once: the old file or the whole new one, and no byte fetched twice."""

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

from meddinov3_stroke.download import Limits, record_path, verify_recorded
from meddinov3_stroke.download import weights as weights_room
from meddinov3_stroke.download.part_file import PartFile
from meddinov3_stroke.errors import LockTimeout

Fetch = Callable[..., Any]

DOWNLOADER = """
import sys
from pathlib import Path
from meddinov3_stroke.download import Limits, Package, Source, download_weights
package = Package(name="tiny", hub_file="model.pth", smallest_bytes=1000, licence="test")
got = download_weights(Path(sys.argv[1]), [Source("URL", sys.argv[2])], package, limits=Limits(stall_s=600.0))
print(got.fetched)
"""


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the package may catch it."""


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


def test_after_a_kill_only_the_missing_bytes_are_asked_for(
    server: Any, fetch: Fetch, target: Path, weights: bytes, start_downloader: Callable[..., Any]
) -> None:
    def stall_after_a_crumb(handler: Any, file: Any) -> None:
        handler.promise(file, 0)
        handler.send(file.body[:119_900])
        wait_until(lambda: PartFile(target).size == 119_900)
        handler.send(file.body[119_900:120_000])  # so small that a buffer would keep it
        handler.server.release.wait(600)  # a connection that ends would close the file, and so flush it

    source = server.put(weights, stall_after_a_crumb)
    process = start_downloader(target, source.url)
    wait_until(lambda: PartFile(target).size == 120_000)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    fetch(source)
    assert server.ranges() == [None, "bytes=120000-"]
    assert target.read_bytes() == weights


@pytest.mark.parametrize("moment", ["take_the_place", "write_record"])
def test_killed_after_the_last_byte_nothing_is_asked_for_again(
    moment: str, server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*args: Any) -> None:
        raise Killed

    source = server.put(weights)
    with monkeypatch.context() as patch:
        patch.setattr(PartFile if moment == "take_the_place" else weights_room, moment, kill)
        with pytest.raises(Killed):
            fetch(source)
    assert fetch(source).sha256 == hashlib.sha256(weights).hexdigest()
    assert target.read_bytes() == weights
    assert len(server.requests) == 1
    assert verify_recorded(target)
    assert not PartFile(target).note_path.exists()


@pytest.mark.parametrize("moment", ["take_the_place", "write_record"])
def test_killed_while_replacing_a_file_the_record_follows_the_file(
    moment: str,
    server: Any,
    fetch: Fetch,
    target: Path,
    old_file: bytes,
    weights: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(*args: Any) -> None:
        raise Killed

    source = server.put(weights)
    with monkeypatch.context() as patch:
        patch.setattr(PartFile if moment == "take_the_place" else weights_room, moment, kill)
        with pytest.raises(Killed):
            fetch(source, force=True)
    fetch(source)
    assert target.read_bytes() == (old_file if moment == "take_the_place" else weights)
    assert verify_recorded(target)


def test_the_origin_of_the_digest_survives_a_kill(
    server: Any, fetch: Fetch, target: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*args: Any) -> None:
        raise Killed

    source, digest = server.put(weights), hashlib.sha256(weights).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(weights_room, "write_record", kill)
        with pytest.raises(Killed):
            fetch(source, pinned=digest)
    fetch(source)
    assert '"origin": "pinned"' in record_path(target).read_text()


def test_two_processes_at_once_make_one_transfer(
    server: Any, target: Path, weights: bytes, start_downloader: Callable[..., Any]
) -> None:
    def slowly(handler: Any, file: Any) -> None:
        handler.promise(file, 0)
        handler.send(file.body[:1000])
        handler.server.release.wait(3)
        handler.send(file.body[1000:])

    source = server.put(weights, slowly)
    processes = [start_downloader(target, source.url) for _ in range(2)]
    answers = [process.communicate(timeout=240)[0].strip() for process in processes]
    assert sorted(answers) == ["False", "True"]
    assert len(server.requests) == 1
    assert target.read_bytes() == weights


def test_a_lock_held_for_too_long_is_an_error_that_names_it(
    server: Any, fetch: Fetch, target: Path, weights: bytes, limits: Limits
) -> None:
    target.parent.mkdir()
    with filelock.FileLock(f"{target}.lock"), pytest.raises(LockTimeout, match=r"model\.pth\.lock"):
        fetch(server.put(weights), limits=replace(limits, lock_wait_s=0.1))
    assert server.requests == []
