"""What the processor can do, as the system tells it, without importing an engine."""

from __future__ import annotations

import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists the instruction sets of the processor."""

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets that multiply bf16 natively: Intel and AMD (x86-64), Arm."""


def bf16_flag(cpuinfo: Path = CPUINFO) -> str | None:
    """The first instruction set of `BF16_FLAGS` that this CPU has; None where it has none, or the system does not say.

    bf16 without such instructions is emulated: it was 6 times slower than fp32 on a CPU with AVX2 alone.
    """
    flags = _flags(cpuinfo)
    return next((flag for flag in BF16_FLAGS if flag in flags), None)


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the system gives it, `unknown` where it does not."""
    return _field(cpuinfo, "model name") or "unknown"


def _flags(cpuinfo: Path) -> frozenset[str]:
    return frozenset((_field(cpuinfo, "flags|Features") or "").split())


def _field(cpuinfo: Path, name: str) -> str | None:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None  # no Linux: nothing is claimed of the CPU
    found = re.search(rf"^(?:{name})\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None
