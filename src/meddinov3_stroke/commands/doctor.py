"""Verb `doctor`: whether this machine has what the commands need, and the fix of each thing it lacks."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from meddinov3_stroke import __version__, config
from meddinov3_stroke.errors import MachineError, MedDINOError
from meddinov3_stroke.system.command import ConsoleOptions, command_of, run_command
from meddinov3_stroke.system.devices import (
    available_cpus,
    cpu_flags,
    gpu_may_exist,
    resolve_device,
    resolve_execution,
)

Status = Literal["ok", "note", "missing"]

LEAST_PYTHON = (3, 11)
LEAST_FREE_GB, LEAST_MEMORY_GB = 2.0, 2.0
"""Below these a run may fail: weights and outputs of one case take 0.5 GB, prediction 1.5 GB of memory."""
RSNA_CACHE_GB = 3.0
"""Embeddings of RSNA's 752,803 training slices, 3 KiB each, and the features made of them."""
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
INSTALL_TORCH = "pip install 'meddinov3-stroke[torch]' (a checkout: uv sync)"
PACKAGES = {"pylibjpeg": "pylibjpeg-openjpeg pylibjpeg-rle", "gdcm": "python-gdcm", "pyjpegls": "pyjpegls"}
"""pydicom's name of a decoder -> what installs it."""
SWITCHES = ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_ENDPOINT", "HF_MIRROR")


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Check Python, disk, memory, CPU, GPU, weights, caches, DICOM codecs and network settings; change nothing.

    Exits with 0 if everything that is needed works, with 7 if something is missing.
    """

    json: bool = False
    """Print the checks as one JSON document instead of a table."""


@dataclass(frozen=True)
class Check:
    """What was found of one thing."""

    name: str
    status: Status
    """`missing` if predictions need it; `note` if only some commands do, or they are slower without."""
    found: str
    fix: str = ""


def run(args: Args) -> list[Check]:
    """Every check, printed; raises MachineError if something that is needed is missing."""
    checks = list(_checks())
    lacking = [one.name for one in checks if one.status == "missing"]
    if args.json:
        from meddinov3_stroke.system.provenance import provenance

        print(json.dumps({**provenance(), "ok": not lacking, "checks": [asdict(one) for one in checks]}, indent=2))
    else:
        _print(checks)
    if lacking:
        raise MachineError(f"missing: {', '.join(lacking)}; the list above gives the fix of each")
    return checks


def _checks() -> Iterator[Check]:
    kinds: dict[str, Callable[[str], Check]] = {
        "Python": _python,
        "disk": _disk,
        "memory": _memory,
        "CPU": _cpu,
        "GPU": _gpu,
        "torch": _torch,
        "weights": _weights,
        "DICOM codecs": _codecs,
        "network": _network,
        "engine cache": lambda name: _folder(name, config.engine_cache(), "point XDG_CACHE_HOME to a writable folder"),
        "feature cache": lambda name: _folder(
            name, config.RSNA_CACHE_DIR, "pass --cache-dir to train-rsna and extract"
        ),
        "checkpoints": lambda name: _folder(name, config.RSNA_CHECKPOINTS_DIR, "pass --checkpoints-dir to train-rsna"),
        "outputs": lambda name: _folder(name, config.OUTPUTS_DIR, "work in a writable folder, or pass --output-dir"),
    }
    for name, check in kinds.items():
        try:
            yield check(name)
        except (MedDINOError, OSError) as error:
            found, _, fix = str(error).partition("; ")  # an error states what is wrong, then what to do
            yield Check(name, "missing", found, fix)


def _python(name: str) -> Check:
    is_new = sys.version_info[:2] >= LEAST_PYTHON
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    found = f"{platform.python_version()}, {where}, {sys.executable}"
    return Check(name, "ok" if is_new else "missing", found, "" if is_new else "install Python 3.11 or newer")


def _disk(name: str) -> Check:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free_gb:.1f} GB free in {Path.cwd()}"
    if free_gb < LEAST_FREE_GB:
        return Check(name, "missing", found, f"free at least {LEAST_FREE_GB:g} GB, or work on another disk")
    if free_gb < RSNA_CACHE_GB + LEAST_FREE_GB:
        return Check(name, "note", f"{found}; RSNA's features take {RSNA_CACHE_GB:g} GB", "pass --cache-dir elsewhere")
    return Check(name, "ok", found)


def _memory(name: str) -> Check:
    gigabytes = _available_memory_gb()
    if gigabytes is None:
        return Check(name, "note", f"not known on {platform.system()}", f"have {LEAST_MEMORY_GB:g} GB free")
    found = f"{gigabytes:.1f} GB available"
    if gigabytes < LEAST_MEMORY_GB:
        return Check(name, "missing", found, f"close programs or raise the limit: {LEAST_MEMORY_GB:g} GB are needed")
    return Check(name, "ok", found)


def _available_memory_gb() -> float | None:
    """What Linux says is available, within the limit of the control group (containers, cluster jobs)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{what}").read_text().strip() for what in ("max", "current"))
        available = available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no control group of version 2
    return available / 1e9


def _cpu(name: str) -> Check:
    flags = cpu_flags()
    shown = ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "instruction sets not known"
    run = resolve_execution(device="cpu")
    found = f"{available_cpus()} cores, {platform.machine()}, {shown}; {run.engine} in {run.precision}: {run.reason}"
    return Check(name, "ok", found)


def _gpu(name: str) -> Check:
    if not gpu_may_exist():
        return Check(name, "ok", "no driver; everything also runs on the CPU")
    if find_spec("torch") is None:
        return Check(name, "note", "a driver is installed, torch is not", INSTALL_TORCH)
    if (device := resolve_device("auto")) == "cpu":
        fix = "install a torch build for this driver (https://pytorch.org/get-started), or compute with --device cpu"
        return Check(name, "note", "a driver is installed, torch sees no GPU", fix)
    import torch

    return Check(name, "ok", f"{device}, {torch.cuda.get_device_name()}" if device.startswith("cuda") else device)


def _torch(name: str) -> Check:
    if find_spec("torch") is None:
        return Check(name, "note", "not installed; training and GPUs need it", INSTALL_TORCH)
    return Check(name, "ok", version("torch"))


def _weights(name: str) -> Check:
    from meddinov3_stroke.download import record_path
    from meddinov3_stroke.system.digest import sha256_of_file
    from meddinov3_stroke.system.torch_file import refuse_impostors

    settings, get = config.load_settings(), command_of("download")
    path = settings.meddinov3_ckpt_path
    if not path.exists():
        fix = f"{get}; without a network, add --from-file FILE; to try without weights: --backbone demo"
        return Check(name, "missing", f"none at {path}", fix)
    refuse_impostors(path)
    digest, known = sha256_of_file(path), settings.meddinov3_sha256
    if known is None and record_path(path).is_file():
        known = json.loads(record_path(path).read_bytes()).get("sha256")
    found = f"{path}, {path.stat().st_size / 1e6:.0f} MB, sha256 {digest[:12]}"
    if known is None:
        return Check(name, "note", f"{found}, no digest to compare it with", f"{get} records it")
    if known.lower().removeprefix("sha256:") != digest:
        return Check(name, "missing", f"{found}, expected {known[:12]}", f"{get} --force")
    return Check(name, "ok", f"{found}, as recorded")


def _folder(name: str, folder: Path, fix: str) -> Check:
    from meddinov3_stroke.system.atomic import require_writable

    try:
        require_writable(folder)
    except MachineError as error:
        is_needed = folder != config.engine_cache()  # without it, weights are measured again in each run
        return Check(name, "missing" if is_needed else "note", str(error).partition("; ")[0], fix)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return Check(
        name, "ok", f"{folder}, writable, {size / 1e6:.0f} MB" if folder.exists() else f"{folder}, can be made"
    )


def _codecs(name: str) -> Check:
    from pydicom.pixels.decoders.base import get_decoder

    from meddinov3_stroke.ct.dicom.decoders import PLUGINS

    absent = {
        plugin: uid
        for uid, plugins in PLUGINS.items()
        for plugin in plugins
        if plugin not in get_decoder(uid).available_plugins
    }
    readable = [uid for uid, plugins in PLUGINS.items() if any(one not in absent for one in plugins)]
    found = f"{len(readable)} of {len(PLUGINS)} compressed transfer syntaxes can be decoded"
    if not absent:
        return Check(name, "ok", found)
    fix = f"pip install --force-reinstall {' '.join(PACKAGES[plugin] for plugin in absent)}"
    return Check(name, "note" if len(readable) == len(PLUGINS) else "missing", f"{found}; no {', '.join(absent)}", fix)


def _network(name: str) -> Check:
    given = {key: os.environ.get(key) or os.environ.get(key.lower(), "") for key in SWITCHES}
    settings = config.load_settings()
    given |= {"HF_ENDPOINT": settings.hf_endpoint or "", "HF_MIRROR": settings.hf_mirror or ""}
    shown = ", ".join(f"{key} {_without_secrets(value)}" for key, value in given.items() if value)
    if given["HF_HUB_OFFLINE"].upper() in ("1", "ON", "YES", "TRUE"):
        fix = "unset HF_HUB_OFFLINE to download, or fetch the file elsewhere and pass it with --from-file"
        return Check(name, "note", f"{shown}: Hugging Face is not contacted", fix)
    return Check(name, "ok", shown or "no proxy, mirror or offline switch is set")


def _without_secrets(value: str) -> str:
    """A URL without user, password and path; another value as it is."""
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") if parts.netloc else value


def _print(checks: Sequence[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from meddinov3_stroke.system.progress import console
    from meddinov3_stroke.system.provenance import DISCLAIMER

    styles = {"ok": "green", "note": "yellow", "missing": "bold red"}
    table = Table.grid(padding=(0, 2))
    for overflow in ("ellipsis", "ellipsis", "fold"):
        table.add_column(overflow=overflow, no_wrap=overflow == "ellipsis")
    for one in checks:
        table.add_row(f"[{styles[one.status]}]{one.status}[/]", one.name, escape(one.found))
        if one.fix:
            table.add_row("", "", f"[bold]fix:[/] {escape(one.fix)}")
    results = console()
    results.print(f"meddinov3-stroke {__version__} on {platform.platform()}", markup=False)
    results.print(table, width=min(results.width, 80))
    counts: dict[str, Any] = {status: sum(one.status == status for one in checks) for status in styles}
    print(f"{counts['ok']} ok, {counts['note']} to note, {counts['missing']} missing\n{DISCLAIMER}")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
