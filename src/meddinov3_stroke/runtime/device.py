"""Choosing where to compute. Only `auto` may fall back, and it says what it took."""

from __future__ import annotations

import os
import re

import torch

from meddinov3_stroke.errors import DeviceUnavailable, UsageError


def resolve_device(name: str) -> torch.device:
    """The torch device for `auto|cpu|gpu|cuda|cuda:N|mps`.

    Raises:
        UsageError: the name is none of these.
        DeviceUnavailable: a device asked for by name is not there; only `auto` falls back.
    """
    if not re.fullmatch(r"auto|cpu|gpu|cuda(:\d+)?|mps", name):
        raise UsageError(f"--device {name}: not a device; found {name!r}, expected auto, cpu, gpu, cuda:N or mps")
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        return _best_device()
    if name == "mps":
        return _require(torch.backends.mps.is_available(), "mps", "no Metal device is available")
    if name == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available():
        return torch.device("mps")
    return _cuda_device(name)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _cuda_device(name: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _require(count > 0, name, "torch sees no GPU")
    index = int(name.split(":")[1]) if ":" in name else torch.cuda.current_device()
    _require(index < count, name, f"torch sees {count} GPU(s), numbered from 0")
    return torch.device("cuda", index)


def _require(available: bool, name: str, reason: str) -> torch.device:
    if not available:
        raise DeviceUnavailable(f"--device {name}: {reason}; use --device cpu, or --device auto to take what there is")
    return torch.device(name if name == "mps" else "cuda")


def available_cpus() -> int:
    """Cores this process may use: its CPU affinity, never the host's core count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_available_cpus() -> int:
    """Set torch's thread count to the cores this process may use and give it back; OMP_NUM_THREADS, if set, wins."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
    return torch.get_num_threads()
