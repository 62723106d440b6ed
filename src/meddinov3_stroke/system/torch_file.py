"""The one door for torch's pickled files: `weights_only=True`, no fallback; and their atomic writer."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.system.inert_pickle import InertUnpickler

PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
)
"""What a damaged pickle makes an unpickler raise."""

_TENSOR_GLOBALS = frozenset({"collections.OrderedDict", "torch.Size", "torch.device", "torch.dtype", "torch.Tensor"})
_TENSOR_PREFIXES = ("torch._utils._rebuild_", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_")
_LEGACY_PICKLES = 5
"""A file of torch < 1.6 is this many pickles in a row (magic number, protocol, system, content, storage keys)."""


def load_torch_file(path: Path) -> Any:
    """The tensors and plain containers of a `torch.save` file, on the CPU; no code of the file runs.

    Raises:
        MissingWeights: no such file.
        UnsafeWeights: the pickle asks for more than tensors; the message names what.
        WeightsError: not a torch file (a directory, an HTML page, a Git-LFS pointer, a truncated archive).
    """
    path = Path(path)
    refuse_impostors(path)
    verify_records(path)
    foreign = foreign_globals(path)
    if foreign:
        raise UnsafeWeights(
            f"{path} holds more than tensors: {', '.join(foreign[:8])}; nothing of it was run; if you trust it, "
            f"convert it once in isolation: meddinov3-stroke convert-weights --input {path.name} --output "
            f"{path.with_suffix('.safetensors').name}"
        )
    try:
        with warnings.catch_warnings():
            # Said of any file that is not of protocol 2; what matters follows: it loads whole, or it is refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, *PICKLE_ERRORS) as error:
        raise damaged(path, error) from error


def save_torch_file(path: Path, content: Any) -> None:
    """Write `content` with `torch.save`, atomically."""
    with atomic_file(path) as handle:
        torch.save(content, handle)


def damaged(path: Path, error: BaseException) -> WeightsError:
    """The error for a file that begins like a torch file and cannot be read as one."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WeightsError(f"{path} is no readable torch file (truncated or damaged?): {reason[:160]}; fetch it again")


def foreign_globals(path: Path) -> list[str]:
    """Names that the file's pickle imports and that are neither tensors nor plain containers; nothing is imported.

    Raises:
        WeightsError: the archive is damaged, or holds records that torch never writes.
    """
    names: set[str] = set()
    for stream, n_pickles in _pickle_streams(path):
        for _ in range(n_pickles):
            unpickler = InertUnpickler(stream)
            try:
                unpickler.load()
            except PICKLE_ERRORS:
                break  # not a pickle to its end: torch.load says so
            finally:
                names |= unpickler.found
    return sorted(name for name in names if not is_tensor_global(name))


def is_tensor_global(name: str) -> bool:
    """Whether a pickle needs this name for tensors and plain containers only."""
    storage = name.startswith("torch.") and name.endswith("Storage")
    dtype = name.startswith("torch.") and isinstance(getattr(torch, name[6:], None), torch.dtype)
    return name in _TENSOR_GLOBALS or name.startswith(_TENSOR_PREFIXES) or storage or dtype


def open_archive(path: Path) -> zipfile.ZipFile:
    """The zip archive of a torch file, its records known to be stored as torch stores them.

    Raises:
        WeightsError: no readable archive, or a compressed record (torch writes none; it could inflate without bound).
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise damaged(path, error) from error
    packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        archive.close()
        raise WeightsError(f"{path} holds compressed records ({packed[0]}), which torch never writes; fetch it again")
    if not any(info.CRC for info in archive.infolist()):  # written with torch.serialization.set_crc32_options(False)
        for info in archive.infolist():
            del info.CRC  # zipfile then reads without comparing
    return archive


def verify_records(path: Path) -> None:
    """Read every record of a torch archive against its CRC-32, which torch.load does not do; 0.4 s per GB.

    Raises:
        WeightsError: a record was changed or cut after it was written.
    """
    if not _is_archive(path):
        return
    with open_archive(path) as archive:
        try:
            changed = archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise damaged(path, error) from error
    if changed is not None:
        raise WeightsError(f"{path} is damaged: record {changed} fails its CRC-32; fetch it again")


def refuse_impostors(path: Path) -> None:
    """Return if `path` is a file with bytes that could be weights.

    Raises:
        MissingWeights: no such file.
        WeightsError: a directory, an empty file, an HTML page or a Git-LFS pointer, named for what it is.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a directory, not a weights file; name the file in it")
    if not path.is_file():
        raise MissingWeights(f"no weights file at {path}; found nothing, expected a .pt, .pth or .safetensors file")
    with path.open("rb") as handle:
        head = handle.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise WeightsError(f"{path} is empty; fetch it again")
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError(f"{path} is an HTML page, not weights (a quota or login page was saved?); fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git-LFS pointer, not weights; run git lfs pull, or download the file itself")


def _pickle_streams(path: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Each run of pickles in the file and how many it may hold."""
    if not _is_archive(path):
        with path.open("rb") as handle:
            yield handle, _LEGACY_PICKLES
        return
    with open_archive(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield io.BytesIO(_read_record(archive, name, path)), 1


def _is_archive(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(2) == b"PK"


def _read_record(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, error) from error
