"""Child processes: started from any process, ended with their parent, and how they died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_is_posix = hasattr(signal, "pthread_sigmask")


class ChildProcess(SpawnProcess):
    """A child that can be started from any process, and never delays the exit of a `multiprocessing` worker."""

    daemon = True

    def start(self) -> None:
        """Start without importing the caller's main module, which may be a script without a main guard."""
        main, ours = vars(sys.modules["__main__"]), vars(multiprocessing.current_process())["_config"]
        hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
        daemon = {"daemon": ours.pop("daemon")} if "daemon" in ours else {}  # which may have no children
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if _is_posix else ()
        main["__spec__"] = None
        try:
            super().start()
        finally:
            main.update(hidden)
            ours.update(daemon)
            if _is_posix:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)


class ChildContext(SpawnContext):
    """Makes pools and processes of `ChildProcess`."""

    Process = ChildProcess


def end_with_parent() -> None:
    """Wait for the end of the parent, then end this process at once; for a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def how_it_died(exit_code: int | None) -> str:
    """The end of a process in words: the name of the signal, or the status."""
    if exit_code is None or exit_code >= 0:
        return f"ended with status {exit_code}"
    name = {number.value: number.name for number in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    return f"died of {name}"
