"""Several worker processes, each of which runs the loop over the inputs that it is handed.

A worker has its own device and cores. It holds a few inputs, so that reading overlaps with the engine, and reports
each result, each forward pass and each message. One that dies or gives no sign for too long is replaced. The inputs it
held are then handed out alone, so that one that ends its worker harms no other; after `MOST_TRIES` it is given up.
The processes are children of this one, or actors of a Ray cluster (`features.ray_workers`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from typing import Any

from meddinov3_stroke.errors import MachineError, MedDINOError, WorkerLost
from meddinov3_stroke.system.children import ChildContext, ChildProcess, end_with_parent, how_it_died
from meddinov3_stroke.system.command import libraries_at_debug
from meddinov3_stroke.system.devices import affinity, available_cpus, cpu_threads

LOGGER = logging.getLogger("meddinov3_stroke")

MOST_HELD = 4  # inputs that a worker holds: one computed, one read, and two so that it need not wait for the parent

MOST_TRIES = 3  # workers that are given an input before it counts as failed

MOST_DEATHS = 10
"""Deaths of a worker and its replacements without a result in between; more than one input can cause."""

EXIT_S, POLL_S = 10.0, 1.0  # time to exit after the last result; longest time between two looks for silent workers

Work = Callable[[Iterable[Any]], Generator[Any, None, None]]
"""Gives a result for each input, in order."""

Prepare = Callable[[str, Callable[..., None]], Work]
"""Makes the work on a device, in the worker; the function it is given is to be called as a sign of life."""

_CONTEXT = ChildContext()


@dataclass(frozen=True)
class Workers:
    """Where worker processes compute, and how long one may be silent."""

    devices: tuple[str, ...]  # of each worker
    silence_s: float  # seconds without a sign after which a worker counts as hanging

    def map(self, inputs: Sequence[Any], prepare: Prepare) -> Generator[tuple[int, Any], None, None]:
        """(position, result) of each input as soon as it is known, with `WorkerLost` for one that no worker survives.

        `prepare` and the inputs must be picklable. Closing the generator ends the workers at once. What `prepare` or
        the work raises is raised here; MachineError if workers die again and again, whatever they are given.
        """
        if not inputs:
            return
        crew = self.crew(self.devices[: len(inputs)], prepare)
        run = _Run(inputs, crew, self.silence_s)
        try:
            yield from run.results()
            for worker in crew:
                worker.dismiss()
        finally:
            for worker in crew:
                worker.end()

    def crew(self, devices: Sequence[str], prepare: Prepare) -> Sequence[Worker]:
        """A worker for each device, not started yet."""
        crew = [ChildWorker(f"worker {k} ({device})", device, prepare) for k, device in enumerate(devices)]
        for worker, cores in zip(crew, split(affinity(), len(crew)), strict=True):
            worker.cores = cores
            worker.n_threads = len(cores) if cpu_threads() == available_cpus() else max(1, cpu_threads() // len(crew))
        return crew


def split(cores: Sequence[int], n: int) -> list[list[int]]:
    """The cores of each of `n` workers: equal parts in order, or one each, shared, where there are fewer than `n`."""
    if len(cores) < n:
        return [[cores[k % len(cores)]] if cores else [] for k in range(n)]
    bounds = [k * len(cores) // n for k in range(n + 1)]
    return [list(cores[low:high]) for low, high in pairwise(bounds)]


@contextmanager
def _confined(cores: Sequence[int], n_threads: int) -> Iterator[None]:
    """Confine this thread, for a child to inherit: libraries count cores and threads when they are imported."""
    before, threads = affinity(), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({} if threads is None else {"OMP_NUM_THREADS": threads})


@dataclass(eq=False)
class Worker(ABC):
    """A place in the crew: the process that has it now, and what that holds."""

    name: str
    device: str
    prepare: Prepare
    held: list[int] = field(default_factory=list)  # positions of the inputs handed out, without a result yet
    is_ready: bool = False  # to be handed inputs
    is_tested: bool = False  # holds an input that ended a worker before, and nothing else
    n_deaths: int = 0  # without a result in between
    heard: float = 0.0  # when the last sign came
    connection: Connection = field(init=False)

    @abstractmethod
    def start(self) -> None:
        """Start a process in this place."""

    @abstractmethod
    def end(self, wait_s: float = 0.0) -> str:
        """End the process, if there is one, after so many seconds; gives how it ended by then."""

    @abstractmethod
    def dismiss(self) -> None:
        """Let a process without inputs exit."""

    @property
    def speaker(self) -> Any:
        """What becomes readable when the process speaks or dies."""
        return self.connection

    def hand(self, position: int, source: Any) -> None:
        """Give the process an input; if it is dead, that shows when its messages are read."""
        self.heard = time.monotonic() if not self.held else self.heard
        self.held.append(position)
        with suppress(OSError):
            self.connection.send((position, source))

    def messages(self) -> Iterator[tuple[int | None, Any]]:
        """What the process has sent; EOFError or OSError if it is dead."""
        while self.connection.poll():
            self.heard = time.monotonic()
            yield self.connection.recv()

    def fault(self, silence_s: float) -> str | None:
        """Why a process that has not ended is to be replaced: it has something to do and gave no sign for too long."""
        is_silent = (bool(self.held) or not self.is_ready) and time.monotonic() - self.heard > silence_s
        return f"gave no sign for {silence_s:g} s" if is_silent else None


@dataclass(eq=False)
class ChildWorker(Worker):
    """A child of this process, with cores of its own."""

    cores: Sequence[int] = ()  # none where the system has no affinity
    n_threads: int = 1
    process: ChildProcess | None = None

    def start(self) -> None:
        """Start a child."""
        self.connection, theirs = _CONTEXT.Pipe()
        with _confined(self.cores, self.n_threads):
            level = LOGGER.getEffectiveLevel()
            self.process = _CONTEXT.Process(target=_serve_parent, args=(theirs, self.device, level))
            self.process.start()
        theirs.close()
        self.connection.send(self.prepare)  # unpickled where an error can be reported
        self.heard, self.is_ready = time.monotonic(), False

    def dismiss(self) -> None:
        """Close the connection, and wait for the child."""
        self.connection.close()
        if self.process is not None:
            self.process.join(EXIT_S)

    def end(self, wait_s: float = 0.0) -> str:
        """Kill the child if it does not exit in time."""
        if self.process is None:
            return ""
        self.connection.close()
        self.process.join(wait_s)
        how = how_it_died(self.process.exitcode)
        self.process.kill()
        self.process.join()
        self.process = None
        return how


@dataclass(eq=False)
class _Run:
    """Which inputs wait, which are suspected of having ended a worker, and which are given up."""

    inputs: Sequence[Any]
    crew: Sequence[Worker]
    silence_s: float
    waiting: deque[int] = field(init=False)
    suspects: deque[int] = field(default_factory=deque)
    tries: Counter[int] = field(default_factory=Counter)  # workers that ended while they held the input
    lost: dict[int, WorkerLost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.inputs)))

    def results(self) -> Iterator[tuple[int, Any]]:
        """As of `Workers.map`; the inputs that are given up come last, so that they stop no other."""
        for worker in self.crew:
            worker.start()
        while self.waiting or self.suspects or any(worker.held for worker in self.crew):
            for worker in self.crew:
                self._hand_out(worker)
            spoken = wait([worker.speaker for worker in self.crew], min(POLL_S, self.silence_s))
            for worker in self.crew:
                if worker.speaker in spoken:
                    yield from self._take(worker)
                elif fault := worker.fault(self.silence_s):
                    self._replace(worker, fault)
        yield from self.lost.items()

    def _hand_out(self, worker: Worker) -> None:
        if not worker.is_ready or worker.is_tested:
            return
        if self.suspects and not worker.held:
            worker.is_tested = True
            position = self.suspects.popleft()
            worker.hand(position, self.inputs[position])
            return
        most = min(MOST_HELD, -(-len(self.waiting) // len(self.crew)))  # the last inputs are shared out evenly
        while self.waiting and len(worker.held) < most:
            position = self.waiting.popleft()
            worker.hand(position, self.inputs[position])

    def _take(self, worker: Worker) -> Iterator[tuple[int, Any]]:
        try:
            for position, content in worker.messages():
                worker.is_ready = True
                if position is not None:
                    worker.held.remove(position)
                    worker.n_deaths, worker.is_tested = 0, False
                    yield position, content
                elif isinstance(content, Exception):
                    raise content
                elif content is not None:
                    LOGGER.log(*content)
        except (EOFError, OSError):
            self._replace(worker, worker.end(wait_s=POLL_S))

    def _replace(self, worker: Worker, reason: str) -> None:
        worker.end()
        held, worker.held, worker.is_tested, worker.n_deaths = worker.held, [], False, worker.n_deaths + 1
        if worker.n_deaths >= MOST_DEATHS:
            raise MachineError(
                f"{worker.name} {reason}; it was the last of {MOST_DEATHS} without a result; check memory and the "
                "device, or run without workers to see the error; finished work is kept"
            )
        for position in held:
            self.tries[position] += 1
            if self.tries[position] < MOST_TRIES:
                self.suspects.append(position)
                continue
            self.lost[position] = WorkerLost(
                f"{self.inputs[position]}: {MOST_TRIES} workers were lost over this input, and the last {reason}; "
                "check the file, or leave it out"
            )
        LOGGER.warning("%s %s and is replaced; inputs it held: %d", worker.name, reason, len(held))
        worker.start()


def _serve_parent(connection: Connection, device: str, level: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    threading.Thread(target=end_with_parent, daemon=True).start()
    serve(connection, device, level)


def serve(connection: Connection, device: str, level: int) -> None:
    """What a worker does; runs in its process, first receives its `Prepare`, and ends when the connection is closed."""
    lock = threading.Lock()

    def send(position: int | None = None, content: Any = None) -> None:
        with lock, suppress(BrokenPipeError, ConnectionResetError):  # the parent needs nothing any more
            connection.send((position, content))

    LOGGER.handlers, LOGGER.propagate = [_Messages(send)], False
    LOGGER.setLevel(logging.ERROR)  # the parent has said what there is to say about the backbone
    try:
        with libraries_at_debug():
            work = connection.recv()(device, lambda *_: send())
            LOGGER.setLevel(level)
            send()
            while (task := _task(connection, is_waiting=True)) is not None:
                _work_off(connection, task, work, send)
    except Exception as error:
        LOGGER.debug("%s", error, exc_info=error)
        known = isinstance(error, MedDINOError)
        send(None, error if known else RuntimeError(f"in a worker: {type(error).__name__}: {error}"))


def _work_off(connection: Connection, task: Any, work: Work, send: Callable[..., None]) -> None:
    """Run the loop from one input on, until no further one has come: what is in work is then finished at once."""
    begun: deque[int] = deque()

    def inputs() -> Iterator[Any]:
        following = task
        while following is not None:
            begun.append(following[0])
            yield following[1]
            following = _task(connection)

    for result in work(inputs()):
        send(begun.popleft(), result)


def _task(connection: Connection, is_waiting: bool = False) -> Any:
    # the next (position, input); None if there is none now, or never again
    try:
        return connection.recv() if is_waiting or connection.poll() else None
    except (EOFError, OSError):
        return None


class _Messages(logging.Handler):
    """Sends messages to the parent, which has the console."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send(None, (record.levelno, "%s", self.format(record)))
