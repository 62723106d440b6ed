"""What every output states about its origin, and the seeding of a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

DISCLAIMER = "research use only, not for clinical diagnosis"
"""Part of every output."""

SCHEMA_VERSION = 1
"""Version of the JSON documents this package writes; raised when a key changes its meaning."""

_PACKAGES = ("meddinov3-stroke", "torch", "openvino", "numpy", "nibabel", "scikit-learn", "safetensors")


def provenance() -> dict[str, Any]:
    """The keys every JSON output begins with: `schema_version`, `disclaimer`, `package_versions`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "disclaimer": DISCLAIMER,
        "package_versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, and make cuDNN deterministic where it can be."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
