"""A trained head and what it belongs to: architecture, labels, backbone, thresholds. Loading needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.labels import label_names
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import BackboneIdentity, Threshold

if TYPE_CHECKING:
    from torch import nn

FORMAT = "meddinov3_stroke.head"
"""Value of `format` in every head checkpoint."""

CHECKPOINT_SCHEMA = 1
"""Raised when a field of the checkpoint changes its meaning."""

INPUTS_PER_DIM: Mapping[str, int] = {"slice": 1, "mean": 1, "max": 1, "mean_max": 2}
"""Pool mode -> size of the head's input in units of the backbone's embedding; `unknown` is a pool mode too."""

LEGACY_KEYS = frozenset({"model_state_dict", "input_dim", "num_classes"})
"""Keys that mark a checkpoint of the earlier public implementation (INTERFACES 1d)."""


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head's weights and what they belong to."""

    state_dict: Mapping[str, np.ndarray]
    arch: str
    """Name in `ARCHITECTURES`."""
    params: Mapping[str, Any]
    """Hyper-parameters (`HeadConfig`), at least those that `arch` needs."""
    labels: tuple[str, ...]
    input_dim: int
    pool_mode: str
    """slice, mean, max, mean_max or unknown: what the training rows were."""
    resize: int | None
    """Side in pixels of the backbone's square input; None is unknown."""
    backbone: dict[str, Any] | None
    """`dataclasses.asdict` of the `BackboneIdentity` of the training embeddings; None is unknown."""
    thresholds: dict[str, Threshold]
    pos_weight: dict[str, float]
    """Weight of a positive in the training loss."""
    seed: int
    epoch: int
    metric_name: str
    best_metric: float | None
    """Validation metric of this epoch; None without validation data."""
    sha256: str = ""
    """Digest of the file; empty before saving."""
    is_legacy: bool = False
    """Whether the earlier public implementation wrote it; such a head is tested but not applied to images."""

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden layer; 0 is a single linear layer."""
        return max(int(self.params.get("hidden_dim", 0)), 0)

    def head(self) -> nn.Module:
        """The head as a torch module, in eval mode on the CPU."""
        import torch

        head = ARCHITECTURES[self.arch].build(self.input_dim, len(self.labels), self.params)
        head.load_state_dict({name: torch.tensor(value) for name, value in self.state_dict.items()}, strict=True)
        return head.eval()


def save_checkpoint(path: Path, checkpoint: HeadCheckpoint) -> str:
    """The sha256 of the file written, atomically, as plain containers and CPU tensors."""
    import torch

    from meddinov3_stroke.system.torch_file import save_torch_file

    document: dict[str, Any] = {"format": FORMAT, "schema_version": CHECKPOINT_SCHEMA}
    document |= {name: getattr(checkpoint, name) for name in _FIELDS}
    document |= {"arch": checkpoint.arch, "params": dict(checkpoint.params)}
    document["dropout"] = float(checkpoint.params.get("dropout", 0.0))
    document["state_dict"] = {name: torch.tensor(value) for name, value in checkpoint.state_dict.items()}
    document["labels"] = list(checkpoint.labels)
    document["thresholds"] = {label: asdict(threshold) for label, threshold in checkpoint.thresholds.items()}
    save_torch_file(path, document)
    return sha256_of_file(path)


def load_checkpoint(path: Path) -> HeadCheckpoint:
    """The checkpoint in `path`, every field checked and every tensor of the expected name, shape and type.

    Checkpoints without `arch` and `params` (written before these existed) get them from `hidden_dim` and `dropout`.

    Raises:
        CheckpointError: not a head checkpoint, or a damaged one; lists expected and found.
        WeightsError: no file, no torch file, or one that holds more than tensors (nothing of it is run).
    """
    path = Path(path)
    document = _read(path)
    is_legacy = isinstance(document, dict) and document.keys() >= LEGACY_KEYS
    document = _from_legacy(document, path) if is_legacy else document
    _check_format(document, path)
    _check_fields(document, path)
    checkpoint = HeadCheckpoint(
        state_dict=document["state_dict"],
        arch=document.get("arch", "mlp" if document["hidden_dim"] > 0 else "linear"),
        params=dict(document.get("params", {})) | {name: document[name] for name in ("hidden_dim", "dropout")},
        labels=tuple(document["labels"]),
        thresholds={k: Threshold(float(v["value"]), v["origin"]) for k, v in document["thresholds"].items()},
        sha256=sha256_of_file(path),
        is_legacy=is_legacy,
        **{name: document[name] for name in _PLAIN_FIELDS},
    )
    _check_tensors(checkpoint, path)
    return checkpoint


def _read(path: Path) -> Any:
    from meddinov3_stroke.system import torch_file

    if hasattr(torch_file, "read_torch_file"):
        return torch_file.read_torch_file(path)

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return value.numpy() if hasattr(value, "numpy") else value

    return plain(torch_file.load_torch_file(path))


def _from_legacy(old: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a checkpoint of the earlier implementation, whose tensors have other names in the same order."""
    try:
        hidden_dim, dropout = max(int(old.get("hidden_dim") or 0), 0), float(old.get("dropout") or 0.0)
        labels = label_names(int(old["num_classes"]))
        weights = np.ones(len(labels)) if old.get("pos_weight") is None else np.asarray(old["pos_weight"], float)
        score = float("nan") if old.get("score") is None else float(old["score"])
        tensors = {str(name): np.asarray(value, np.float32) for name, value in old["model_state_dict"].items()}
        hidden_dim = 0 if len(tensors) == 2 else hidden_dim
        pos_weight = dict(zip(labels, np.broadcast_to(weights.ravel(), len(labels)).tolist(), strict=True))
        epoch = int(old.get("epoch") or 0)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged head checkpoint of the earlier implementation: {error}") from error
    names = ARCHITECTURES["mlp" if hidden_dim else "linear"].shapes(1, 1, {"hidden_dim": hidden_dim})
    ends = [name.rpartition(".")[2] for name in tensors]
    if ends == [name.rpartition(".")[2] for name in names]:
        tensors = dict(zip(names, tensors.values(), strict=True))
    default = {"value": 0.5, "origin": "default 0.5: the checkpoint has no thresholds"}
    return {
        "format": FORMAT,
        "schema_version": CHECKPOINT_SCHEMA,
        "state_dict": tensors,
        "labels": list(labels),
        "input_dim": old["input_dim"],
        "hidden_dim": hidden_dim,
        "dropout": dropout,
        "pool_mode": "unknown",
        "resize": None,
        "backbone": None,
        "thresholds": dict.fromkeys(labels, default),
        "pos_weight": pos_weight,
        "seed": 0,
        "epoch": epoch,
        "metric_name": "score",
        "best_metric": score if math.isfinite(score) else None,
    }


def _check_format(document: Any, path: Path) -> None:
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or found != FORMAT:
        raise CheckpointError(
            f"{path} is not a head checkpoint; found format {found!r}, expected {FORMAT!r}; "
            "pass the best.pt or last.pt that head training wrote (backbone weights go to --backbone)"
        )
    version = document.get("schema_version")
    if version != CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path}: checkpoint schema {version!r}, expected {CHECKPOINT_SCHEMA}; "
            "train the head again with this version, or use the version that wrote it"
        )


def _check_fields(document: dict[str, Any], path: Path) -> None:
    missing = [name for name in _EXPECTED if name not in document and name not in ("arch", "params")]
    if missing:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(missing)}; train the head again")
    for name, (is_valid, expected) in _EXPECTED.items():
        if name in document and not is_valid(document[name]):
            raise CheckpointError(f"{path}: {name} is {str(document[name])[:80]!r}, expected {expected}")
    labels = set(document["labels"])
    for name in ("thresholds", "pos_weight"):
        if set(document[name]) != labels:
            raise CheckpointError(
                f"{path}: {name} for {sorted(document[name])}, expected one for each label: {sorted(labels)}"
            )


def _check_tensors(checkpoint: HeadCheckpoint, path: Path) -> None:
    shapes = ARCHITECTURES[checkpoint.arch].shapes(checkpoint.input_dim, len(checkpoint.labels), checkpoint.params)
    expected = {name: f"{list(shape)} float32" for name, shape in shapes.items()}
    found = {name: f"{list(tensor.shape)} {tensor.dtype}" for name, tensor in checkpoint.state_dict.items()}
    if found != expected:
        listed = [", ".join(f"{name} {text}" for name, text in sorted(some.items())) for some in (expected, found)]
        raise CheckpointError(f"{path}: tensors differ; expected {listed[0]}; found {listed[1]}")
    bad = [name for name, tensor in checkpoint.state_dict.items() if not np.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(bad)}; train the head again")


def _is_int(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) == len(set(map(str, value))) and all(map(_is_text, value))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, np.ndarray) for tensor in value.values())


def _are_weights(value: Any) -> bool:
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
    "state_dict": (_are_tensors, "a dictionary of tensors"),
    "arch": (lambda value: value in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}"),
    "params": (lambda value: isinstance(value, dict), "a dictionary"),
    "labels": (_are_labels, "a list of distinct names"),
    "input_dim": (_is_int(1), "a positive whole number"),
    "hidden_dim": (_is_int(-(2**31)), "a whole number"),
    "dropout": (lambda value: _is_share(value) and value < 1, "a number in [0, 1)"),
    "pool_mode": (lambda value: value in (*INPUTS_PER_DIM, "unknown"), f"one of {', '.join(INPUTS_PER_DIM)}, unknown"),
    "resize": (lambda value: value is None or _is_int(1)(value), "a positive whole number or nothing"),
    "backbone": (lambda value: value is None or _is_identity(value), "a backbone's identity or nothing"),
    "thresholds": (_are_thresholds, "a value in [0, 1] and an origin for each label"),
    "pos_weight": (_are_weights, "a finite weight for each label"),
    "seed": (_is_int(0), "a whole number from 0"),
    "epoch": (_is_int(0), "a whole number from 0"),
    "metric_name": (_is_text, "a name"),
    "best_metric": (
        lambda value: value is None or (isinstance(value, float) and math.isfinite(value)),
        "a finite number or nothing",
    ),
}
"""Key of the file -> (is it valid, what is expected in words); `arch` and `params` may be absent."""

_FIELDS = tuple(name for name in _EXPECTED if name not in ("arch", "params", "dropout"))
"""Keys that are attributes of `HeadCheckpoint` too."""

_PLAIN_FIELDS = tuple(name for name in _FIELDS if name not in ("state_dict", "labels", "thresholds", "hidden_dim"))
"""Those that are stored as they are."""
