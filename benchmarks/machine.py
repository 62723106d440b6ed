"""The machine and the packages that the figures belong to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from meddinov3_stroke.system.devices import CPUINFO, available_cpus, bf16_flag, cpu_threads

PACKAGES = ("meddinov3-stroke", "torch", "openvino", "transformers", "nncf", "numpy", "nibabel", "scikit-learn")


def describe_machine() -> dict[str, Any]:
    """Processor, bf16 instructions, cores, threads, versions, and the load average at this moment."""
    return {
        "cpu_model": _cpu_model(),
        "bf16_flag": bf16_flag(),
        "cores": available_cpus(),
        "threads": cpu_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average": list(os.getloadavg()),
    }


def _cpu_model() -> str:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
