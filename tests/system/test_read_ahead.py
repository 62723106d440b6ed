"""Reading ahead: order, errors, and a thread that never outlives its reader."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from meddinov3_stroke.system.progress import read_ahead

DEADLINE_S = 10.0


class Item:
    """Something whose death can be seen."""


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def _wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def _begun(notes: list[int], fail_at: int = -1, error: BaseException | None = None) -> Iterator[int]:
    """0, 1, 2, ... each noted when it is begun; `error` instead of item `fail_at`."""
    for k in itertools.count():
        notes.append(k)
        if k == fail_at and error is not None:
            raise error
        yield k


@pytest.mark.parametrize("depth", [1, 2, 7, 200])
def test_items_come_in_their_order(depth: int) -> None:
    assert list(read_ahead(range(100), depth)) == list(range(100))


def test_no_items_are_no_items() -> None:
    assert list(read_ahead([], 2)) == []


def test_an_item_may_be_none() -> None:
    assert list(read_ahead([None, 1, None], 1)) == [None, 1, None]


def test_items_are_made_in_one_other_thread() -> None:
    makers = set(read_ahead((threading.get_ident() for _ in range(20)), 3))

    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_the_next_item_is_made_while_the_last_is_in_use() -> None:
    notes: list[int] = []
    with closing(read_ahead(_begun(notes), 1)) as ahead:
        assert next(ahead) == 0
        _wait_until(lambda: notes == [0, 1])


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    notes: list[int] = []
    ahead = read_ahead(_begun(notes), 2)
    time.sleep(0.02)

    assert notes == []
    assert _threads() == []
    ahead.close()
    assert notes == []


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused_at_once(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}; expected at least 1"):
        read_ahead([1], depth)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_items_are_begun_ahead(depth: int) -> None:
    notes: list[int] = []
    with closing(read_ahead(_begun(notes), depth)) as ahead:
        for n_taken in range(1, 6):
            next(ahead)
            _wait_until(lambda expected=n_taken + depth: len(notes) >= expected)
            time.sleep(0.02)
            assert len(notes) == n_taken + depth


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_items_and_the_one_given_out_are_alive(depth: int) -> None:
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    n_made = itertools.count(1)
    made = [0]

    def make(_: int) -> Item:
        item = Item()
        alive.add(item)
        made[0] = next(n_made)
        return item

    with closing(read_ahead(map(make, itertools.count()), depth)) as ahead:
        for n_taken in range(1, 6):
            next(ahead)
            _wait_until(lambda expected=n_taken + depth: made[0] >= expected)
            assert len(alive) == depth + 1
    assert len(alive) == 0


@pytest.mark.parametrize("error", [RuntimeError("torn page"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_error_comes_at_its_place_in_the_order(error: BaseException) -> None:
    ahead = read_ahead(_begun([], fail_at=3, error=error), 5)

    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(ahead)
    assert caught.value is error
    assert _threads() == []


def test_nothing_is_begun_behind_an_error() -> None:
    asked: list[int] = []

    def reciprocal(number: int) -> float:
        asked.append(number)
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        list(read_ahead(map(reciprocal, [1, 0, 2, 3]), 4))
    assert asked == [1, 0]


@pytest.mark.parametrize("depth", [1, 4])
def test_closing_with_full_hands_joins_the_thread_and_closes_the_items(depth: int) -> None:
    notes: list[int] = []
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from _begun(notes)
        finally:
            closed.set()

    ahead = read_ahead(items(), depth)
    next(ahead)
    _wait_until(lambda: len(notes) == 1 + depth)
    assert len(_threads()) == 1
    ahead.close()

    assert _threads() == []
    assert closed.is_set()
    assert len(notes) == 1 + depth


def test_closing_waits_for_the_item_in_the_making_and_begins_no_other() -> None:
    notes: list[int] = []
    may_finish = threading.Event()

    def items() -> Iterator[int]:
        for k in _begun(notes):
            assert k == 0 or may_finish.wait(DEADLINE_S)
            yield k

    ahead = read_ahead(items(), 3)
    next(ahead)
    _wait_until(lambda: len(notes) == 2)
    threading.Timer(0.05, may_finish.set).start()
    ahead.close()

    assert may_finish.is_set()
    assert _threads() == []
    assert notes == [0, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_of_the_reader_stops_the_thread(error: type[BaseException]) -> None:
    def read_one_and_fail() -> None:
        for _ in read_ahead(itertools.count(), 2):
            raise error

    with pytest.raises(error):
        read_one_and_fail()
    assert _threads() == []


def test_a_generator_forgotten_half_way_stops_its_thread() -> None:
    ahead = read_ahead(itertools.count(), 2)
    next(ahead)
    del ahead

    assert _threads() == []


def test_an_error_of_closing_the_items_is_not_lost() -> None:
    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise OSError("the disk went away")

    ahead = read_ahead(items(), 1)
    next(ahead)
    with pytest.raises(OSError, match="went away"):
        ahead.close()


INTERRUPTED = """
import signal, threading
from meddinov3_stroke.system.progress import read_ahead
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupted = threading.Event()
def items():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    interrupted.wait(0.2)  # the reader waits for this item, and gets the signal meanwhile
    yield 0
try:
    list(read_ahead(items(), 1))
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate() if "read-ahead" in thread.name])
"""


def test_an_interrupt_while_waiting_stops_the_thread() -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
