"""The same work on many items in several processes, in order, a few items ahead of their use."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from meddinov3_stroke.errors import MachineError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_processes(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT, None, None]:
    """`work` of each item, in order; with one worker in this process. Close the generator to end the processes.

    Raises:
        MachineError: a process died.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MachineError(
            "a process that reads files died (out of memory?); finished work is kept; run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process of the terminal; only the parent decides when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
