"""A trained head and what it belongs to: labels, dimensions, backbone, thresholds. Reading needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.torch_file import read_torch_file, save_torch_file
from meddinov3_stroke.types import BackboneIdentity, Threshold

FORMAT = "meddinov3_stroke.head"
"""Value of `format` in every head checkpoint."""

CHECKPOINT_SCHEMA = 2
"""Raised when a field changes its meaning. Schema 1 had `hidden_dim` and `dropout` in place of `arch` and `params`."""

INPUTS_PER_DIM: Mapping[str, int] = {"slice": 1, "mean": 1, "max": 1, "mean_max": 2}
"""Pool mode -> input size of the head in units of the backbone's embedding; `unknown` is a pool mode too."""

FOREIGN_KEYS = ("model_state_dict", "input_dim", "num_classes")
"""Keys of a checkpoint written by the first public implementation of this README."""


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head's weights and what they belong to."""

    state_dict: Mapping[str, np.ndarray]
    """Tensor name -> float32 array."""
    labels: tuple[str, ...]
    input_dim: int
    arch: str
    """Key of `ARCHITECTURES`."""
    params: Mapping[str, Any]
    """Hyper-parameters of the architecture."""
    pool_mode: str
    """slice, mean, max, mean_max or unknown: what a training row was."""
    resize: int | None
    """Side in pixels of the backbone's input; None if unknown."""
    backbone: dict[str, Any] | None
    """`dataclasses.asdict` of the `BackboneIdentity` of the training embeddings; None if unknown."""
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
    is_foreign: bool = False
    """Written by another implementation, on slices with another orientation and resampling; never stored."""

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden layer; 0 or less is a single linear layer."""
        return int(self.params["hidden_dim"])


def save_checkpoint(path: Path, checkpoint: HeadCheckpoint) -> str:
    """The sha256 of the file, written atomically as plain containers and tensors. Needs torch."""
    import torch

    document: dict[str, Any] = {"format": FORMAT, "schema_version": CHECKPOINT_SCHEMA}
    document |= {name: getattr(checkpoint, name) for name in _field_names()}
    document["state_dict"] = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.state_dict.items()}
    document["params"], document["labels"] = dict(checkpoint.params), list(checkpoint.labels)
    document["thresholds"] = {
        label: {"value": threshold.value, "origin": threshold.origin}
        for label, threshold in checkpoint.thresholds.items()
    }
    save_torch_file(path, document)
    return sha256_of_file(path)


def load_checkpoint(path: Path) -> HeadCheckpoint:
    """The checkpoint in `path`, with every field and every tensor's name, shape and type checked.

    Raises:
        CheckpointError: not a head checkpoint, or damaged; lists expected and found.
        WeightsError: no file, no torch file, or one that holds more than tensors (no code of it is run).
    """
    path = Path(path)
    document = read_torch_file(path)
    if isinstance(document, dict) and all(key in document for key in FOREIGN_KEYS):
        document = _from_foreign(document, path)
    _check_format(document, path)
    if document["schema_version"] == 1:
        document |= {"arch": "mlp", "params": {name: document.get(name) for name in ("hidden_dim", "dropout")}}
    _check_fields(document, path)
    values = {name: document[name] for name in _field_names()}
    values["labels"] = tuple(document["labels"])
    values["thresholds"] = {k: Threshold(float(v["value"]), v["origin"]) for k, v in document["thresholds"].items()}
    checkpoint = HeadCheckpoint(**values, sha256=sha256_of_file(path), is_foreign="is_foreign" in document)
    _check_tensors(checkpoint, path)
    return checkpoint


def _field_names() -> list[str]:
    return [field.name for field in fields(HeadCheckpoint) if field.name not in ("sha256", "is_foreign")]


def _from_foreign(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The document of a foreign checkpoint in our layout; tensors are matched by their order."""
    state, n_labels = found["model_state_dict"], found["num_classes"]
    hidden_dim = 0 if len(state) == 2 else found.get("hidden_dim")
    params = {"hidden_dim": hidden_dim, "dropout": float(found.get("dropout") or 0.0)}
    if not isinstance(n_labels, int) or not isinstance(state, dict) or not ARCHITECTURES["mlp"].has_valid(params):
        raise CheckpointError(f"{path}: neither this package's head checkpoint nor a readable foreign one; retrain it")
    names = ARCHITECTURES["mlp"].shapes(params, found["input_dim"], n_labels)
    labels = list(_default_labels(n_labels))
    weights = np.ravel(np.ones(n_labels) if found.get("pos_weight") is None else found["pos_weight"])
    score = found.get("score")
    return {
        "format": FORMAT,
        "schema_version": CHECKPOINT_SCHEMA,
        "state_dict": dict(zip(names, state.values(), strict=False)) if len(state) == len(names) else dict(state),
        "labels": labels,
        "input_dim": found["input_dim"],
        "arch": "mlp",
        "params": params,
        "pool_mode": "unknown",
        "resize": None,
        "backbone": None,
        "thresholds": {
            label: {"value": 0.5, "origin": "default 0.5: the checkpoint has no thresholds"} for label in labels
        },
        "pos_weight": dict(zip(labels, map(float, weights), strict=False)),
        "seed": 0,
        "epoch": int(found.get("epoch") or 0),
        "metric_name": "score of another implementation",
        "best_metric": float(score) if isinstance(score, int | float) and math.isfinite(score) else None,
        "is_foreign": True,
    }


def _default_labels(n_labels: int) -> Sequence[str]:
    from meddinov3_stroke.labels import label_names

    return label_names(n_labels)


def _check_format(document: Any, path: Path) -> None:
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or found != FORMAT:
        raise CheckpointError(
            f"{path} is not a head checkpoint; found format {found!r}, expected {FORMAT!r}; "
            "pass the best.pt or last.pt written by head training (backbone weights go to --backbone)"
        )
    version = document.get("schema_version")
    if version not in range(1, CHECKPOINT_SCHEMA + 1):
        raise CheckpointError(
            f"{path}: checkpoint schema {version!r}, expected at most {CHECKPOINT_SCHEMA}; "
            "retrain the head with this version, or use the version that wrote it"
        )


def _check_fields(document: dict[str, Any], path: Path) -> None:
    missing = [name for name in _field_names() if name not in document]
    if missing:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(missing)}; retrain the head")
    for name, (is_valid, expected) in _EXPECTED.items():
        if not is_valid(document[name]):
            raise CheckpointError(f"{path}: {name} is {str(document[name])[:80]!r}, expected {expected}")
    if not ARCHITECTURES[document["arch"]].has_valid(document["params"]):
        raise CheckpointError(
            f"{path}: params is {str(document['params'])[:80]!r}; out of range for {document['arch']}"
        )
    labels = set(document["labels"])
    for name in ("thresholds", "pos_weight"):
        if set(document[name]) != labels:
            raise CheckpointError(
                f"{path}: {name} for {sorted(document[name])}, expected one for each label: {sorted(labels)}"
            )


def _check_tensors(checkpoint: HeadCheckpoint, path: Path) -> None:
    shapes = ARCHITECTURES[checkpoint.arch].shapes(checkpoint.params, checkpoint.input_dim, len(checkpoint.labels))
    expected = {name: (shape, "float32") for name, shape in shapes.items()}
    found = {name: (tensor.shape, str(tensor.dtype)) for name, tensor in checkpoint.state_dict.items()}
    if found != expected:
        raise CheckpointError(f"{path}: tensors differ; expected {_shapes(expected)}; found {_shapes(found)}")
    broken = [name for name, tensor in checkpoint.state_dict.items() if not np.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(broken)}; retrain the head")


def _shapes(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{name} {list(shape)} {dtype}" for name, (shape, dtype) in sorted(tensors.items()))


def _is_int(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) == len(set(map(str, value))) and all(map(_is_text, value))


def _is_dict_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_threshold(item: Any) -> bool:
    return isinstance(item, dict) and _is_share(item.get("value")) and _is_text(item.get("origin"))


def _is_share(value: Any) -> bool:
    return _is_finite(value) and 0 <= value <= 1


def _is_identity(value: Any) -> bool:
    keys = {field.name for field in fields(BackboneIdentity) if field.name != "calibration_sha256"}
    return isinstance(value, dict) and keys <= set(value) and isinstance(value["preprocessing"], dict)


_EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "state_dict": (_is_dict_of(lambda tensor: isinstance(tensor, np.ndarray)), "a dictionary of tensors"),
    "labels": (_are_labels, "a list of distinct names"),
    "input_dim": (_is_int(1), "a positive integer"),
    "arch": (lambda value: isinstance(value, str) and value in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}"),
    "params": (lambda value: isinstance(value, dict), "a dictionary"),
    "pool_mode": (
        lambda value: isinstance(value, str) and value in (*INPUTS_PER_DIM, "unknown"),
        f"one of {', '.join(INPUTS_PER_DIM)}, unknown",
    ),
    "resize": (lambda value: value is None or _is_int(1)(value), "a positive integer or nothing"),
    "backbone": (lambda value: value is None or _is_identity(value), "a backbone identity or nothing"),
    "thresholds": (_is_dict_of(_is_threshold), "a value in [0, 1] and an origin for each label"),
    "pos_weight": (_is_dict_of(lambda value: _is_finite(value) and value >= 0), "a finite weight for each label"),
    "seed": (_is_int(0), "an integer from 0"),
    "epoch": (_is_int(0), "an integer from 0"),
    "metric_name": (_is_text, "a name"),
    "best_metric": (lambda value: value is None or _is_finite(value), "a finite number or nothing"),
}
"""Field -> (validity check, expected value in words)."""
