"""Worker processes: every input gets one result, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crew import broken, squares
from meddinov3_stroke.errors import MachineError, WorkerLost
from meddinov3_stroke.features.workers import MOST_TRIES, Workers, split


def run(inputs: list[Any], folder: Path, n: int = 2, silence_s: float = 60.0) -> dict[int, Any]:
    found = list(Workers(("cpu",) * n, silence_s).map(inputs, partial(squares, str(folder))))
    assert sorted(position for position, _ in found) == list(range(len(inputs)))  # each once
    return dict(found)


def begun(folder: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (folder / "begun").read_text().splitlines())


def test_every_input_is_computed_once_by_one_of_the_workers(tmp_path: Path) -> None:
    found = run(["meet", *range(1, 40)], tmp_path)  # the first input ends only if a second worker takes part
    assert found == {0: "meet", **{k: k**2 for k in range(1, 40)}}
    assert set(begun(tmp_path).values()) == {1}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_workers_share_the_cores(tmp_path: Path) -> None:
    run(list(range(8)), tmp_path)
    n_cores = {int(line.split()[3]) for line in (tmp_path / "begun").read_text().splitlines()}
    assert sum(n_cores) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("poison", ["die", "hang"])
def test_an_input_that_ends_or_hangs_its_worker_is_given_up_and_stops_no_other(tmp_path: Path, poison: str) -> None:
    inputs = [*range(6), poison, *range(6, 12)]
    found = run(inputs, tmp_path, silence_s=4.0)
    assert isinstance(found[6], WorkerLost)
    assert f"{MOST_TRIES} workers were lost" in str(found[6])
    assert [found[k] for k in range(13) if k != 6] == [k**2 for k in range(12)]
    assert begun(tmp_path)[poison] == MOST_TRIES


def test_signs_of_life_keep_a_slow_worker(tmp_path: Path) -> None:
    assert run(["slow", 3], tmp_path, n=1, silence_s=2.0) == {0: "slow", 1: 9}
    assert begun(tmp_path)["slow"] == 1


def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    def kill() -> None:
        for _ in range(4):
            time.sleep(0.7)
            if (tmp_path / "begun").exists():
                pid = int((tmp_path / "begun").read_text().splitlines()[-1].split()[1])
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    n = 400
    found = run(list(range(n)), tmp_path)
    killer.join()
    assert found == {k: k**2 for k in range(n)}
    n_again = sum(begun(tmp_path).values()) - n
    assert 0 < n_again <= 4 * 4  # at most what a killed worker held


def test_an_error_of_the_work_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in a worker: ValueError: no square"):
        run([1, "break", 2], tmp_path)


def test_workers_that_cannot_begin_end_the_run() -> None:
    with pytest.raises(MachineError, match=r"ended with status 3.*last of 10 without a result"):
        list(Workers(("cpu",), 60.0).map([1], broken))


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    run_of = Workers(("cpu", "cpu"), 60.0).map([1, "hang", 2, "hang"], partial(squares, str(tmp_path)))
    assert next(run_of) is not None
    time.sleep(1)
    start = time.monotonic()
    run_of.close()
    assert time.monotonic() - start < 5
    for line in (tmp_path / "begun").read_text().splitlines():
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[1]), 0)


@pytest.mark.parametrize(
    ("cores", "n", "parts"),
    [([0, 1, 2, 3], 2, [[0, 1], [2, 3]]), ([0, 1, 2], 2, [[0], [1, 2]]), ([5], 2, [[5], [5]]), ([], 2, [[], []])],
)
def test_cores_are_divided(cores: list[int], n: int, parts: list[list[int]]) -> None:
    assert split(cores, n) == parts
