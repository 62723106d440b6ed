"""A trained head and what it belongs to: labels, dimensions, backbone, thresholds. Reading needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke import config
from meddinov3_stroke.errors import CheckpointError, MissingWeights
from meddinov3_stroke.heads.architectures import LabelCalibration
from meddinov3_stroke.heads.foreign import FOREIGN_KEYS, from_foreign
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.system.command import command_of
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.torch_file import read_torch_file
from meddinov3_stroke.types import BackboneIdentity, Preprocessing, Threshold
from meddinov3_stroke.views import PatchBasis, View

FORMAT = "meddinov3_stroke.head"  # value of `format` in every head checkpoint

ADDED_LATER = ("distribution", "calibration", "operating_points", "seen", "view")  # None in earlier checkpoints

CHECKPOINT_SCHEMA = 2
"""Raised when a field changes its meaning. Schema 1 had `hidden_dim` and `dropout` in place of `arch` and `params`."""

POOL_MODES: Mapping[str, tuple[int, ...]] = {
    "slice": (1,),
    "mean": (1,),
    "max": (1,),
    "mean_max": (2,),
    "slices": (1,),
    "patches": (1,),
    "unknown": (1, 2),
}
"""Pool mode -> possible input sizes of the head in units of what its view takes of a slice. `slice`: a row is one
slice; `slices` and `patches`: a row is the slices of a case, or their patches."""


@dataclass(frozen=True, eq=False)
class TrainingDistribution:
    """A Gaussian of a head's training rows, and how far from it a row may lie.

    Probabilistic PCA (Tipping and Bishop 1999): principal components with their variances, and one variance for all
    other directions.
    """

    mean: Float32[np.ndarray, " dim"]
    components: Float32[np.ndarray, "dim component"]  # orthonormal columns
    variances: Float32[np.ndarray, " component"]  # along each component
    residual_variance: float  # along every other direction
    limit: float  # distance above which a row is out of distribution
    n_rows: int  # training rows behind it

    def distances(self, rows: Float32[np.ndarray, "n dim"]) -> Float64[np.ndarray, " n"]:
        """The Mahalanobis distance of each row over the root of its width, so about 1 is usual."""
        away = rows.astype(np.float64) - self.mean
        along = away @ self.components
        beside = np.maximum(np.square(away).sum(axis=1) - np.square(along).sum(axis=1), 0)
        squared = (np.square(along) / self.variances).sum(axis=1) + beside / self.residual_variance
        return np.asarray(np.sqrt(squared / rows.shape[1]))

    @property
    def is_sound(self) -> bool:
        """Whether every number is finite, and variances and limit are positive, in float32 too."""
        numbers = [self.residual_variance, self.limit, *self.variances.tolist()]
        is_finite = all(np.isfinite(one).all() for one in (self.mean, self.components))
        least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        return is_finite and all(least <= number <= most for number in numbers)

    def figures(self) -> dict[str, Any]:
        """The limit and the number of training rows behind it, as JSON."""
        return {"limit": round(self.limit, 4), "n_training_rows": self.n_rows}


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head's weights and what they belong to."""

    state_dict: Mapping[str, np.ndarray]  # tensor name -> float32 array
    labels: tuple[str, ...]
    input_dim: int
    arch: str  # key of `ARCHITECTURES`
    params: Mapping[str, Any]  # hyper-parameters of the architecture
    pool_mode: str  # what a training row was: a key of `POOL_MODES`
    resize: int | None  # side in pixels of the backbone's input; None if unknown
    backbone: dict[str, Any] | None  # `asdict` of the `BackboneIdentity` of the training embeddings; None if unknown
    thresholds: dict[str, Threshold]
    pos_weight: dict[str, float]  # weight of a positive in the training loss
    seed: int
    epoch: int
    metric_name: str
    best_metric: float | None  # validation metric of this epoch
    distribution: TrainingDistribution | None = None  # of the training rows; None if they were too few, or unknown
    calibration: dict[str, LabelCalibration] | None = None  # of each label; None in checkpoints of earlier versions
    operating_points: dict[str, dict[str, Threshold]] | None = None
    """Operating point -> label -> threshold on the calibrated probability, or without a calibrator on the probability
    as it is; None in checkpoints of earlier versions."""
    seen: dict[str, dict[str, np.ndarray]] | None = None
    """training, validation -> kind -> digests of their rows, patients and pixels (`data.exposure`), where known; None
    in checkpoints of earlier versions."""
    view: View = field(default_factory=View)  # what the head sees of each slice, with the basis of its patches
    sha256: str = ""  # digest of the file; empty before saving
    is_foreign: bool = False
    """Written by another implementation, on slices with another orientation and resampling; never stored."""

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden layer; 0 or less is a single linear layer."""
        return int(self.params["hidden_dim"])


def load_checkpoint(path: Path) -> HeadCheckpoint:
    """The checkpoint in `path`, with every field and every tensor's name, shape and type checked.

    Raises CheckpointError (not a head checkpoint, or damaged; lists expected and found), or WeightsError (no file, no
    torch file, or one that holds more than tensors, of which no code is run).
    """
    path = Path(path)
    if not path.exists():
        raise MissingWeights(
            f"no head checkpoint at {path}; {command_of('train-rsna')} --series-csv TABLE.csv trains one and writes "
            f"{config.RSNA_CHECKPOINTS_DIR / 'best.pt'}; meddinov3-stroke demo writes "
            f"{config.DEMO_DIR / 'checkpoints' / 'best.pt'}, which needs --backbone demo"
        )
    document = read_torch_file(path)
    is_foreign = isinstance(document, dict) and all(key in document for key in FOREIGN_KEYS)
    document = from_foreign(document, path) if is_foreign else _checked_format(document, path)
    document = {**dict.fromkeys(ADDED_LATER), **document}
    _check_fields(document, path)
    values = {name: document[name] for name in EXPECTED}
    values["labels"] = tuple(document["labels"])
    values["thresholds"] = _thresholds(document["thresholds"])
    for name, read in _READERS.items():
        values[name] = None if document[name] is None else read(document[name])
    values["view"] = values["view"] or View()
    checkpoint = HeadCheckpoint(**values, sha256=sha256_of_file(path), is_foreign=is_foreign)
    _check_tensors(checkpoint, path)
    return checkpoint


def _thresholds(document: Mapping[str, Any]) -> dict[str, Threshold]:
    return {label: Threshold(float(one["value"]), one["origin"]) for label, one in document.items()}


def _distribution_from_document(document: Any) -> TrainingDistribution:
    """The distribution stored in a checkpoint; raises ValueError where it is incomplete or out of range."""
    names = [one.name for one in fields(TrainingDistribution)]
    found: dict[str, Any] = dict.fromkeys(names)
    found |= {name: document.get(name) for name in names} if isinstance(document, Mapping) else {}
    arrays, numbers = [found[name] for name in names[:3]], [found[name] for name in names[3:]]
    if not all(isinstance(one, np.ndarray) and one.dtype == np.float32 and np.isfinite(one).all() for one in arrays):
        raise ValueError(f"{', '.join(names[:3])}: expected finite float32 arrays")
    if not all(isinstance(one, int | float) and 0 < one < np.inf for one in (*numbers, *arrays[2].ravel().tolist())):
        raise ValueError(f"variances, {', '.join(names[3:])}: expected positive numbers")
    if arrays[0].ndim != 1 or arrays[2].ndim != 1 or arrays[1].shape != (len(arrays[0]), arrays[2].size):
        raise ValueError(f"components {list(arrays[1].shape)} do not fit the mean {list(arrays[0].shape)}")
    return TrainingDistribution(**found)


def identity_from_document(document: Any) -> BackboneIdentity:
    """The `BackboneIdentity` whose `asdict` this is; unknown keys are ignored.

    Raises ValueError where keys are missing or have values of another type; names them.
    """
    values = _pick(document, BackboneIdentity)
    return BackboneIdentity(
        **values | {"preprocessing": Preprocessing(**_pick(values["preprocessing"], Preprocessing))}
    )


_TYPES: Mapping[Any, Any] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "str | None": (str, type(None)),
    "Preprocessing": Mapping,
}


def _pick(document: Any, kind: type[BackboneIdentity] | type[Preprocessing]) -> dict[str, Any]:
    found = document if isinstance(document, Mapping) else {}
    if missing := [field.name for field in fields(kind) if field.default is MISSING and field.name not in found]:
        raise ValueError(f"the backbone identity lacks {', '.join(missing)}")
    given = [field for field in fields(kind) if field.name in found]
    if wrong := [field.name for field in given if not isinstance(found[field.name], _TYPES[field.type])]:
        raise ValueError(f"the backbone identity has no usable {', '.join(wrong)}")
    return {field.name: found[field.name] for field in given}


def _checked_format(document: Any, path: Path) -> dict[str, Any]:
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or str(found) != FORMAT:
        raise CheckpointError(
            f"{path} is not a head checkpoint; found format {found!r}, expected {FORMAT!r}; "
            "pass the best.pt or last.pt written by head training (backbone weights go to --backbone)"
        )
    version = document.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path}: checkpoint schema {version!r}, expected at most {CHECKPOINT_SCHEMA}; "
            "retrain the head with this version, or use the version that wrote it"
        )
    params = {name: document.get(name) for name in ("hidden_dim", "dropout")}
    return document | {"arch": "mlp", "params": params} if version == 1 else document


def _check_fields(document: dict[str, Any], path: Path) -> None:
    if missing := [name for name in EXPECTED if name not in document]:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(missing)}; retrain the head")
    for name, (is_valid, expected) in EXPECTED.items():
        if not is_valid(document[name]):
            raise CheckpointError(f"{path}: {name} is {str(document[name])[:80]!r}, expected {expected}")
    params, labels = document["params"], sorted(document["labels"])
    if not ARCHITECTURES[document["arch"]].has_valid(params):
        raise CheckpointError(f"{path}: params is {str(params)[:80]!r}; out of range for {document['arch']}")
    points = {f"operating point {k}": one for k, one in (document["operating_points"] or {}).items()}
    one_each = {name: document[name] for name in ("thresholds", "pos_weight", "calibration")} | points
    for name, value in one_each.items():
        if value is not None and (found := sorted(value)) != labels:
            raise CheckpointError(f"{path}: {name} for {found}, expected one for each label: {labels}")


def _check_tensors(checkpoint: HeadCheckpoint, path: Path) -> None:
    shapes = ARCHITECTURES[checkpoint.arch].shapes(checkpoint.params, checkpoint.input_dim, len(checkpoint.labels))
    expected = {name: f"{list(shape)} float32" for name, shape in shapes.items()}
    found = {name: f"{list(tensor.shape)} {tensor.dtype}" for name, tensor in checkpoint.state_dict.items()}
    if found != expected:
        texts = [", ".join(f"{name} {form}" for name, form in sorted(side.items())) for side in (expected, found)]
        raise CheckpointError(f"{path}: tensors differ; expected {texts[0]}; found {texts[1]}")
    distribution = checkpoint.distribution
    if distribution is not None and len(distribution.mean) != checkpoint.input_dim:
        found_dim = f"{len(distribution.mean)} columns, expected {checkpoint.input_dim}"
        raise CheckpointError(f"{path}: the distribution of the training rows has {found_dim}; retrain the head")
    broken = [name for name, tensor in checkpoint.state_dict.items() if not np.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinity in {', '.join(broken)}; retrain the head")


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least  # a bool is no count


def _is_float(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    return isinstance(value, float) and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_dict(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and is_valid(item) for key, item in value.items())


def _is_threshold(item: Any) -> bool:
    return isinstance(item, dict) and _is_float(item.get("value"), 0.0, 1.0) and _is_text(item.get("origin"))


def _is_identity(value: Any) -> bool:
    try:
        return bool(identity_from_document(value))
    except ValueError:
        return False


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "distribution": _distribution_from_document,
    "calibration": lambda stored: {label: LabelCalibration.from_document(one) for label, one in stored.items()},
    "operating_points": lambda stored: {point: _thresholds(one) for point, one in stored.items()},
    "view": lambda stored: View(**{**stored, "basis": stored["basis"] and PatchBasis(**stored["basis"])}),
}
"""Fields that are None in some checkpoints -> what reads them otherwise."""


def _is_readable(name: str, value: Any) -> bool:
    try:
        return value is None or _READERS[name](value) is not None
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


def _are_digests(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.int64


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and 0 < len(value) == len(set(value))


EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "state_dict": (lambda v: _is_dict(v, lambda item: isinstance(item, np.ndarray)), "a dictionary of tensors"),
    "labels": (_are_names, "a list of distinct names"),
    "input_dim": (lambda v: _is_count(v, 1), "a positive integer"),
    "arch": (lambda v: _is_text(v) and v in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}"),
    "params": (lambda v: isinstance(v, dict), "a dictionary"),
    "pool_mode": (lambda v: _is_text(v) and v in POOL_MODES, f"one of {', '.join(POOL_MODES)}"),
    "resize": (lambda v: v is None or _is_count(v, 1), "a positive integer or nothing"),
    "backbone": (lambda v: v is None or _is_identity(v), "a backbone identity or nothing"),
    "thresholds": (lambda v: _is_dict(v, _is_threshold), "a value in [0, 1] and an origin for each label"),
    "pos_weight": (lambda v: _is_dict(v, lambda item: _is_float(item, 0.0)), "a finite weight for each label"),
    "seed": (_is_count, "an integer from 0"),
    "epoch": (_is_count, "an integer from 0"),
    "metric_name": (_is_text, "a name"),
    "best_metric": (lambda v: v is None or _is_float(v), "a finite number or nothing"),
    "distribution": (lambda v: _is_readable("distribution", v), "a distribution of training rows or nothing"),
    "calibration": (lambda v: _is_readable("calibration", v), "a calibration of each label or nothing"),
    "operating_points": (
        lambda v: v is None or _is_dict(v, lambda point: _is_dict(point, _is_threshold)),
        "a value in [0, 1] and an origin for each label of each point, or nothing",
    ),
    "view": (lambda v: _is_readable("view", v), "a view of the slices or nothing"),
    "seen": (
        lambda v: v is None or _is_dict(v, lambda split: _is_dict(split, _are_digests)),
        "64-bit digests of each split and kind, or nothing",
    ),
}
"""Every stored field -> (validity check, expected value in words)."""
