"""Where to compute, and with how many threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from meddinov3_stroke.errors import DeviceUnavailable, MachineError, UsageError
from meddinov3_stroke.system import devices
from meddinov3_stroke.system.devices import (
    available_cpus,
    cpu_threads,
    gpu_may_exist,
    resolve_device,
    use_available_cpus,
)

PROBE_AFFINITY = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from meddinov3_stroke.system.devices import available_cpus, cpu_threads
print(available_cpus(), cpu_threads(), "torch" in sys.modules)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch show so many CUDA GPUs, the current one among them, and Metal or none."""

    def show(n_cuda: int = 0, mps: bool = False, current: int = 0, driver: bool | None = None) -> None:
        has_driver = (n_cuda > 0 or mps) if driver is None else driver
        monkeypatch.setattr(devices, "gpu_may_exist", lambda: has_driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return show


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Puts torch's thread count back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("shown", "name", "expected"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"driver": True}, "auto", "cpu"),
        ({"n_cuda": 2, "current": 1}, "auto", "cuda:1"),
        ({"n_cuda": 2, "current": 1}, "gpu", "cuda:1"),
        ({"n_cuda": 2, "current": 1}, "cuda", "cuda:1"),
        ({"n_cuda": 2}, "cuda:1", "cuda:1"),
        ({"n_cuda": 4}, "gpu:3", "cuda:3"),
        ({"n_cuda": 4}, "3", "cuda:3"),
        ({"n_cuda": 4}, "0", "cuda:0"),
        ({"n_cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"mps": True}, "gpu", "mps"),
        ({"mps": True}, "mps", "mps"),
        ({"n_cuda": 1, "mps": True}, "gpu", "cuda:0"),
        ({"n_cuda": 1, "mps": True}, "mps", "mps"),
    ],
)
def test_a_name_stands_for_what_the_machine_has(
    machine: Callable[..., None], shown: dict[str, int], name: str, expected: str
) -> None:
    machine(**shown)
    assert resolve_device(name) == expected


@pytest.mark.parametrize(
    ("shown", "name", "message"),
    [
        ({}, "gpu", "--device gpu: torch sees no GPU; use --device cpu"),
        ({}, "cuda", "torch sees no GPU"),
        ({}, "cuda:0", "torch sees no GPU"),
        ({}, "mps", "no Metal device is available"),
        ({"mps": True}, "cuda:0", "torch sees no GPU"),
        ({"n_cuda": 2}, "cuda:2", r"torch sees 2 GPU\(s\), numbered from 0"),
        ({"n_cuda": 2}, "mps", "no Metal device is available"),
        ({"n_cuda": 2}, "gpu:2", r"--device gpu:2: torch sees 2 GPU\(s\)"),
        ({"n_cuda": 2}, "2", r"--device 2: torch sees 2 GPU\(s\)"),
        ({}, "1", "torch sees no GPU"),
        ({"mps": True}, "gpu:0", "torch sees no GPU"),
    ],
)
def test_a_device_asked_for_by_name_never_gives_way_to_another(
    machine: Callable[..., None], shown: dict[str, int], name: str, message: str
) -> None:
    machine(**shown)
    with pytest.raises(DeviceUnavailable, match=message):
        resolve_device(name)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "", "cpu:0", "mps:0", "gpu:", "-1"])
def test_a_name_that_is_no_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, gpu, cuda:N or mps"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "1", "mps"])
def test_a_gpu_without_torch_names_the_install_command(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda package: None)
    monkeypatch.setattr(devices, "gpu_may_exist", lambda: True)
    with pytest.raises(MachineError, match=r"pip install 'meddinov3-stroke\[torch\]'") as caught:
        resolve_device(name)
    assert caught.value.exit_code == 7
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="drivers are libraries and device files here")
@pytest.mark.parametrize(
    ("library", "device_file", "expected"),
    [("libc.so.6", "absent", True), ("libno-such-driver.so", "kfd", True), ("libno-such-driver.so", "absent", False)],
)
def test_a_driver_that_is_there_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, device_file: str, expected: bool
) -> None:
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(devices, "GPU_DRIVERS", (library,))
    monkeypatch.setattr(devices, "ROCM_DEVICE", tmp_path / device_file)
    assert gpu_may_exist() is expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_threads_follow_the_affinity_of_the_process() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-c", PROBE_AFFINITY], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["1", "1", "False"]


@pytest.mark.parametrize("wish", ["3", "1", "64"])
def test_omp_num_threads_decides_where_it_is_a_number(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert cpu_threads() == int(wish)


@pytest.mark.parametrize("wish", ["", "0", "-2", "many", "2.5", "4,2", "\N{SUPERSCRIPT TWO}"])
def test_omp_num_threads_that_is_no_number_gives_the_affinity(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert cpu_threads() == available_cpus()


@pytest.mark.usefixtures("torch_threads")
def test_torch_is_given_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert use_available_cpus() == torch.get_num_threads() == 3
