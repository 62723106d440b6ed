"""Which engine computes, in which precision, where, and why. Nothing is imported that takes long."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.system.cpu import bf16_flag
from meddinov3_stroke.system.device import resolve_device

ENGINES = ("torch", "openvino")
"""What can run the backbone."""

PRECISIONS = ("fp32", "bf16", "int8")
"""Arithmetic of the matrix products; int8 needs a calibration of its own and is never a default."""


@dataclass(frozen=True)
class Execution:
    """How a backbone runs, with nothing left at `auto`."""

    engine: str
    precision: str
    device: str
    """As torch names it: cpu, cuda:N or mps."""
    reason: str
    """Why this engine and precision, for people."""
    precision_was_auto: bool = False
    """Whether the precision may still give way to fp32 where the weights do not stand it."""


def resolve_execution(engine: str = "auto", precision: str = "auto", device: str = "auto") -> Execution:
    """The fastest engine that keeps fidelity on this machine, where the arguments leave a choice.

    On a CPU OpenVINO where it is installed, in bf16 where the CPU multiplies bf16 natively; on a CUDA GPU torch in
    bf16 where the GPU has it; else fp32.

    Raises:
        UsageError: no such engine, precision or device, or three that do not go together.
        DeviceUnavailable: the device is not there.
    """
    _check("--engine", engine, ENGINES)
    _check("--precision", precision, PRECISIONS)
    wants_openvino = engine == "openvino" or precision == "int8"
    if engine == "torch" and precision == "int8":
        raise UsageError("--engine torch --precision int8: int8 runs on OpenVINO only; use --engine openvino")
    where = "cpu" if wants_openvino and device == "auto" else resolve_device(device)
    if wants_openvino and where != "cpu":
        raise UsageError(
            f"--device {device}: OpenVINO computes on the CPU here; use --device cpu, or --engine torch in fp32 or bf16"
        )
    chosen, why_engine = _engine(engine, wants_openvino, where)
    arithmetic, why_precision = (
        _auto_precision(where) if precision == "auto" else (precision, f"{precision} was asked for")
    )
    return Execution(chosen, arithmetic, where, f"{why_engine}; {why_precision}", precision == "auto")


def _check(flag: str, name: str, known: tuple[str, ...]) -> None:
    if name != "auto" and name not in known:
        raise UsageError(f"{flag} {name}: found {name!r}, expected one of auto, {', '.join(known)}")


def _engine(engine: str, wants_openvino: bool, where: str) -> tuple[str, str]:
    has_openvino = find_spec("openvino") is not None
    if wants_openvino and not has_openvino:
        raise UsageError("OpenVINO is not installed here; install the package anew, or use --engine torch")
    if engine != "auto":
        return engine, f"{engine} was asked for"
    if wants_openvino:
        return "openvino", "int8 runs on OpenVINO"
    if where != "cpu":
        return "torch", f"torch is the engine for {where}"
    if has_openvino:
        return "openvino", "OpenVINO is the fastest engine on a CPU"
    return "torch", "OpenVINO is not installed"


def _auto_precision(where: str) -> tuple[str, str]:
    if where == "cpu":
        flag = bf16_flag()
        return ("bf16", f"the CPU has {flag}") if flag else ("fp32", "the CPU shows no bf16 instructions")
    if where == "mps":
        return "fp32", "bf16 was not measured on Metal"
    import torch

    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16", "the GPU has bf16") if supported else ("fp32", "the GPU has no bf16")
