"""Progress bars with rate and ETA, on standard error only."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

LOGGER = logging.getLogger("meddinov3_stroke")


@runtime_checkable
class Advance(Protocol):
    """Called with the number of units just finished."""

    def __call__(self, n: int = 1) -> None: ...


@runtime_checkable
class Held(Protocol):
    """Called with the bytes held so far and the bytes of the whole, where these are known."""

    def __call__(self, done: int, total: int | None) -> None: ...


@contextmanager
def progress_bar(description: str, total: int, unit: str, enabled: bool = True) -> Iterator[Advance]:
    """A function that advances a bar showing done, rate (`unit`/s), elapsed time and ETA.

    Where standard error is no terminal, a line every tenth of the way is logged instead.
    """
    if not enabled or total <= 0:
        yield lambda n=1: None
    elif sys.stderr.isatty():
        with _rich_bar(description, total, unit) as advance:
            yield advance
    else:
        yield _logged_tenths(description, total, unit)


@contextmanager
def _rich_bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task_id = progress.add_task(description, total=total, rate="")

        def advance(n: int = 1) -> None:
            progress.advance(task_id, n)
            speed = progress.tasks[0].speed
            progress.update(task_id, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def _logged_tenths(description: str, total: int, unit: str) -> Advance:
    import time

    start, done, told = time.perf_counter(), 0, 0

    def advance(n: int = 1) -> None:
        nonlocal done, told
        done += n
        tenth = 10 * done // total
        if tenth > told:
            told = tenth
            rate = done / max(time.perf_counter() - start, 1e-9)
            eta = (total - done) / rate
            LOGGER.info("%s: %d/%d %s, %.1f %s/s, ETA %.0f s", description, done, total, unit, rate, unit, eta)

    return advance


@contextmanager
def byte_bar(description: str, enabled: bool = True) -> Iterator[Held]:
    """A function that sets a bar of bytes, showing size, rate and ETA; `done` may start anywhere and fall back.

    Where standard error is no terminal, a line every tenth of the way is logged instead.
    """
    if not enabled:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _rich_byte_bar(description) as report:
            yield report
    else:
        yield _logged_bytes(description)


@contextmanager
def _rich_byte_bar(description: str) -> Iterator[Held]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task_id = progress.add_task(description, total=None)
        held: int | None = None

        def report(done: int, total: int | None) -> None:
            nonlocal held
            if held is None or done <= held:  # a first, a resumed or a new start: what was there is no speed
                progress.reset(task_id, total=total, completed=done)
            else:
                progress.update(task_id, total=total, completed=done)
            held = done

        yield report


def _logged_bytes(description: str) -> Held:
    import time

    mib = 1 << 20
    start = time.perf_counter()
    first, held, told = 0, -1, 0

    def report(done: int, total: int | None) -> None:
        nonlocal start, first, held, told
        if held < 0 or done <= held:
            start, first, told = time.perf_counter(), done, 10 * done // total if total else 0
        held = done
        if total and 10 * done // total > told:
            told = 10 * done // total
            rate = max(done - first, 1) / max(time.perf_counter() - start, 1e-9)
            eta = (total - done) / rate
            sizes = (done / mib, total / mib, rate / mib)
            LOGGER.info("%s: %.1f/%.1f MiB, %.1f MiB/s, ETA %.0f s", description, *sizes, eta)

    return report
