"""torch's pickled files: read without torch and without running their code, written atomically."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.errors import MissingWeights, UnsafeWeights, WeightsError
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.system.digest import HEAD_BYTES, describe_impostor

_ERRORS = (
    *(RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError),
    *(MemoryError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
)
"""What a damaged file makes an unpickler raise."""

_STORAGES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": "<u2", "Long": "<i8", "Int": "<i4",
             "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"}  # fmt: skip
"""torch's storage classes, without their ending, and what their bytes are; bf16 is read as uint16, then widened."""

_TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.(Size|device|dtype|Tensor|\w+Storage|(b?float|complex|q?u?int)\w*"
    r"|half|double|long|short|bool)|torch\.(_utils\._rebuild_|nn\.parameter\.Parameter|_tensor\._rebuild_)\w*"
)
"""Names a pickle needs for tensors and plain containers."""


def read_torch_file(path: Path, verified: bool = False) -> Any:
    """The content of a `torch.save` file, tensors as numpy arrays; neither torch nor code of the file runs.

    `verified` skips the CRC-32 of the records, for a file whose digest is known to be sound. Raises UnsafeWeights if
    the pickle asks for more than tensors, and names what; MissingWeights; WeightsError for what is not a torch file.
    """
    content, foreign = unpickle_torch_file(path, verified)
    if foreign:
        raise _unsafe(path, foreign)
    return content


def unpickle_torch_file(path: Path, verified: bool = False) -> tuple[Any, tuple[str, ...]]:
    """As `read_torch_file`, with inert stand-ins for foreign classes and functions, and the names of those."""
    found = set[str]()
    refuse_impostors(path)
    try:
        raw = np.asarray(np.memmap(path, np.uint8, "c"))
        is_archive = raw[:4].tobytes() == b"PK\x03\x04" or zipfile.is_zipfile(path)
        content = _read_archive(path, raw, verified, found) if is_archive else _read_legacy(raw, found)
    except _ERRORS as error:
        if foreign := _foreign(found):
            raise _unsafe(path, foreign) from error
        raise _damaged(path, error) from error
    return content, _foreign(found)


def save_torch_file(path: Path, content: Any) -> None:
    """Write `content` with `torch.save`, atomically."""
    import torch

    with atomic_file(path) as handle:
        torch.save(content, handle)


def refuse_impostors(path: Path) -> None:
    """Raise `MissingWeights` if `path` is absent, `WeightsError` if it is a directory or cannot be weights."""
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

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Another stand-in: pickles may call what they built."""
        return Inert()


class InertUnpickler(pickle.Unpickler):
    """Unpickles plain values and tensors; `found` collects every name, `storage(dtype, key, n)` gives elements."""

    def __init__(self, handle: Any, found: set[str], storage: Callable[[str, str, int], Any] | None = None) -> None:
        super().__init__(handle)
        self._found, self._storage = found, storage

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for `module.name`; nothing is imported."""
        dotted = f"{module}.{name}"
        self._found.add(dotted)
        return _REBUILDERS.get(dotted) or type("Inert", (Inert,), {"stands_for": dotted})

    def persistent_load(self, pid: Any) -> Any:
        """A storage's elements; an `Inert` for a kind of storage that numpy does not know."""
        kind, key, numel = pid[1], str(pid[2]), int(pid[4])
        dtype = _STORAGES.get(getattr(kind, "stands_for", "").removeprefix("torch.").removesuffix("Storage"))
        return Inert() if dtype is None or self._storage is None else self._storage(dtype, key, numel)


def _foreign(found: set[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in found if not _TENSOR_GLOBALS.fullmatch(name)))


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    """The view of a storage that is the tensor; checked against the storage's length."""
    if not isinstance(storage, np.ndarray):
        return storage
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if prod(size) else 0
    if min(offset, *size, *stride, 0) < 0 or reach > len(storage) or prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {size} does not fit in its storage, expected {len(storage)} elements")
    view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), [n * storage.itemsize for n in stride])
    return widen_bf16(view) if storage.dtype == np.uint16 else view


_REBUILDERS: dict[str, Any] = {
    "collections.OrderedDict": type("Container", (dict,), {"__setstate__": lambda self, state: None}),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch.Size": tuple,
}
"""Dotted name in the pickle -> the function or class used in its place."""


def _elements(records: dict[str, np.ndarray], name: str, dtype: str, numel: int) -> np.ndarray:
    if len(records[name]) != numel * np.dtype(dtype).itemsize:
        raise ValueError(f"record {name} holds {len(records[name])} bytes, expected {numel} elements of {dtype}")
    return records[name].view(dtype)


def _read_archive(path: Path, raw: np.ndarray, verified: bool, found: set[str]) -> Any:
    """Content of the zip archive that torch writes since 1.6; the tensors are views of `raw`."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
    if packed := [name for name, info in records.items() if info.compress_type != zipfile.ZIP_STORED]:
        raise WeightsError(f"{path} holds compressed records ({packed[0]}), which torch never writes; fetch it again")
    checked = not verified and any(info.CRC for info in records.values())  # torch may be set to write none
    bodies = {name: _record(raw, info) for name, info in records.items()}
    for name, body in bodies.items():
        if checked and zlib.crc32(body.data) != records[name].CRC:
            raise WeightsError(f"{path} is damaged: record {name} fails its CRC-32; fetch it again")
    pickles = [name for name in bodies if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} holds {len(pickles)} data.pkl records, expected one; fetch it again")
    root = pickles[0].removesuffix("data.pkl")
    if bodies.get(f"{root}byteorder", raw[:0]).tobytes().strip() not in (b"", b"little"):
        raise WeightsError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
    stream = io.BytesIO(bodies[pickles[0]].tobytes())
    return InertUnpickler(stream, found, lambda dtype, key, n: _elements(bodies, f"{root}data/{key}", dtype, n)).load()


def _record(raw: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a stored record, which follow its header of 30 bytes, its name and its extra field."""
    header = raw[info.header_offset :][:30].tobytes()
    body = raw[info.header_offset + 30 + sum(struct.unpack("<HH", header[26:])) :][: info.file_size]
    if not header.startswith(b"PK\x03\x04") or len(body) != info.file_size:
        raise zipfile.BadZipFile(f"record {info.filename} is cut short")
    return body


def _read_legacy(raw: np.ndarray, found: set[str]) -> Any:
    """Content of a file of torch < 1.6: magic number, protocol, system, content, storage keys, then the storages."""
    stream, kinds = io.BytesIO(raw.tobytes()), dict[str, str]()
    header = [InertUnpickler(stream, found).load() for _ in range(3)]
    content_at = stream.tell()  # the content is read twice: for the types of the storages, then with their elements
    InertUnpickler(stream, found, lambda dtype, key, numel: kinds.update({key: dtype})).load()
    keys, storages = InertUnpickler(stream, found).load(), dict[str, np.ndarray]()
    if header[0] != 0x1950A86A20F9469CFC6C:
        raise ValueError("it does not begin like a torch file")
    for key in map(str, keys):
        (numel,) = struct.unpack("<q", stream.read(8))
        body = np.frombuffer(stream.read(numel * np.dtype(kinds[key]).itemsize), np.uint8)
        storages[key] = _elements({key: body}, key, kinds[key], numel)
    stream.seek(content_at)
    return InertUnpickler(stream, found, lambda dtype, key, numel: storages[key]).load()


def _unsafe(path: Path, foreign: tuple[str, ...]) -> UnsafeWeights:
    command = f"meddinov3-stroke convert-weights --input {path.name} --output {path.with_suffix('.safetensors').name}"
    found = f"{path} holds more than tensors: {', '.join(foreign[:8])}; nothing of it was run"
    return UnsafeWeights(f"{found}; if you trust it, convert it once in isolation: {command}")


def _damaged(path: Path, error: BaseException) -> WeightsError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return WeightsError(f"{path} is not a readable torch file (truncated or damaged?): {reason[:160]}; fetch it again")
