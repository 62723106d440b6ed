"""Ctrl-C once: finish what is in hand. Twice: stop at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOGGER = logging.getLogger("meddinov3_stroke")


class Interruption:
    """Whether the user has asked to stop; loops look at it between units of work."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for; called where everything finished is saved."""
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def finish_on_interrupt(unit: str) -> Iterator[Interruption]:
    """An `Interruption` that the first SIGINT sets and the second turns into an immediate KeyboardInterrupt.

    `unit` names, for the message, what is being finished (`volume`, `epoch`). Outside the main thread, where no handler
    can be set, SIGINT acts as usual.
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
