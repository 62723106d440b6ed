"""torch's pickled files: read without torch and without running their code, written atomically."""

from __future__ import annotations

import io
import mmap
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.system.contents import HEAD_BYTES, describe_impostor

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

_STORAGES: dict[str, str] = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": "bf16",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
"""torch's storage classes, without their ending, and what their bytes are."""

_TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.(Size|device|dtype|Tensor|\w+Storage|(b?float|complex|q?u?int)\w*"
    r"|half|double|long|short|bool)|torch\.(_utils\._rebuild_|nn\.parameter\.Parameter|_tensor\._rebuild_)\w*"
)
"""Names a pickle needs for tensors and plain containers."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First of the pickles in a file of torch < 1.6."""

_LOCAL_HEADER = 30
"""Bytes of a zip record's header before its name."""


class TorchFile(NamedTuple):
    """The content of a torch file and what else its pickle names."""

    content: Any
    """Containers, numbers and text; tensors are numpy arrays (bf16 as float32), foreign objects are inert stand-ins."""
    foreign: tuple[str, ...]
    """Classes and functions named beside tensors; none was imported or run."""


def read_torch_file(path: Path, verified: bool = False) -> Any:
    """The content of a `torch.save` file, tensors as numpy arrays; neither torch nor code of the file runs.

    `verified` skips the CRC-32 of the records, for a file whose digest is known to be sound.

    Raises:
        MissingWeights: no such file.
        UnsafeWeights: the pickle asks for more than tensors; the message names what.
        WeightsError: not a torch file (a directory, an HTML page, a Git-LFS pointer, a truncated archive).
    """
    found = unpickle_torch_file(path, verified)
    if found.foreign:
        raise _unsafe(Path(path), found.foreign)
    return found.content


def unpickle_torch_file(path: Path, verified: bool = False) -> TorchFile:
    """As `read_torch_file`, with inert stand-ins for foreign objects instead of an error."""
    path, found = Path(path), set[str]()
    refuse_impostors(path)
    try:
        with path.open("rb") as handle:
            raw = np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        is_archive = raw[:4].tobytes() == b"PK\x03\x04" or zipfile.is_zipfile(path)
        content = _read_archive(path, raw, verified, found) if is_archive else _read_legacy(raw, found)
    except (RuntimeError, OSError, zipfile.BadZipFile, struct.error, *PICKLE_ERRORS) as error:
        if foreign := _foreign(found):
            raise _unsafe(path, foreign) from error
        raise _damaged(path, error) from error
    return TorchFile(content, _foreign(found))


def save_torch_file(path: Path, content: Any) -> None:
    """Write `content` with `torch.save`, atomically."""
    import torch

    with atomic_file(path) as handle:
        torch.save(content, handle)


def refuse_impostors(path: Path) -> None:
    """Return if `path` is a file with bytes that could be weights.

    Raises:
        MissingWeights: no such file.
        WeightsError: a directory, an empty file, an HTML page or a Git-LFS pointer, named for what it is.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a directory, not a weights file; name the file in it")
    if not path.is_file():
        raise MissingWeights(f"no weights file at {path}; expected a .pt, .pth or .safetensors file")
    with path.open("rb") as handle:
        found = describe_impostor(handle.read(HEAD_BYTES))
    if found is not None:
        raise WeightsError(f"{path} is {found}; expected weights; fetch it again")


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bf16 numbers given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Inert:
    """Stands for a class or function that a pickle names; takes any arguments and does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """A stand-in, whatever it is called with."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Another stand-in: pickles may call what they built."""
        return Inert()

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class InertUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and tensors; every other class or function becomes an `Inert`.

    `found` collects the dotted names that the pickle asks for; `storage(dtype, key, numel)` gives a storage's elements.
    """

    def __init__(self, handle: Any, found: set[str], storage: Callable[[str, str, int], Any] | None = None) -> None:
        super().__init__(handle)
        self._found, self._storage = found, storage

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for `module.name`; nothing is imported."""
        dotted = f"{module}.{name}"
        self._found.add(dotted)
        return _REBUILDERS.get(dotted) or type("Inert", (Inert,), {"stands_for": dotted})

    def persistent_load(self, pid: Any) -> Any:
        """A storage's elements; an `Inert` for a kind of storage that numpy does not know."""
        kind, key, numel = pid[1], str(pid[2]), int(pid[4])
        dtype = _STORAGES.get(getattr(kind, "stands_for", "").removeprefix("torch.").removesuffix("Storage"))
        return Inert() if dtype is None or self._storage is None else self._storage(dtype, key, numel)


def _foreign(found: set[str]) -> tuple[str, ...]:
    """The names that are neither tensors nor plain containers."""
    return tuple(sorted(name for name in found if not _TENSOR_GLOBALS.fullmatch(name)))


class _Container(dict[Any, Any]):
    """Stands for `OrderedDict`; takes no attributes from the pickle."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    """The view of a storage that is the tensor; checked against the storage's length."""
    if not isinstance(storage, np.ndarray):
        return storage
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if prod(size) else 0
    if min(offset, *size, *stride, 0) < 0 or reach > len(storage) or prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {size} does not fit in its storage, expected {len(storage)} elements")
    steps = tuple(step * storage.itemsize for step in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps)
    return widen_bf16(view) if storage.dtype == np.uint16 else view


_REBUILDERS: dict[str, Any] = {
    "collections.OrderedDict": _Container,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch.Size": tuple,
}
"""Dotted name in the pickle -> our own function or class in its place."""


def _elements(raw: np.ndarray, dtype: str, numel: int, name: str) -> np.ndarray:
    kind = np.dtype("<u2" if dtype == "bf16" else dtype)
    if len(raw) != numel * kind.itemsize:
        raise ValueError(f"record {name} holds {len(raw)} bytes, expected {numel} elements of {kind.itemsize}")
    return raw.view(kind)


def _read_archive(path: Path, raw: np.ndarray, verified: bool, found: set[str]) -> Any:
    """Content of the zip archive that torch writes since 1.6; the tensors are views of `raw`."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
    packed = [name for name, info in records.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path} holds compressed records ({packed[0]}), which torch never writes; fetch it again")
    checked = any(info.CRC for info in records.values())  # torch can be told to write none
    bodies = {name: _record(raw, info) for name, info in records.items()}
    for name, body in bodies.items():
        if checked and not verified and zlib.crc32(body.data) != records[name].CRC:
            raise WeightsError(f"{path} is damaged: record {name} fails its CRC-32; fetch it again")
    pickles = [name for name in bodies if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} holds {len(pickles)} data.pkl records, expected one; fetch it again")
    root = pickles[0].removesuffix("data.pkl")
    if bodies.get(f"{root}byteorder", raw[:0]).tobytes().strip() not in (b"", b"little"):
        raise WeightsError(f"{path} was written on a big-endian machine; save it again on a little-endian one")

    def storage(dtype: str, key: str, numel: int) -> np.ndarray:
        return _elements(bodies[f"{root}data/{key}"], dtype, numel, f"{root}data/{key}")

    return InertUnpickler(io.BytesIO(bodies[pickles[0]].tobytes()), found, storage).load()


def _record(raw: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a stored record."""
    start = info.header_offset
    header = raw[start : start + _LOCAL_HEADER].tobytes()
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    body = raw[start + _LOCAL_HEADER + name_length + extra_length :][: info.file_size]
    if not header.startswith(b"PK\x03\x04") or len(body) != info.file_size:
        raise zipfile.BadZipFile(f"record {info.filename} is cut short")
    return body


def _read_legacy(raw: np.ndarray, found: set[str]) -> Any:
    """Content of a file of torch < 1.6: magic number, protocol, system, content, storage keys, then the storages.

    The content comes before the storages, so it is read twice: first for their types, then with their elements.
    """
    stream, kinds = io.BytesIO(raw.tobytes()), dict[str, str]()
    header = [InertUnpickler(stream, found).load() for _ in range(3)]
    content_at = stream.tell()
    InertUnpickler(stream, found, lambda dtype, key, numel: kinds.update({key: dtype})).load()
    keys, storages = InertUnpickler(stream, found).load(), dict[str, np.ndarray]()
    if header[0] != _LEGACY_MAGIC:
        raise ValueError("it does not begin like a torch file")
    for key in map(str, keys):
        (numel,) = struct.unpack("<q", stream.read(8))
        kind = np.dtype("<u2" if kinds[key] == "bf16" else kinds[key])
        storages[key] = _elements(np.frombuffer(stream.read(numel * kind.itemsize), np.uint8), kinds[key], numel, key)
    stream.seek(content_at)
    return InertUnpickler(stream, found, lambda dtype, key, numel: storages[key]).load()


def _unsafe(path: Path, foreign: tuple[str, ...]) -> UnsafeWeights:
    return UnsafeWeights(
        f"{path} holds more than tensors: {', '.join(foreign[:8])}; nothing of it was run; if you trust it, "
        f"convert it once in isolation: meddinov3-stroke convert-weights --input {path.name} --output "
        f"{path.with_suffix('.safetensors').name}"
    )


def _damaged(path: Path, error: BaseException) -> WeightsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WeightsError(f"{path} is not a readable torch file (truncated or damaged?): {reason[:160]}; fetch it again")
