"""The console of a command: results on standard output, messages and progress on standard error (bars on a terminal,
otherwise a log line every tenth). And what else long loops need: the first Ctrl-C, items made ahead in a thread.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from meddinov3_stroke.system import names

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LOGGER = logging.getLogger("meddinov3_stroke")

MIB = 1 << 20

FILE_COLUMNS = 160  # width of tables that do not go to a terminal
RIGHT_MARGIN = 4  # columns that a bar leaves free: the `^C` that a terminal echoes would move a full line

T = TypeVar("T")
_END: Any = object()  # follows the last item

Advance = Callable[..., None]
"""Called with the number of units just finished, 1 by default."""

Update = Callable[[int, int | None], None]
"""Called with what is done and what there is in all, None if that is not known; `done` may fall back."""


_bars: Progress | None = None
"""The bars on the screen: messages and results on the same terminal are written above them."""


def console(stderr: bool = False) -> Console:
    """The console of results, or of messages: without colour if NO_COLOR is set, of a fixed width in a file."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    if _bars is not None and is_terminal:
        return _bars.console
    from rich.console import Console

    width, colours = None if is_terminal else FILE_COLUMNS, None if os.environ.get("NO_COLOR") else "auto"
    options: dict[str, Any] = {"width": width, "soft_wrap": not is_terminal, "color_system": colours}
    return Console(stderr=stderr, highlight=False, **options)


def write_message(text: str) -> None:
    """Write a line on standard error; on a terminal it is wrapped between words and goes above the bars."""
    text = names.public(text)
    if sys.stderr.isatty():
        wrap = textwrap.TextWrapper(console(stderr=True).width, break_long_words=False, break_on_hyphens=False)
        text = "\r" + "\n".join(map(wrap.fill, text.splitlines()))  # over the `^C` that a terminal echoes
    sys.stderr.write(f"{text}\n")  # rich replaces it while bars are on the screen
    sys.stderr.flush()


@contextmanager
def progress_bar(description: str, total: int, unit: str, enabled: bool = True) -> Iterator[Advance]:
    """A function that advances a bar with rate (`unit`/s), elapsed time and ETA."""
    with _bar(description, unit, enabled and total > 0) as update:
        done = 0

        def advance(n: int = 1) -> None:
            nonlocal done
            done += n
            update(done, total)

        advance(0)
        yield advance


def byte_bar(description: str, enabled: bool = True) -> AbstractContextManager[Update]:
    """A function of (bytes done, bytes in all or None) that sets a bar; `done` may start anywhere and fall back."""
    return _bar(description, None, enabled)


@contextmanager
def _bar(description: str, unit: str | None, enabled: bool) -> Iterator[Update]:
    if not enabled or not _draws():
        yield _Tenths(description, unit).update if enabled else lambda done, total: None
        return
    held: int | None = None
    with _on_screen(unit) as progress:
        task = progress.add_task(description, total=None, unit=unit, rate="")

        def update(done: int, total: int | None) -> None:
            nonlocal held
            if held is None or done < held:  # the start, or a transfer that starts over: not progress
                progress.reset(task, total=total, completed=done)
            else:
                progress.update(task, total=total, completed=done)
                speed = next(one.speed for one in progress.tasks if one.id == task)
                progress.update(task, rate=f"{speed:.1f}/s" if speed else "")
            held = done

        try:
            yield update
        finally:
            progress.remove_task(task)


def _draws() -> bool:
    """Whether bars may move the cursor."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def _on_screen(unit: str | None) -> Iterator[Progress]:
    """The bars on the screen, or new ones; they are erased when their loop ends, however it ends."""
    global _bars
    if _bars is not None:
        yield _bars
        return
    from rich.progress import Progress

    screen, same_screen = console(stderr=True), sys.stdout.isatty()  # results in a file are not redirected
    screen.width -= RIGHT_MARGIN
    with Progress(*_columns(unit), console=screen, transient=True, redirect_stdout=same_screen) as shown:
        _bars = shown
        try:
            yield shown
        finally:
            _bars = None


def _columns(unit: str | None) -> tuple[Any, ...]:
    from rich import progress as rich

    counts: tuple[Any, ...] = (rich.DownloadColumn(), rich.TransferSpeedColumn())
    if unit is not None:
        rate = rich.TextColumn("{task.fields[unit]} {task.fields[rate]}")
        counts = (rich.MofNCompleteColumn(), rate, rich.TimeElapsedColumn())
    bar = (rich.TextColumn("{task.description}"), rich.BarColumn())
    return (*bar, *counts, rich.TextColumn("ETA"), rich.TimeRemainingColumn())


class _Tenths:
    """Logs a line for every tenth; what was done before the first update counts as neither progress nor speed."""

    def __init__(self, description: str, unit: str | None) -> None:
        self.description, self.unit = description, unit
        self.start, self.first, self.held, self.logged = 0.0, 0, -1, 0

    def update(self, done: int, total: int | None) -> None:
        if self.held < 0 or done < self.held:
            self.start, self.first, self.logged = time.perf_counter(), done, 10 * done // total if total else 0
        self.held = done
        if not total or 10 * done // total <= self.logged:
            return
        self.logged = 10 * done // total
        rate = max(done - self.first, 1) / max(time.perf_counter() - self.start, 1e-9)
        counts = f"{done / MIB:.1f}/{total / MIB:.1f} MiB, {rate / MIB:.1f} MiB/s"
        if self.unit is not None:
            counts = f"{done}/{total} {self.unit}, {rate:.1f} {self.unit}/s"
        LOGGER.info("%s: %s, ETA %.0f s", self.description, counts, (total - done) / rate)


class Interruption:
    """Whether the user has asked to stop; loops check it between units of work."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was requested; call it where everything finished is saved."""
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def finish_on_interrupt(unit: str) -> Iterator[Interruption]:
    """An `Interruption` set by the first SIGINT; the second raises KeyboardInterrupt at once.

    `unit` names what is being finished (`volume`, `epoch`). Outside the main thread, where no handler can be installed,
    SIGINT acts as usual.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def on_sigint(number: int, frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True
        LOGGER.warning("stopping after this %s; press Ctrl-C again to stop at once", unit)

    previous = signal.signal(signal.SIGINT, on_sigint)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)


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


@contextmanager
def slice_progress(enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar of slices from the first call with (slices just embedded, slices to embed) on."""
    with ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def on_slices(n_done: int, n_chosen: int) -> None:
            if not bars:
                LOGGER.info("embedding %d slices", n_chosen)
                bars.append(stack.enter_context(progress_bar("embedding", n_chosen, "slices", enabled)))
            bars[0](n_done)

        yield on_slices
