"""A pickled weights file to our safetensors, without running any of its code.

Our own reader takes the tensors out of the archive; whatever else the pickle names becomes an inert stand-in.
torch.load has no part in it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddinov3_stroke.backbone.architecture import Architecture, architecture_metadata
from meddinov3_stroke.backbone.weight_file import canonical_weights, published_layout, save_safetensors, weights_sha256
from meddinov3_stroke.errors import UsageError, WeightsError
from meddinov3_stroke.system.inert_pickle import InertUnpickler
from meddinov3_stroke.system.torch_file import (
    PICKLE_ERRORS,
    damaged,
    is_tensor_global,
    open_archive,
    refuse_impostors,
)

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
"""Storage classes that torch's pickles name, and what their bytes are."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote and what it left out."""

    output: Path
    weights_sha256: str
    architecture: Architecture
    n_tensors: int
    ignored_entries: tuple[str, ...]
    """Entries of the file that belong to no backbone."""
    ignored_names: tuple[str, ...]
    """Classes and functions that the pickle names beside tensors; none was imported or run."""


class StateDict(dict[Any, Any]):
    """Stands for `OrderedDict`; takes no attributes from the pickle."""

    def __setstate__(self, state: Any) -> None:
        pass


class StoredTensor:
    """A tensor that the pickle describes and that is not read yet; takes no attributes from the pickle."""

    def __init__(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, state: Any) -> None:
        pass


def convert_weights(source: Path, output: Path) -> Conversion:
    """Write the backbone in a `torch.save` file as our safetensors and say what was left out; no code of the file runs.

    Raises:
        UsageError: `output` does not end in .safetensors.
        MissingWeights, WeightsError, WeightsMismatch: as `load_weights`; also a file of a torch before 1.6.
    """
    source, output = Path(source), Path(output)
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output.name}: found {output.suffix or 'no ending'}, expected .safetensors")
    refuse_impostors(source)
    if not zipfile.is_zipfile(source):
        raise WeightsError(
            f"{source} is no archive as torch writes it since 1.6 (truncated, or an older file?); fetch it again, or "
            "save it anew with a current torch"
        )
    with open_archive(source) as archive:
        content, names = _unpickle(archive, source)
        entries, ignored = published_layout(content, str(source))
        tensors = {name: _materialised(archive, value, source) for name, value in entries.items()}
    weights = canonical_weights(tensors, {}, ignored, str(source))
    save_safetensors(tensors, output, architecture_metadata(weights.architecture, source.name))
    digest = weights_sha256(weights.state, weights.architecture)
    return Conversion(output, digest, weights.architecture, len(tensors), ignored, names)


def _unpickle(archive: zipfile.ZipFile, path: Path) -> tuple[Any, tuple[str, ...]]:
    root = _root(archive, path)
    _refuse_big_endian(archive, root, path)
    unpickler = InertUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), _rebuilders(), _storage_reference(root))
    try:
        content = unpickler.load()
    except PICKLE_ERRORS as error:
        raise damaged(path, error) from error
    return content, tuple(sorted(name for name in unpickler.found if not is_tensor_global(name)))


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} holds {len(pickles)} data.pkl records, expected one; fetch it again")
    return pickles[0].removesuffix("data.pkl")


def _refuse_big_endian(archive: zipfile.ZipFile, root: str, path: Path) -> None:
    record = f"{root}byteorder"
    if record in archive.namelist() and archive.read(record).strip() != b"little":
        raise WeightsError(f"{path} was written on a big-endian machine; save it anew on a little-endian one")


def _rebuilders() -> dict[str, Callable[..., Any]]:
    return {
        "collections.OrderedDict": StateDict,
        "torch._utils._rebuild_tensor_v2": StoredTensor,
        "torch._utils._rebuild_tensor": StoredTensor,
        "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
        "torch.Size": tuple,
        **{name: _StorageKind(name) for name in STORAGE_DTYPES},
    }


class _StorageKind:
    """Stands for a storage class; does nothing when called."""

    def __init__(self, name: str) -> None:
        self.dtype = STORAGE_DTYPES[name]

    def __call__(self, *args: Any) -> None:
        return None

    def __setstate__(self, state: Any) -> None:
        pass


def _storage_reference(root: str) -> Callable[[Any], Any]:
    def refer(pid: Any) -> Any:
        """(dtype, record, number of elements) of a storage; None for a kind this reader does not know."""
        _, kind, key, _, numel = pid
        return (kind.dtype, f"{root}data/{key}", int(numel)) if isinstance(kind, _StorageKind) else None

    return refer


def _materialised(archive: zipfile.ZipFile, value: Any, path: Path) -> Any:
    """The tensor that a `StoredTensor` describes; anything else as it is."""
    if not isinstance(value, StoredTensor) or value.storage is None:
        return value
    try:
        dtype, record, numel = value.storage
        raw = archive.read(record)
        if len(raw) != numel * dtype.itemsize or prod(value.size) > numel:
            raise ValueError(f"record {record} holds {len(raw)} bytes, expected {numel} elements of {dtype}")
        return _view(raw, dtype, value)
    except (zipfile.BadZipFile, RuntimeError, OSError, *PICKLE_ERRORS) as error:
        raise damaged(path, error) from error


def _view(raw: bytes, dtype: torch.dtype, stored: StoredTensor) -> Tensor:
    flat = torch.frombuffer(bytearray(raw), dtype=dtype)
    return flat.as_strided(stored.size, stored.stride, stored.offset).clone()
