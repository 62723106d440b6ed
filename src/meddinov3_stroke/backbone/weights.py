"""From a weights file (published `.pth` layout, plain state dict, safetensors) to a strict, canonical state dict.

Everything here is numpy; torch is imported only where a module is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from meddinov3_stroke.backbone.architecture import (
    HIDDEN_FIELDS,
    Architecture,
    architecture_of,
    rope_periods,
    round_bf16,
)
from meddinov3_stroke.backbone.preprocessing import METADATA_KEY, PREPROCESSING, preprocessing_of
from meddinov3_stroke.errors import UsageError, WeightsError, WeightsMismatch
from meddinov3_stroke.system.atomic import write_bytes
from meddinov3_stroke.system.torch_file import read_torch_file, refuse_impostors, unpickle_torch_file, widen_bf16
from meddinov3_stroke.types import Preprocessing

if TYPE_CHECKING:
    from meddinov3_stroke.backbone.vit import VisionTransformer

TEACHER = "teacher"
"""Key of the exponential moving average of the weights in the published file; these are the ones used."""
DROPPED_PARTS = ("ibot", "dino_head")
"""Parts of training heads: tensors whose name contains one of these do not belong to the backbone."""
PREFIX = "backbone."
"""What the published names begin with."""
PERIODS = "rope_embed.periods"
"""The one tensor that is not a parameter: read from the file for bf16 RoPE, recomputed for fp32."""
N_LISTED = 8
"""Names of a kind that a message lists before it counts the rest."""

_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


class Weights(NamedTuple):
    """A canonical state dict (float32 arrays), its architecture, the preprocessing it expects, and ignored names."""

    state: dict[str, np.ndarray]
    architecture: Architecture
    ignored: tuple[str, ...]
    preprocessing: Preprocessing = PREPROCESSING


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote and what it left out."""

    output: Path
    weights_sha256: str
    architecture: Architecture
    n_tensors: int
    ignored_entries: tuple[str, ...]
    """Entries of the file that do not belong to the backbone."""
    ignored_names: tuple[str, ...]
    """Classes and functions that the pickle names beside tensors; none was imported or run."""


def load_weights(path: Path | str, verified: bool = False) -> Weights:
    """The canonical tensors of a weights file, mapped from disk where they are float32; no code of the file runs.

    `verified` skips the checksums of a `.pth` whose digest is known to be sound. Raises WeightsError for what is not a
    weights file, or its subclass MissingWeights, UnsafeWeights (more than tensors) or WeightsMismatch (other tensors).
    """
    path, metadata = Path(path), dict[str, str]()
    refuse_impostors(path)
    if path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content = read_torch_file(path, verified)
    entries, ignored = published_layout(content, str(path))
    return _canonical_weights(entries, metadata, ignored, str(path))


def convert_weights(source: Path, output: Path) -> Conversion:
    """The record of writing the backbone in a `torch.save` file as our safetensors; raises as `load_weights`."""
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output.name}: found {output.suffix or 'no ending'}, expected .safetensors")
    content, names = unpickle_torch_file(source)
    entries, ignored = published_layout(content, str(source))
    weights = _canonical_weights(entries, {}, ignored, str(source))
    save_safetensors(entries, output, _metadata(weights.architecture, source.name))
    digest = weights_sha256(weights.state, weights.architecture)
    return Conversion(output, digest, weights.architecture, len(entries), ignored, names)


def published_layout(content: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The backbone's entries under the published names, and the names of the ignored ones.

    Takes `content["teacher"]` if it exists, else `content` itself; drops the training heads; strips `backbone.`.
    """
    outer = content if isinstance(content, Mapping) else {}
    source = outer.get(TEACHER, outer)
    if not isinstance(source, Mapping) or not source or not all(isinstance(name, str) for name in source):
        raise _no_state_dict(where, f"{type(content).__name__} with {listed([str(k) for k in outer]) or 'no names'}")
    kept = {name: value for name, value in source.items() if not any(part in name for part in DROPPED_PARTS)}
    entries = {name.removeprefix(PREFIX): value for name, value in kept.items()}
    if len(entries) < len(kept):
        raise WeightsMismatch(f"{where}: holds tensors both with and without {PREFIX!r}; keep one set of them")
    ignored = [str(name) for name in outer if name != TEACHER] if source is not outer else []
    return entries, tuple(ignored + [name for name in source if name not in kept])


def canonical_state(
    state: Mapping[str, Any], architecture: Architecture, where: str = "weights"
) -> dict[str, np.ndarray]:
    """The tensors (numpy or torch) in float32, sorted by name, exactly those of the architecture.

    The RoPE periods have the precision of the rotation: rounded to bf16, or recomputed in float32 (a file's periods
    are rounded already). Raises WeightsMismatch.
    """
    arrays = {name: _array(value) for name, value in state.items()}
    _compare(arrays, architecture.shapes(), where)
    canonical = {name: arrays[name].astype(np.float32, copy=False) for name in sorted(arrays)}
    if architecture.rope_dtype == "bf16":
        canonical[PERIODS] = round_bf16(canonical[PERIODS])
    else:
        canonical[PERIODS] = rope_periods(architecture.embed_dim // architecture.num_heads, architecture.rope_base)
    return canonical


def weights_sha256(state: Mapping[str, Any], architecture: Architecture | None = None) -> str:
    """Hex digest of what a backbone computes with: the canonical tensors and the fields that no shape shows (heads,
    epsilon, RoPE).

    Names, shapes and float32 values enter, in the order of the names; container, stored dtype and training heads do
    not, so a `.pth` and our safetensors of the same weights agree.
    """
    architecture = architecture or architecture_of(state)
    hidden = [getattr(architecture, name) for name in HIDDEN_FIELDS]
    digest = hashlib.sha256(json.dumps(["meddinov3-weights-1", *hidden]).encode("ascii"))
    for name, tensor in canonical_state(state, architecture).items():
        digest.update(json.dumps([name, list(tensor.shape)]).encode("ascii"))
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.hexdigest()


def fold(weights: Weights, *, equal_channels: bool = True) -> Weights:
    """Weights that give the same tokens with less work: one input channel, no LayerScale, no bias mask.

    Where the three input channels are equal, one with the summed kernel gives the same patches; LayerScale goes into
    the projection before it; a masked q|k|v bias becomes the bias it amounts to.
    """
    state = dict(weights.state)
    if equal_channels:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(axis=1, keepdims=True)
    scaled = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2", "attn.qkv.bias_mask": "attn.qkv"}
    for name in [name for name in state if name.endswith(tuple(scaled))]:
        _, i, scale = name.split(".", 2)
        factor, layer = state.pop(name), f"blocks.{i}.{scaled[scale]}"
        if scale != "attn.qkv.bias_mask":
            state[f"{layer}.weight"] = state[f"{layer}.weight"] * factor[:, None]
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * factor
    channels = state["patch_embed.proj.weight"].shape[1]
    folded = replace(weights.architecture, in_chans=channels, layerscale=False, mask_k_bias=False)
    return weights._replace(state=state, architecture=folded)


def build_module(weights: Weights) -> VisionTransformer:
    """The frozen torch module in evaluation mode, on the CPU, holding these tensors."""
    import torch

    vit = weights.architecture.build("meta")
    state = {name: torch.from_numpy(np.array(array)) for name, array in weights.state.items()}
    state[PERIODS] = state[PERIODS].to(vit.rope_embed.dtype)
    vit.load_state_dict(state, strict=True, assign=True)
    return vit.eval().requires_grad_(False)


def needs_torch(name: str) -> Any:
    """`TorchEngine`, `VisionTransformer` or `vit_base`, imported when first asked for."""
    modules = {"TorchEngine": "torch_engine", "VisionTransformer": "vit", "vit_base": "vit"}
    if name not in modules:
        raise AttributeError(f"module 'meddinov3_stroke.backbone' has no attribute {name!r}")
    return getattr(import_module(f"meddinov3_stroke.backbone.{modules[name]}"), name)


def save_safetensors(state: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors (numpy or torch) and a header of text to a safetensors file, atomically; raises StorageError."""
    packed = {name: np.ascontiguousarray(_array(value)) for name, value in state.items()}
    write_bytes(Path(path), save(packed, metadata=dict(metadata)))


def save_backbone(
    vit: VisionTransformer, path: Path, name: str, dtype: Any = np.float32, preprocessing: Preprocessing = PREPROCESSING
) -> str:
    """The sha256 of the weights as they will load, after writing a module as our safetensors, parameters in `dtype`."""
    architecture = vit.architecture
    kind = np.dtype(getattr(dtype, "__name__", str(dtype)).removeprefix("torch."))
    arrays = {key: _array(tensor) for key, tensor in vit.state_dict().items()}
    state = {key: array if key == PERIODS else array.astype(kind) for key, array in arrays.items()}
    save_safetensors(state, path, _metadata(architecture, name) | {METADATA_KEY: json.dumps(asdict(preprocessing))})
    return weights_sha256(state, architecture)


def _metadata(architecture: Architecture, name: str) -> dict[str, str]:
    return {"name": name, "architecture": json.dumps(asdict(architecture), sort_keys=True)}


def _canonical_weights(
    entries: Mapping[str, Any], metadata: Mapping[str, str], ignored: tuple[str, ...], where: str
) -> Weights:
    foreign = [name for name, value in entries.items() if not isinstance(value, np.ndarray)]
    if foreign or not entries:
        raise _no_state_dict(where, f"{listed(foreign) or 'no tensors'} where a state dict should be")
    architecture = architecture_of(entries, metadata, where)
    preprocessing = preprocessing_of(metadata, where)
    return Weights(canonical_state(entries, architecture, where), architecture, ignored, preprocessing)


def _no_state_dict(where: str, found: str) -> WeightsMismatch:
    wanted = f"{TEACHER!r} with a state dict in it, or a plain state dict"
    return WeightsMismatch(f"{where}: found {found}, expected {wanted}; check that this is a backbone")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as handle:  # checks the header, offsets and length
            metadata = dict(handle.metadata() or {})
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        unsupported = {about["dtype"] for about in header.values()} - _SAFETENSORS_DTYPES.keys()
        if unsupported:
            raise WeightsMismatch(f"{path} holds tensors of type {', '.join(sorted(unsupported))}; convert them to F32")
        body, tensors = np.memmap(path, np.uint8, "c", offset=8 + size), dict[str, np.ndarray]()
        for name, about in header.items():
            flat = body[slice(*about["data_offsets"])].view(_SAFETENSORS_DTYPES[about["dtype"]])
            tensors[name] = np.asarray(widen_bf16(flat) if about["dtype"] == "BF16" else flat).reshape(about["shape"])
        return tensors, metadata
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file (truncated?): {error}; fetch it again"
        ) from error


def _array(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def _compare(found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    both = [(name, expected[name]) for name in sorted(found.keys() & expected.keys())]
    wrong = [f"{name} found {found[name].shape} expected {shape}" for name, shape in both if found[name].shape != shape]
    integers = [(name, found[name].dtype) for name, _ in both if found[name].dtype.kind != "f"]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "wrong": wrong + [f"{name} found {dtype} expected floating point" for name, dtype in integers],
    }
    if any(kinds.values()):
        differences = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)
        raise WeightsMismatch(
            f"{where}: the tensors fit no backbone that this package builds (found {len(found)}, expected "
            f"{len(expected)}); {differences}; use the weights that the model card names"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - N_LISTED} more" if len(names) > N_LISTED else ""
    return ", ".join(names[:N_LISTED]) + more
