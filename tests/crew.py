"""Work for worker processes: squares, and inputs that end, hang or break their worker, or wait for another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any


def squares(
    folder: str, device: str, sign: Callable[..., None]
) -> Callable[[Iterable[Any]], Generator[Any, None, None]]:
    """Work that notes every input that it begins, with its process, in a file of `folder`."""

    def work(inputs: Iterable[Any]) -> Generator[Any, None, None]:
        for one in inputs:
            with Path(folder, "begun").open("a") as handle:
                handle.write(f"{one} {os.getpid()} {device} {len(os.sched_getaffinity(0))}\n")
            if one == "meet":  # until another worker has begun one too
                while len({line.split()[1] for line in Path(folder, "begun").read_text().splitlines()}) < 2:
                    sign()
                    time.sleep(0.05)
            yield result(one, sign)

    return work


def result(one: Any, sign: Callable[..., None]) -> Any:
    """What an input gives."""
    if one == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if one == "hang":
        time.sleep(600)
    if one == "slow":  # silent for longer than the limit, but for its signs
        for _ in range(10):
            sign()
            time.sleep(0.3)
        return "slow"
    if one == "break":
        raise ValueError("no square")
    time.sleep(0.01)
    return one if one == "meet" else one**2


def broken(device: str, sign: Callable[..., None]) -> Any:
    """Work that cannot begin."""
    os._exit(3)
