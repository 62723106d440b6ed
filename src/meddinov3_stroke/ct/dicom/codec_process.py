"""A child process that answers messages, each within a deadline; what it answers is not trusted."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from meddinov3_stroke.ct.dicom.codec_child import FRAMING, MARK, MAX_HEADER_BYTES

_PIPE_BYTES = 1 << 20
"""Most bytes passed at a time."""


class ChildFault(Exception):
    """The child died, hung or answered with nonsense; says in words what it did."""


class ChildProcess:
    """One started child. Not safe to share between threads: its owner locks."""

    def __init__(self, command: Sequence[str], start_deadline_s: float) -> None:
        """Start the child and wait until it is ready.

        Raises:
            ChildFault, OSError: it cannot be started; it is gone then.
        """
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which finishes its case
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        try:
            self._receive(0, time.monotonic() + start_deadline_s)
        except BaseException:
            self.end()
            raise

    def ask(self, request: bytes, max_payload_bytes: int, deadline_s: float) -> tuple[dict[str, Any], bytearray]:
        """Header and payload of the answer to `request`.

        Raises:
            ChildFault: it died, took longer than `deadline_s`, or answered with anything else.
        """
        end = time.monotonic() + deadline_s
        self._send(request, end)
        return self._receive(max_payload_bytes, end)

    def end(self) -> None:
        """Kill the child; nothing of it is left."""
        self._process.kill()
        self._close_pipes()
        self._process.wait()

    def forget(self) -> None:
        """Let go of a child that is another process's, after a fork; it lives on there."""
        self._close_pipes()
        self._process.returncode = 0  # nothing here to wait for

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, request: bytes, end: float) -> None:
        rest = memoryview(request)
        try:
            while rest:
                self._wait(self._requests, select.POLLOUT, end)
                rest = rest[os.write(self._requests, rest[:_PIPE_BYTES]) :]
        except BrokenPipeError as error:
            raise ChildFault(self._death()) from error

    def _receive(self, max_payload_bytes: int, end: float) -> tuple[dict[str, Any], bytearray]:
        mark, header_bytes, payload_bytes = FRAMING.unpack(self._take(FRAMING.size, end))
        if mark != MARK or header_bytes > MAX_HEADER_BYTES or payload_bytes > max_payload_bytes:
            raise ChildFault("answered with something else than a frame")
        try:
            header = json.loads(self._take(header_bytes, end))
        except ValueError as error:
            raise ChildFault("answered with something else than a frame") from error
        if not isinstance(header, dict):
            raise ChildFault("answered with something else than a frame")
        return header, self._take(payload_bytes, end)

    def _take(self, n_bytes: int, end: float) -> bytearray:
        taken = bytearray(n_bytes)
        rest = memoryview(taken)
        while rest:
            self._wait(self._answers, select.POLLIN, end)
            n_read = os.readv(self._answers, [rest[:_PIPE_BYTES]])
            if n_read == 0:
                raise ChildFault(self._death())
            rest = rest[n_read:]
        return taken

    def _wait(self, pipe: int, event: int, end: float) -> None:
        """Nothing, once `pipe` can be read or written, or is closed at its other end."""
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise ChildFault("takes longer than it may")

    def _death(self) -> str:
        """How the child ended, in words."""
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if status >= 0:
            return f"ended with status {status}"
        if -status == signal.SIGPROF:
            return "takes more processor time than it may"
        try:
            return f"died of {signal.Signals(-status).name}"
        except ValueError:
            return f"died of signal {-status}"
