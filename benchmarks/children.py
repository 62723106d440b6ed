"""Measurements in a process of their own: fresh memory, fresh imports, another set of cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def told_by(module: str, *arguments: Any, cores: Sequence[int] | None = None) -> dict[str, Any]:
    """The JSON object that `python -m <module> <arguments>` prints as its last line, run on these cores."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    before = os.sched_getaffinity(0)
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)  # a child inherits it
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    finally:
        os.sched_setaffinity(0, before)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
