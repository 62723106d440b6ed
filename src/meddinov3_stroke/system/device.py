"""Choosing where to compute. Only `auto` may fall back, and it says what it took.

torch takes seconds to import, so it is asked only where there may be a GPU at all.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from meddinov3_stroke.errors import DeviceUnavailable, UsageError

GPU_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
"""Driver libraries without which torch finds no NVIDIA GPU."""

ROCM_DEVICE = Path("/dev/kfd")
"""What AMD's driver shows; without it torch finds no AMD GPU."""


def resolve_device(name: str) -> str:
    """The device, as torch names it, for `auto|cpu|gpu|cuda|cuda:N|mps`: `cpu`, `cuda:N` or `mps`.

    Raises:
        UsageError: the name is none of these.
        DeviceUnavailable: a device asked for by name is not there; only `auto` falls back.
    """
    if not re.fullmatch(r"auto|cpu|gpu|cuda(:\d+)?|mps", name):
        raise UsageError(f"--device {name}: not a device; found {name!r}, expected auto, cpu, gpu, cuda:N or mps")
    if name == "cpu" or (name == "auto" and not gpu_may_exist()):
        return "cpu"
    import torch

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return f"cuda:{torch.cuda.current_device()}" if has_cuda else "mps" if has_mps else "cpu"
    if name == "mps" or (name == "gpu" and not has_cuda and has_mps):
        _require(has_mps, name, "no Metal device is available")
        return "mps"
    count = torch.cuda.device_count() if has_cuda else 0
    _require(count > 0, name, "torch sees no GPU")
    index = int(name.split(":")[1]) if ":" in name else torch.cuda.current_device()
    _require(index < count, name, f"torch sees {count} GPU(s), numbered from 0")
    return f"cuda:{index}"


def gpu_may_exist() -> bool:
    """Whether a GPU driver is installed; where it is not, torch can see no GPU and need not be asked."""
    return sys.platform == "darwin" or ROCM_DEVICE.exists() or any(map(_loads, GPU_DRIVERS))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _require(available: bool, name: str, reason: str) -> None:
    if not available:
        raise DeviceUnavailable(f"--device {name}: {reason}; use --device cpu, or --device auto to take what there is")


def available_cpus() -> int:
    """Cores this process may use: its CPU affinity, never the host's core count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set to a number, else `available_cpus`."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else available_cpus()


def use_available_cpus() -> int:
    """Set torch's thread count to `cpu_threads` and give it back."""
    import torch

    torch.set_num_threads(cpu_threads())
    return torch.get_num_threads()
