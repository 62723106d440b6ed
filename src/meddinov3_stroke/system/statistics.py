"""Time and memory of a run."""

from __future__ import annotations

import sys
import time
from typing import Any


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since construction."""
        return time.perf_counter() - self._start


def memory_statistics(device: str) -> dict[str, Any]:
    """`{cpu_peak_mib, gpu_peak_mib}`: peak resident memory of this process (None on Windows); peak GPU allocation, or
    None without a GPU."""
    peak = peak_resident_mib()
    return {"cpu_peak_mib": None if peak is None else round(peak, 1), "gpu_peak_mib": _gpu_peak_mib(device)}


def peak_resident_mib() -> float | None:
    """Peak resident set of this process in MiB; None where the platform does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1 << 10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


def _gpu_peak_mib(device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return round(torch.cuda.max_memory_allocated(device) / (1 << 20), 1)
