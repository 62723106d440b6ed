"""A trained head with everything needed to use it rightly: labels, sizes, backbone, thresholds; saved and verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads.mlp import build_head
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.torch_file import load_torch_file, save_torch_file
from meddinov3_stroke.types import BackboneIdentity, Threshold

FORMAT = "meddinov3_stroke.head"
"""Stands in every head checkpoint."""

CHECKPOINT_SCHEMA = 1
"""Raised when a field of the checkpoint changes its meaning."""

INPUTS_PER_DIM: Mapping[str, int] = {"slice": 1, "mean": 1, "max": 1, "mean_max": 2}
"""Pool mode -> size of the head's input in units of the backbone's embedding; `unknown` is a pool mode too."""


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head's weights and what they belong to."""

    state_dict: Mapping[str, Tensor]
    labels: tuple[str, ...]
    input_dim: int
    hidden_dim: int
    """0 or less: a single linear layer."""
    dropout: float
    pool_mode: str
    """slice, mean, max, mean_max or unknown: what the training rows were."""
    resize: int | None
    """Side in pixels of the square the backbone saw; None is unknown."""
    backbone: dict[str, Any] | None
    """`dataclasses.asdict` of the `BackboneIdentity` of the training embeddings; None is unknown."""
    thresholds: dict[str, Threshold]
    pos_weight: dict[str, float]
    """Weight of a positive in the training loss."""
    seed: int
    epoch: int
    metric_name: str
    best_metric: float | None
    """Validation metric of this epoch."""
    sha256: str = ""
    """Digest of the file; empty before saving."""

    def head(self) -> nn.Module:
        """The head, in eval mode on the CPU."""
        head = build_head(self.input_dim, self.hidden_dim, len(self.labels), self.dropout)
        head.load_state_dict(dict(self.state_dict), strict=True)
        return head.eval()


def save_checkpoint(path: Path, checkpoint: HeadCheckpoint) -> str:
    """The sha256 of the file written, atomically, as plain containers and CPU tensors."""
    document: dict[str, Any] = {"format": FORMAT, "schema_version": CHECKPOINT_SCHEMA}
    for name in _field_names():
        document[name] = getattr(checkpoint, name)
    document["state_dict"] = {k: v.detach().cpu().clone().contiguous() for k, v in checkpoint.state_dict.items()}
    document["labels"] = list(checkpoint.labels)
    document["thresholds"] = {
        label: {"value": threshold.value, "origin": threshold.origin}
        for label, threshold in checkpoint.thresholds.items()
    }
    save_torch_file(path, document)
    return sha256_of_file(path)


def load_checkpoint(path: Path) -> HeadCheckpoint:
    """The checkpoint in `path`, every field checked and every tensor of the expected name, shape and type.

    Raises:
        CheckpointError: not a head checkpoint, or a damaged one; lists expected and found.
        WeightsError: no file, no torch file, or one that holds more than tensors (nothing of it is run).
    """
    path = Path(path)
    document = load_torch_file(path)
    _check_format(document, path)
    _check_fields(document, path)
    values = {name: document[name] for name in _field_names()}
    values["labels"] = tuple(document["labels"])
    values["thresholds"] = {k: Threshold(float(v["value"]), v["origin"]) for k, v in document["thresholds"].items()}
    checkpoint = HeadCheckpoint(**values, sha256=sha256_of_file(path))
    _check_tensors(checkpoint, path)
    return checkpoint


def _field_names() -> list[str]:
    return [field.name for field in fields(HeadCheckpoint) if field.name != "sha256"]


def _check_format(document: Any, path: Path) -> None:
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or found != FORMAT:
        raise CheckpointError(
            f"{path} is no head checkpoint; found format {found!r}, expected {FORMAT!r}; "
            "pass the best.pt or last.pt that head training wrote (backbone weights go to --backbone)"
        )
    version = document.get("schema_version")
    if version != CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path}: checkpoint schema {version!r}, expected {CHECKPOINT_SCHEMA}; "
            "train the head again with this version, or use the version that wrote it"
        )


def _check_fields(document: dict[str, Any], path: Path) -> None:
    missing = [name for name in _field_names() if name not in document]
    if missing:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(missing)}; train the head again")
    for name, (is_valid, expected) in _EXPECTED.items():
        if not is_valid(document[name]):
            raise CheckpointError(f"{path}: {name} is {str(document[name])[:80]!r}, expected {expected}")
    labels = set(document["labels"])
    for name in ("thresholds", "pos_weight"):
        if set(document[name]) != labels:
            raise CheckpointError(
                f"{path}: {name} for {sorted(document[name])}, expected one for each label: {sorted(labels)}"
            )


def _check_tensors(checkpoint: HeadCheckpoint, path: Path) -> None:
    with torch.device("meta"):  # nothing is allocated for sizes that a damaged file only claims
        skeleton = build_head(checkpoint.input_dim, checkpoint.hidden_dim, len(checkpoint.labels), checkpoint.dropout)
    expected = {name: (tuple(t.shape), t.dtype) for name, t in skeleton.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in checkpoint.state_dict.items()}
    if found != expected:
        raise CheckpointError(f"{path}: tensors differ; expected {_shapes(expected)}; found {_shapes(found)}")
    broken = [name for name, tensor in checkpoint.state_dict.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(broken)}; train the head again")


def _shapes(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{name} {list(shape)} {str(dtype)[6:]}" for name, (shape, dtype) in sorted(tensors.items()))


def _is_int(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and 0 <= value <= 1


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) == len(set(map(str, value))) and all(map(_is_text, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, float) and math.isfinite(v) and v >= 0 for v in value.values())


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, dict) and _is_share(item.get("value")) and _is_text(item.get("origin"))
        for item in value.values()
    )


def _is_identity(value: Any) -> bool:
    keys = {field.name for field in fields(BackboneIdentity)}
    return isinstance(value, dict) and keys <= set(value) and isinstance(value["preprocessing"], dict)


_EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "state_dict": (
        lambda value: isinstance(value, dict) and all(isinstance(tensor, Tensor) for tensor in value.values()),
        "a dictionary of tensors",
    ),
    "labels": (_are_labels, "a list of distinct names"),
    "input_dim": (_is_int(1), "a positive whole number"),
    "hidden_dim": (_is_int(-(2**31)), "a whole number"),
    "dropout": (lambda value: _is_share(value) and value < 1, "a number in [0, 1)"),
    "pool_mode": (
        lambda value: isinstance(value, str) and value in (*INPUTS_PER_DIM, "unknown"),
        f"one of {', '.join(INPUTS_PER_DIM)}, unknown",
    ),
    "resize": (lambda value: value is None or _is_int(1)(value), "a positive whole number or nothing"),
    "backbone": (lambda value: value is None or _is_identity(value), "a backbone's identity or nothing"),
    "thresholds": (_are_thresholds, "a value in [0, 1] and an origin for each label"),
    "pos_weight": (_is_weights, "a finite weight for each label"),
    "seed": (_is_int(0), "a whole number from 0"),
    "epoch": (_is_int(0), "a whole number from 0"),
    "metric_name": (_is_text, "a name"),
    "best_metric": (
        lambda value: value is None or (isinstance(value, float) and math.isfinite(value)),
        "a finite number or nothing",
    ),
}
"""Field -> (is it valid, what is expected in words)."""
