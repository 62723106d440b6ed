"""Workers as actors of a Ray cluster, each of which keeps a backbone loaded on its cores or its share of a GPU.

Ray chooses the node, starts and ends the actor. Inputs and results go over a connection of our own, as they do to a
child process, so that one scheduler serves both. Inputs, weights and cache must lie at the same paths on all nodes.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import MachineError, UsageError
from meddinov3_stroke.features.workers import POLL_S, Prepare, Worker, Workers, serve

LOGGER = logging.getLogger("meddinov3_stroke")

LOCAL, PACKAGE = "local", "meddinov3-stroke"
ACCEPT_S, EXIT_S = 5, 30.0  # for an actor to prove that it is one; to end after the last result
_OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB; nothing of ours goes through it


def connect(address: str) -> tuple[Any, bool]:
    """Ray, connected to the cluster at `address` or to one of its own on this machine, and whether it was before.

    Usage statistics stay off. Raises MachineError where Ray is not installed or the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray = import_module("ray")
    except ImportError:
        raise MachineError("--ray needs Ray, which is not installed: pip install 'meddinov3-stroke[ray]'") from None
    if ray.is_initialized():
        return ray, True
    own: dict[str, Any] = {}
    if address == LOCAL:  # Ray gives workers a niceness of 15, which starves them beside anything else
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        own["_system_config"] = {"worker_niceness": 0}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineError(f"--ray {address}: no Ray cluster answers ({error}); start one with ray start") from error
    return ray, False


@dataclass(frozen=True)
class RayWorkers(Workers):
    """Actors, each with so many cores and so much of a GPU."""

    n_cpus: float = 1.0
    n_gpus: float = 0.0
    is_guest: bool = False  # whether the caller was connected to the cluster before

    @classmethod
    def on(
        cls, address: str, silence_s: float, n_workers: int | None, n_cpus: float | None, n_gpus: float | None
    ) -> RayWorkers:
        """Actors on the cluster at `address`; by default as many as it has room for.

        By default an actor has a whole GPU, or, in a cluster without any, all cores of the node that has fewest.
        Raises MachineError where the cluster has too little for one.
        """
        ray, is_guest = connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if n_gpus is None:
            n_gpus = float(any(node.get("GPU") for node in nodes))
        if n_cpus is None:
            n_cpus = 1.0 if n_gpus else min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        wanted = {name: share for name, share in (("CPU", n_cpus), ("GPU", n_gpus)) if share}
        if not wanted:
            raise UsageError("--ray-cpus 0 beside no GPU; a worker needs cores or a share of a GPU")
        room = sum(min(int(node.get(name, 0) / share + 1e-9) for name, share in wanted.items()) for node in nodes)
        if not room:
            each = " and ".join(f"{share:g} {name}" for name, share in wanted.items())
            raise MachineError(
                f"--ray {address}: no node has {each} for a worker; pass less with --ray-cpus, --ray-gpus"
            )
        return cls(("cuda" if n_gpus else "cpu",) * (n_workers or room), silence_s, n_cpus, n_gpus, is_guest)

    def crew(self, devices: Sequence[str], prepare: Prepare) -> Sequence[Worker]:
        """An actor for each device, not started yet."""
        shares = {"num_cpus": self.n_cpus, "num_gpus": self.n_gpus}
        return [RayWorker(f"worker {k} ({device})", device, prepare, shares=shares) for k, device in enumerate(devices)]

    def map(self, inputs: Sequence[Any], prepare: Prepare) -> Generator[tuple[int, Any], None, None]:
        """As of `Workers.map`; Ray is left afterwards, unless the caller had been connected before."""
        try:
            yield from super().map(inputs, prepare)
        finally:
            if not self.is_guest:
                import_module("ray").shutdown()


@dataclass(eq=False)
class RayWorker(Worker):
    """An actor: it connects to a port of its own, once the cluster has room for it."""

    shares: dict[str, float] = field(default_factory=dict)
    actor: Any = None
    ended: Any = None  # Ray's reference to the end of the actor's work
    server: socket.socket | None = None  # until the actor has connected
    token: bytes = b""
    is_waited_for: bool = False  # whether a warning has said so

    @property
    def speaker(self) -> Any:
        """What becomes readable when the actor connects, speaks or dies."""
        return self.server or self.connection

    def start(self) -> None:
        """Ask the cluster for an actor."""
        ray = import_module("ray")
        host = ray.util.get_node_ip_address()
        self.server, self.token = socket.create_server((host, 0)), secrets.token_bytes()
        about = (self.server.getsockname()[:2], self.token, str(Path.cwd()), version(PACKAGE))
        self.actor = ray.remote(_Actor).options(max_restarts=0, **self.shares).remote()
        self.ended = self.actor.serve.remote(about, self.device, LOGGER.getEffectiveLevel())
        self.heard, self.is_ready = time.monotonic(), False

    def messages(self) -> Any:
        """What the actor has sent; EOFError or OSError if it is dead."""
        if self.server is None or self._accept(self.server):
            yield from super().messages()

    def _accept(self, server: socket.socket) -> bool:
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ACCEPT_S, 0))  # whoever it is
        connection = Connection(os.dup(peer.fileno()))
        try:
            is_ours = compare_digest(connection.recv_bytes(len(self.token)), self.token)
        except (EOFError, OSError):
            is_ours = False
        if not is_ours:  # nothing that it sends is unpickled
            connection.close()
            peer.close()
            return False
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        peer.close()
        server.close()
        connection.send(self.prepare)
        self.connection, self.server, self.heard = connection, None, time.monotonic()
        return True

    def fault(self, silence_s: float) -> str | None:
        """As of `Worker.fault`, or that Ray has lost the actor; one that the cluster has no room for is waited for."""
        if time.monotonic() - self.heard > POLL_S and (reason := self._how_it_ended(0.0)):
            return reason
        if self.server is None:
            return super().fault(silence_s)
        if not self.is_waited_for and time.monotonic() - self.heard > silence_s:
            LOGGER.warning("%s waits for room in the Ray cluster", self.name)
            self.is_waited_for = True
        return None

    def _how_it_ended(self, wait_s: float) -> str:
        ray = import_module("ray")
        if not ray.wait([self.ended], timeout=wait_s)[0]:
            return ""
        try:
            ray.get(self.ended)
        except Exception as error:  # Ray's, or what the actor raised before it could connect
            cause = getattr(error, "cause", None) or error
            lines = str(cause).strip().splitlines() or [""]
            return f"was lost ({type(cause).__name__}: {lines[0]})"
        return "ended early"

    def dismiss(self) -> None:
        """Close the connection, and wait for the actor."""
        if self.server is None:
            self.connection.close()
            self._how_it_ended(EXIT_S)

    def end(self, wait_s: float = 0.0) -> str:
        """Kill the actor if it does not end in time."""
        ray = import_module("ray")
        if self.actor is None:
            return ""
        (self.server or self.connection).close()
        how = self._how_it_ended(wait_s) or "lost its connection"
        ray.kill(self.actor)
        self.actor = self.server = None
        return how


class _Actor:
    """Runs on a node of the cluster."""

    def serve(self, about: tuple[tuple[str, int], bytes, str, str], device: str, level: int) -> None:
        """Connect and work until the connection is closed."""
        address, token, folder, wanted = about
        if (found := version(PACKAGE)) != wanted:
            raise MachineError(
                f"{socket.gethostname()} has version {found} of {PACKAGE}, not {wanted}; install {wanted}"
            )
        os.chdir(folder)  # paths may be relative
        connection = Connection(socket.create_connection(address).detach())
        connection.send_bytes(token)
        serve(connection, device, level)
