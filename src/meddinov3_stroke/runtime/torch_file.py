"""The one door for torch's pickled files: `weights_only=True`, no fallback; and their atomic writer."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.runtime.atomic import atomic_file

_TENSOR_GLOBALS = frozenset({"collections.OrderedDict", "torch.Size", "torch.device", "torch.dtype", "torch.Tensor"})
_TENSOR_PREFIXES = ("torch._utils._rebuild_", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_")


def load_torch_file(path: Path) -> Any:
    """The tensors and plain containers of a `torch.save` file, on the CPU; no code of the file runs.

    Raises:
        MissingWeights: no such file.
        UnsafeWeights: the pickle asks for more than tensors; the message names what.
        WeightsError: not a torch file (an HTML page, a Git-LFS pointer, a truncated archive).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeights(f"no weights file at {path}; found nothing, expected a .pt or .pth file")
    _refuse_impostors(path)
    foreign = foreign_globals(path)
    if foreign:
        raise UnsafeWeights(
            f"{path} holds more than tensors: {', '.join(foreign[:8])}; nothing of it was run; if you trust it, "
            f"convert it once in isolation: meddinov3-stroke convert-weights --input {path.name} --output "
            f"{path.with_suffix('.safetensors').name}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} is no readable torch file (truncated or damaged?): {reason[:160]}") from error


def save_torch_file(path: Path, content: Any) -> None:
    """Write `content` with `torch.save`, atomically."""
    with atomic_file(path) as handle:
        torch.save(content, handle)


def foreign_globals(path: Path) -> list[str]:
    """Names that the file's pickle imports and that are neither tensors nor plain containers, read, not run."""
    names = set()
    for stream in _pickle_streams(path):
        names |= set(_imported_names(stream))
    return sorted(name for name in names if not _is_tensor_global(name))


def _is_tensor_global(name: str) -> bool:
    storage = name.startswith("torch.") and name.endswith("Storage")
    dtype = name.startswith("torch.") and hasattr(torch, name[6:]) and isinstance(getattr(torch, name[6:]), torch.dtype)
    return name in _TENSOR_GLOBALS or name.startswith(_TENSOR_PREFIXES) or storage or dtype


def _pickle_streams(path: Path) -> list[bytes]:
    if not zipfile.is_zipfile(path):
        return [path.read_bytes()]
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise WeightsError(f"{path} is a damaged torch archive: {error}; fetch it again") from error


def _imported_names(stream: bytes) -> list[str]:
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]) if len(strings) > 1 else "an unnamed global")
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError):
        return names  # not a pickle to its end: torch.load says so
    return names


def _refuse_impostors(path: Path) -> None:
    with path.open("rb") as handle:
        head = handle.read(512).lstrip().lower()
    if not head:
        raise WeightsError(f"{path} is empty; fetch it again")
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError(f"{path} is an HTML page, not weights (a quota or login page was saved?); fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git-LFS pointer, not weights; run git lfs pull, or download the file itself")
