"""What every output states about its run: versions, disclaimer, time, memory; and the seeding of a run."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

DISCLAIMER = "research use only, not for clinical diagnosis"  # part of every output

SUMMARY_NAME = "summary.json"  # of a case, and beside embeddings: what they are and where they came from

SCHEMA_VERSION = 1  # version of the JSON documents this package writes; raised when a key changes its meaning

_PACKAGES = ("meddinov3-stroke", "torch", "openvino", "numpy", "nibabel", "scikit-learn", "safetensors")


def provenance() -> dict[str, Any]:
    """The keys every JSON output begins with: `schema_version`, `disclaimer`, `package_versions`."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {"schema_version": SCHEMA_VERSION, "disclaimer": DISCLAIMER, "package_versions": found}


def ending(answer: str, where: object, n_warnings: int = 0, is_demo: bool = False) -> str:
    """The last two lines a command prints: the disclaimer, then what came out, the number of warnings, and where."""
    counted = f"{n_warnings} warning{'s' * (n_warnings > 1)}" if n_warnings else ""
    return f"{DISCLAIMER}\n{' · '.join(filter(None, (answer, 'demonstration model' * is_demo, counted, str(where))))}"


class Stopwatch:
    """Measures seconds from its construction."""

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


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, and make cuDNN deterministic where it can be."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
