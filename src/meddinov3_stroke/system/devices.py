"""Which engine, precision and device to use, and what the machine offers. torch is imported only if a GPU may exist."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from meddinov3_stroke.errors import DeviceUnavailable, MachineError, UsageError

ENGINES = ("torch", "openvino")

PRECISIONS = ("fp32", "bf16", "int8")
"""Arithmetic of the matrix products; int8 needs a calibration and is never a default."""

GPU_DRIVERS, ROCM_DEVICE = ("libcuda.so.1", "nvcuda.dll"), Path("/dev/kfd")
"""Driver libraries without which torch finds no NVIDIA GPU, and the device file without which it finds no AMD GPU."""

CPUINFO = Path("/proc/cpuinfo")

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets that multiply bf16 natively: Intel and AMD (x86-64), Arm."""


@dataclass(frozen=True)
class Execution:
    """How a backbone runs; nothing is left at `auto`."""

    engine: str
    precision: str
    device: str
    reason: str
    """Why this engine and precision, for people."""
    precision_was_auto: bool = False
    """Whether the precision falls back to fp32 if the weights lose too much in it."""


def resolve_execution(engine: str = "auto", precision: str = "auto", device: str = "auto") -> Execution:
    """The fastest faithful engine and precision on this machine that the arguments allow.

    On a CPU OpenVINO, in bf16 if the CPU multiplies bf16 natively; on a CUDA GPU torch in bf16 if the GPU has it;
    otherwise fp32. Raises UsageError, DeviceUnavailable, or MachineError where torch is not installed.
    """
    for flag, name, known in (("--engine", engine, ENGINES), ("--precision", precision, PRECISIONS)):
        if name != "auto" and name not in known:
            raise UsageError(f"{flag} {name}: found {name!r}, expected one of auto, {', '.join(known)}")
    wants_openvino = engine == "openvino" or precision == "int8"
    if engine == "torch" and precision == "int8":
        raise UsageError("--engine torch --precision int8: int8 runs on OpenVINO only; use --engine openvino")
    where = "cpu" if wants_openvino and device == "auto" else resolve_device(device)
    if wants_openvino and where != "cpu":
        raise UsageError(
            f"--device {device}: OpenVINO computes on the CPU here; use --device cpu, or --engine torch in fp32 or bf16"
        )
    chosen, why_engine = _engine(engine, wants_openvino, where)
    if chosen == "torch":
        require_torch()
    if precision != "auto":
        return Execution(chosen, precision, where, f"{why_engine}; {precision} was requested")
    arithmetic, why_precision = _auto_precision(where)
    return Execution(chosen, arithmetic, where, f"{why_engine}; {why_precision}", precision_was_auto=True)


def _engine(engine: str, wants_openvino: bool, where: str) -> tuple[str, str]:
    has_openvino = find_spec("openvino") is not None
    if wants_openvino and not has_openvino:
        raise UsageError("OpenVINO is not installed here; reinstall the package, or use --engine torch")
    if engine != "auto":
        return engine, f"{engine} was requested"
    if where != "cpu":
        return "torch", f"torch is the engine for {where}"
    if not has_openvino:
        return "torch", "OpenVINO is not installed"
    return "openvino", "int8 runs on OpenVINO" if wants_openvino else "OpenVINO is the fastest engine on a CPU"


def _auto_precision(where: str) -> tuple[str, str]:
    if where == "cpu":
        flag = bf16_flag()
        return ("bf16", f"the CPU has {flag}") if flag else ("fp32", "the CPU shows no bf16 instructions")
    if where == "mps":
        return "fp32", "bf16 was not measured on Metal"
    import torch

    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16", "the GPU has bf16") if supported else ("fp32", "the GPU has no bf16")


def resolve_device(name: str) -> str:
    """`cpu`, `cuda:N` or `mps` for `auto|cpu|gpu|gpu:N|cuda|cuda:N|N|mps`; only `auto` falls back.

    Raises UsageError for another name, DeviceUnavailable, or MachineError where a GPU needs torch.
    """
    if not re.fullmatch(r"auto|cpu|mps|(gpu|cuda)(:\d+)?|\d+", name):
        raise UsageError(f"--device {name}: not a device; found {name!r}, expected auto, cpu, gpu, cuda:N or mps")
    if name == "cpu" or (name == "auto" and not (gpu_may_exist() and find_spec("torch"))):
        return "cpu"
    require_torch()
    import torch

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return f"cuda:{torch.cuda.current_device()}" if has_cuda else "mps" if has_mps else "cpu"
    if name == "mps" or (name == "gpu" and not has_cuda and has_mps):
        _require(has_mps, name, "no Metal device is available")
        return "mps"
    count = torch.cuda.device_count() if has_cuda else 0
    _require(count > 0, name, "torch sees no GPU")
    number = name.removeprefix("gpu").removeprefix("cuda").removeprefix(":")
    index = int(number) if number else torch.cuda.current_device()
    _require(index < count, name, f"torch sees {count} GPU(s), numbered from 0")
    return f"cuda:{index}"


def every_gpu() -> list[str]:
    """`cuda:N` of every GPU that torch sees; errors as for `resolve_device`."""
    resolve_device("cuda")
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _require(available: bool, name: str, reason: str) -> None:
    if not available:
        raise DeviceUnavailable(f"--device {name}: {reason}; use --device cpu, or --device auto for any that exists")


def require_torch() -> None:
    """Raise MachineError, with the install command, unless torch is installed."""
    if find_spec("torch") is None:
        raise MachineError("torch is not installed; training and GPUs need it: pip install 'meddinov3-stroke[torch]'")


def gpu_may_exist() -> bool:
    """Whether a GPU driver is installed; without one torch can see no GPU and need not be imported."""
    return sys.platform == "darwin" or ROCM_DEVICE.exists() or any(map(_loads, GPU_DRIVERS))


def _loads(library: str) -> bool:
    try:
        return bool(ctypes.CDLL(library))
    except OSError:
        return False


def affinity() -> list[int]:
    """Numbers of the cores this process may use; empty where the system does not tell (macOS, Windows)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def available_cpus() -> int:
    """Cores this process may use: its CPU affinity, not the host's core count."""
    return len(affinity()) or os.cpu_count() or 1


def cpu_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS if it is a positive number, else `available_cpus`."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else available_cpus()


def use_available_cpus() -> int:
    """The thread count, after setting torch's to `cpu_threads`."""
    import torch

    torch.set_num_threads(cpu_threads())
    return torch.get_num_threads()


def bf16_flag(cpuinfo: Path = CPUINFO) -> str | None:
    """The first of `BF16_FLAGS` that this CPU has, if any; without, bf16 is emulated, 6 times slower than fp32."""
    flags = cpu_flags(cpuinfo)
    return next((flag for flag in BF16_FLAGS if flag in flags), None)


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets of this CPU, as Linux names them; empty where it is not Linux."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split() if found else ())
