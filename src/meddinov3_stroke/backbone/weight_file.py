"""From a weights file (published `.pth` layout, plain state dict, safetensors) to a strict, canonical state dict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from meddinov3_stroke.backbone.architecture import (
    Architecture,
    architecture_metadata,
    architecture_of,
    architecture_of_module,
)
from meddinov3_stroke.backbone.preprocessing import METADATA_KEY, PREPROCESSING, preprocessing_of
from meddinov3_stroke.backbone.rope import rope_periods
from meddinov3_stroke.backbone.vit import VisionTransformer
from meddinov3_stroke.errors import WeightsError, WeightsMismatch
from meddinov3_stroke.system.atomic import write_bytes
from meddinov3_stroke.system.torch_file import load_torch_file, refuse_impostors
from meddinov3_stroke.types import Preprocessing

TEACHER = "teacher"
"""Key of the published file under which the exponential moving average stands, the weights that are used."""
DROPPED_PARTS = ("ibot", "dino_head")
"""Parts of training heads: tensors whose name contains one of these belong to no backbone."""
PREFIX = "backbone."
"""What the published names begin with."""
PERIODS = "rope_embed.periods"
"""The one tensor that is no parameter: taken from the file for bf16 RoPE, computed anew for fp32."""
N_LISTED = 8
"""Names an error lists of each kind before it counts the rest."""


class Weights(NamedTuple):
    """A canonical state dict, the architecture it fits, what it expects of a slice, and what was left out of it."""

    state: dict[str, Tensor]
    architecture: Architecture
    ignored: tuple[str, ...]
    preprocessing: Preprocessing = PREPROCESSING


def load_weights(path: Path | str) -> Weights:
    """The canonical tensors of a weights file; no code of the file runs.

    Raises:
        MissingWeights: no such file.
        UnsafeWeights: a pickle that holds more than tensors.
        WeightsMismatch: tensors missing, unexpected or of another shape; the message lists them.
        WeightsError: not a weights file (a directory, empty, HTML, a Git-LFS pointer, truncated).
    """
    path = Path(path)
    refuse_impostors(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
    else:
        content = load_torch_file(path)
    entries, ignored = published_layout(content, str(path))
    return canonical_weights(entries, metadata, ignored, str(path))


def canonical_weights(
    entries: Mapping[str, Any], metadata: Mapping[str, str], ignored: tuple[str, ...], where: str
) -> Weights:
    """Entries under the published names as `Weights`, strictly compared with the architecture they show.

    Raises:
        WeightsMismatch: an entry is no tensor, or the tensors fit no architecture.
    """
    foreign = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if foreign or not entries:
        raise WeightsMismatch(
            f"{where}: found {_listed(foreign) or 'no tensors'} where a state dict should be, expected {TEACHER!r} "
            "with a state dict in it, or a plain state dict; check that this is a backbone"
        )
    architecture = architecture_of(entries, metadata, where)
    preprocessing = preprocessing_of(metadata, where)
    return Weights(canonical_state(entries, architecture, where), architecture, ignored, preprocessing)


def published_layout(content: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The backbone's entries under the published names, and the names of what was left out.

    Takes `content["teacher"]` where there is one, else `content` itself; drops the training heads; strips `backbone.`.

    Raises:
        WeightsMismatch: no mapping of names, or two entries that end under one name.
    """
    outer = content if isinstance(content, Mapping) else {}
    source = outer.get(TEACHER, outer)
    if not isinstance(source, Mapping) or not source or not all(isinstance(name, str) for name in source):
        raise WeightsMismatch(
            f"{where}: found {type(content).__name__} with {_listed([str(k) for k in outer]) or 'no names'}, expected "
            f"{TEACHER!r} with a state dict in it, or a plain state dict; check that this is a backbone"
        )
    kept = {name: value for name, value in source.items() if not any(part in name for part in DROPPED_PARTS)}
    entries = {name.removeprefix(PREFIX): value for name, value in kept.items()}
    if len(entries) < len(kept):
        raise WeightsMismatch(f"{where}: holds tensors both with and without {PREFIX!r}; keep one set of them")
    ignored = [str(name) for name in outer if name != TEACHER] if source is not outer else []
    return entries, tuple(ignored + [name for name in source if name not in kept])


def canonical_state(
    state: Mapping[str, Tensor], architecture: Architecture, where: str = "weights"
) -> dict[str, Tensor]:
    """The tensors in float32 on the CPU, sorted by name, exactly those of the architecture.

    The RoPE periods are in the dtype of the rotation: rounded to bf16, or computed anew in float32 (a file's periods
    are rounded already).

    Raises:
        WeightsMismatch: tensors missing, unexpected, of another shape, or not floating point.
    """
    _compare(state, architecture.build().state_dict(), where)
    canonical = {name: state[name].detach().to("cpu", torch.float32) for name in sorted(state)}
    if architecture.rope_dtype == "bf16":
        canonical[PERIODS] = canonical[PERIODS].to(torch.bfloat16)
    else:
        canonical[PERIODS] = rope_periods(architecture.embed_dim // architecture.num_heads, architecture.rope_base)
    return canonical


def weights_sha256(state: Mapping[str, Tensor], architecture: Architecture | None = None) -> str:
    """Hex digest of what a backbone computes with: the canonical tensors, and the part of the architecture that no
    shape shows (heads, epsilon, RoPE).

    Names, shapes and float32 values enter, in the order of the names; container, stored dtype and training heads do
    not. So a `.pth` and our safetensors of the same weights agree. `mask_token` enters although inference never reads
    it.
    """
    architecture = architecture or architecture_of(state)
    hidden = (architecture.num_heads, architecture.norm_layer, architecture.rope_base, architecture.rope_dtype)
    digest = hashlib.sha256(json.dumps(["meddinov3-weights-1", *hidden]).encode("ascii"))
    for name, tensor in canonical_state(state, architecture).items():
        digest.update(json.dumps([name, list(tensor.shape)]).encode("ascii"))
        digest.update(tensor.float().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def build_module(weights: Weights) -> VisionTransformer:
    """The frozen module in evaluation mode, on the CPU, holding exactly these tensors."""
    vit = weights.architecture.build("meta")
    vit.load_state_dict(weights.state, strict=True, assign=True)
    return vit.eval().requires_grad_(False)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header metadata of a safetensors file.

    Raises:
        WeightsError: truncated, or no safetensors.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no readable safetensors file (truncated?): {error}; fetch it again") from error


def save_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and a header of text to a safetensors file, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_bytes(Path(path), save(packed, metadata=dict(metadata)))


def save_backbone(
    vit: VisionTransformer,
    path: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    preprocessing: Preprocessing = PREPROCESSING,
) -> str:
    """Write a module as our safetensors, parameters in `dtype`, and give the weights' sha256 as they will load."""
    architecture = architecture_of_module(vit)
    state = {key: tensor if key == PERIODS else tensor.to(dtype) for key, tensor in vit.state_dict().items()}
    metadata = architecture_metadata(architecture, name) | {METADATA_KEY: json.dumps(asdict(preprocessing))}
    save_safetensors(state, path, metadata)
    return weights_sha256(state, architecture)


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    wrong = [_difference(name, found[name], expected[name]) for name in sorted(found.keys() & expected.keys())]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong": [text for text in wrong if text]}
    if any(kinds.values()):
        told = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names)
        raise WeightsMismatch(
            f"{where}: the tensors are no backbone this package builds (found {len(found)}, expected {len(expected)}); "
            f"{told}; use the weights that the model card names"
        )


def _difference(name: str, found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"{name} found {tuple(found.shape)} expected {tuple(expected.shape)}"
    return "" if found.is_floating_point() else f"{name} found {found.dtype} expected floating point"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - N_LISTED} more" if len(names) > N_LISTED else ""
    return ", ".join(names[:N_LISTED]) + more
