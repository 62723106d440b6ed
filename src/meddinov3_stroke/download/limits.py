"""How patient a download is, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    stall_s: float = 30.0
    """A connection that gives nothing for so long, or less than `slowest_rate` over it, is dropped and resumed."""
    slowest_rate: float = 512.0
    """Bytes a second."""
    retries: int = 3
    """Attempts in a row that may bring nothing new before a source is given up."""
    most_attempts: int = 1000
    """Attempts at one source, however much each brings."""
    backoff_s: float = 1.0
    """Wait before the first retry; doubles with each one that brings nothing new."""
    longest_wait_s: float = 60.0
    """A server that asks (Retry-After) for more is given up."""
    most_bytes: int = 8 << 30
    """Larger files are refused."""
    lock_wait_s: float = 3600.0
    """How long another process's download of the same file is waited for."""
