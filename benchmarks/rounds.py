"""Ways of doing one thing, timed in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

Ways = Mapping[str, Callable[[], Any]]
"""Name -> what is timed."""

Seconds = Mapping[str, list[float]]
"""Name -> seconds of each round."""


def take_turns(ways: Ways, rounds: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in every round; each round begins with another way. Warm-ups are not counted."""
    return timed_turns({name: partial(seconds_of, way) for name, way in ways.items()}, rounds, warm_ups)


def timed_turns(ways: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """As `take_turns`, of ways that give their own seconds."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warm_ups):
        for way in ways.values():
            way()
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(ways[name]())
    return seconds


def seconds_of(way: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    _kept = way()
    return time.perf_counter() - start


def median(seconds: Seconds, name: str) -> float:
    """Median over the rounds."""
    return statistics.median(seconds[name])


def times_as_fast(seconds: Seconds, name: str, other: str) -> float:
    """How many times as fast as `other` a way is: the median of the ratios within each round."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))
