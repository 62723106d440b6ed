"""Items made ahead of their use, in one background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()  # follows the last item


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The items in their order, up to `depth` of them made ahead in one background thread; the first `next` starts it.

    At most `depth` items are finished or in the making, and one more is held: the one given out last, until the next
    is there. So `depth + 1` are alive, besides what the caller or `items` itself keeps. No item is begun while `depth`
    wait. What `items` raises, `KeyboardInterrupt` too, is raised here at its place in the order, and ends it.

    Closing the generator, or an exception in its `next`, begins no further item, waits for the one in the making (it
    is thrown away, and so is its error), joins the thread and closes `items`. A `for` loop over an unnamed generator
    closes it however the loop ends; elsewhere use `contextlib.closing`. Raises ValueError for a `depth` below 1.
    """
    if depth < 1:
        raise ValueError(f"read_ahead: depth is {depth}; expected at least 1 item")
    return _read_ahead(_as_generator(items), depth)


def _read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        pool.submit(int)  # starts the thread: an interrupt in that moment finds no item in the making
        ahead = deque(pool.submit(next, items, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, items, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()


def _as_generator(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items; a generator is over after an exception, which other iterators (`map`) are not."""
    yield from items
