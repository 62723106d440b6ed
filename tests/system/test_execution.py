"""Which engine, precision and device are taken, on machines that are made up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch

from meddinov3_stroke.errors import DeviceUnavailable, MachineError, UsageError
from meddinov3_stroke.system import devices
from meddinov3_stroke.system.devices import ENGINES, PRECISIONS, resolve_execution

PROBE_IMPORTS = """
import sys
from pathlib import Path
from meddinov3_stroke.system import devices
devices.GPU_DRIVERS, devices.ROCM_DEVICE, sys.platform = (), Path("/no/such/device"), "linux"
from meddinov3_stroke.system.devices import resolve_execution
print(resolve_execution().device, [name for name in ("torch", "openvino") if name in sys.modules])
"""


@dataclass(frozen=True)
class Machine:
    """What the code may find out about a machine."""

    openvino: bool = True
    cpu_bf16: str | None = "avx512_bf16"
    n_cuda: int = 0
    cuda_bf16: bool = True
    mps: bool = False


PLAIN = Machine()
OLD_CPU = Machine(cpu_bf16=None)
NO_OPENVINO = Machine(openvino=False)
OLD_NO_OPENVINO = Machine(openvino=False, cpu_bf16=None)
CUDA = Machine(n_cuda=2)
OLD_CUDA = Machine(n_cuda=1, cuda_bf16=False)
MAC = Machine(cpu_bf16=None, mps=True)
MACHINES = [PLAIN, OLD_CPU, NO_OPENVINO, OLD_NO_OPENVINO, CUDA, OLD_CUDA, MAC]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Lets the code find a made-up machine."""

    def show(machine: Machine) -> None:
        missing = set() if machine.openvino else {"openvino"}
        monkeypatch.setattr(devices, "find_spec", lambda name: None if name in missing else object())
        monkeypatch.setattr(devices, "bf16_flag", lambda: machine.cpu_bf16)
        monkeypatch.setattr(devices, "gpu_may_exist", lambda: machine.n_cuda > 0 or machine.mps)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: machine.n_cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: machine.mps)

        def is_bf16_supported(including_emulation: bool = True) -> bool:
            return including_emulation or machine.cuda_bf16

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    return show


@pytest.mark.parametrize(
    ("machine", "wish", "expected", "reason"),
    [
        (PLAIN, {}, "openvino bf16 cpu", "OpenVINO is the fastest engine on a CPU; the CPU has avx512_bf16"),
        (OLD_CPU, {}, "openvino fp32 cpu", "the CPU shows no bf16 instructions"),
        (NO_OPENVINO, {}, "torch bf16 cpu", "OpenVINO is not installed; the CPU has avx512_bf16"),
        (OLD_NO_OPENVINO, {}, "torch fp32 cpu", "OpenVINO is not installed; the CPU shows no bf16 instructions"),
        (CUDA, {}, "torch bf16 cuda:0", "torch is the engine for cuda:0; the GPU has bf16"),
        (OLD_CUDA, {}, "torch fp32 cuda:0", "torch is the engine for cuda:0; the GPU has no bf16"),
        (MAC, {}, "torch fp32 mps", "torch is the engine for mps; bf16 was not measured on Metal"),
        (CUDA, {"device": "cpu"}, "openvino bf16 cpu", "OpenVINO is the fastest engine on a CPU"),
        (CUDA, {"device": "cuda:1"}, "torch bf16 cuda:1", "torch is the engine for cuda:1"),
        (CUDA, {"engine": "openvino"}, "openvino bf16 cpu", "openvino was requested; the CPU has avx512_bf16"),
        (CUDA, {"engine": "torch"}, "torch bf16 cuda:0", "torch was requested; the GPU has bf16"),
        (CUDA, {"precision": "fp32"}, "torch fp32 cuda:0", "fp32 was requested"),
        (CUDA, {"precision": "int8"}, "openvino int8 cpu", "int8 runs on OpenVINO; int8 was requested"),
        (PLAIN, {"precision": "int8"}, "openvino int8 cpu", "int8 runs on OpenVINO; int8 was requested"),
        (PLAIN, {"engine": "torch"}, "torch bf16 cpu", "torch was requested; the CPU has avx512_bf16"),
        (PLAIN, {"engine": "torch", "precision": "fp32"}, "torch fp32 cpu", "torch was requested; fp32 was requested"),
        (OLD_CPU, {"precision": "bf16"}, "openvino bf16 cpu", "bf16 was requested"),
        (MAC, {"precision": "bf16"}, "torch bf16 mps", "bf16 was requested"),
        (MAC, {"precision": "int8"}, "openvino int8 cpu", "int8 runs on OpenVINO"),
        (OLD_CUDA, {"precision": "bf16"}, "torch bf16 cuda:0", "bf16 was requested"),
    ],
)
def test_what_runs_and_why(
    on: Callable[[Machine], None], machine: Machine, wish: dict[str, str], expected: str, reason: str
) -> None:
    on(machine)
    found = resolve_execution(**wish)
    assert f"{found.engine} {found.precision} {found.device}" == expected
    assert reason in found.reason
    assert found.precision_was_auto == ("precision" not in wish)


@pytest.mark.parametrize(
    ("machine", "wish", "message"),
    [
        (PLAIN, {"engine": "onnx"}, "--engine onnx: found 'onnx', expected one of auto, torch, openvino"),
        (PLAIN, {"precision": "fp16"}, "--precision fp16: found 'fp16', expected one of auto, fp32, bf16, int8"),
        (PLAIN, {"device": "tpu"}, "--device tpu: not a device"),
        (PLAIN, {"engine": "torch", "precision": "int8"}, "int8 runs on OpenVINO only; use --engine openvino"),
        (NO_OPENVINO, {"engine": "openvino"}, "OpenVINO is not installed here.*use --engine torch"),
        (NO_OPENVINO, {"precision": "int8"}, "OpenVINO is not installed here"),
        (CUDA, {"engine": "openvino", "device": "cuda:0"}, "--device cuda:0: OpenVINO computes on the CPU here"),
        (CUDA, {"precision": "int8", "device": "gpu"}, "--device gpu: OpenVINO computes on the CPU here"),
        (MAC, {"engine": "openvino", "device": "mps"}, "use --device cpu, or --engine torch in fp32 or bf16"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    on: Callable[[Machine], None], machine: Machine, wish: dict[str, str], message: str
) -> None:
    on(machine)
    with pytest.raises(UsageError, match=message):
        resolve_execution(**wish)


@pytest.mark.parametrize("wish", [{"engine": "torch"}, {"device": "cuda:0"}, {"device": "gpu"}], ids=str)
def test_an_engine_that_needs_torch_and_lacks_it_names_the_install_command(
    on: Callable[[Machine], None], monkeypatch: pytest.MonkeyPatch, wish: dict[str, str]
) -> None:
    on(CUDA)
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(MachineError, match=r"pip install 'meddinov3-stroke\[torch\]'"):
        resolve_execution(**wish)
    assert resolve_execution().engine == "openvino"


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_a_wish_is_honoured_or_refused_and_int8_is_never_a_default(
    on: Callable[[Machine], None], machine: Machine
) -> None:
    on(machine)
    n_resolved = 0
    devices = ("auto", "cpu", "gpu", "cuda", "cuda:0", "cuda:7", "mps")
    for engine, precision, where in product(("auto", *ENGINES), ("auto", *PRECISIONS), devices):
        try:
            found = resolve_execution(engine, precision, where)
        except (UsageError, DeviceUnavailable):
            continue
        n_resolved += 1
        assert found.engine == engine or (engine == "auto" and found.engine in ENGINES)
        assert found.precision == precision or (precision == "auto" and found.precision in ("fp32", "bf16"))
        assert found.device == where or where == "auto" or (where in ("gpu", "cuda") and found.device != "cpu")
        assert found.engine == "torch" or (machine.openvino and found.device == "cpu")
        assert found.precision_was_auto == (precision == "auto")
    assert n_resolved >= 12


def test_nothing_slow_is_imported_where_there_is_no_gpu_driver() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROBE_IMPORTS], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "cpu []"
