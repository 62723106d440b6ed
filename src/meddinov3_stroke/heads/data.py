"""Embeddings and labels in `.npy` files: reading, checking, and the backbone that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.errors import DatasetError, LabelError
from meddinov3_stroke.heads.applying import backbone_differences
from meddinov3_stroke.heads.checkpoint import POOL_MODES, identity_from_document
from meddinov3_stroke.labels import LabelPolicy, apply_label_policy, label_matrix, label_names, name_rows
from meddinov3_stroke.system.provenance import SUMMARY_NAME
from meddinov3_stroke.types import BackboneIdentity, HeadData


@dataclass(frozen=True)
class HeadContext:
    """Where a head's embeddings came from; goes into its checkpoint."""

    pool_mode: str  # slice, mean, max, mean_max or unknown
    resize: int | None  # side in pixels of the square that the backbone saw; None is unknown
    backbone: Mapping[str, Any] | None  # `dataclasses.asdict` of a `BackboneIdentity`; None is unknown
    label_names: tuple[str, ...]
    sources: Mapping[str, str] = field(default_factory=dict)  # files the arrays were read from
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbeddingOrigin:
    """What the summary next to the embeddings states; None and `unknown` where it states nothing."""

    pool_mode: str = "unknown"
    resize: int | None = None
    identity: BackboneIdentity | None = None
    warnings: tuple[str, ...] = ()


def load_head_data(
    embeddings_path: Path, labels_path: Path, label_policy: LabelPolicy = "strict"
) -> tuple[HeadData, list[str]]:
    """The checked arrays and warnings about them.

    Raises DatasetError (a file that is missing, damaged, pickled or of the wrong form; rows with NaN; counts that
    differ) or LabelError (values other than 0 and 1; `any` against the subtypes unless `label_policy` allows).
    """
    embeddings_name, labels_name = str(embeddings_path), str(labels_path)
    embeddings = embedding_matrix(read_array(embeddings_path), embeddings_name)
    labels = label_matrix(read_array(labels_path), labels_name)
    labels, warnings = apply_label_policy(labels, label_names(labels.shape[1]), label_policy, labels_name)
    _require_equal_rows(embeddings, labels, embeddings_name, labels_name)
    return HeadData(embeddings, labels), warnings


def _require_equal_rows(embeddings: np.ndarray, labels: np.ndarray, embeddings_name: str, labels_name: str) -> None:
    if len(embeddings) != len(labels):
        raise DatasetError(
            f"{embeddings_name} has {len(embeddings)} rows and {labels_name} has {len(labels)}; "
            "expected as many labels as embeddings, in the same order"
        )


def read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file; `DatasetError` for anything else, a truncated one, or one with Python objects."""
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise DatasetError(f"no array at {path}; found {found}, expected a .npy file")
    try:  # unlike np.load, takes no .npz and no pickle; fails if the header claims too much
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, EOFError, OSError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DatasetError(
            f"{path} is not a readable .npy file of numbers ({reason}); write it with numpy.save"
        ) from error


def embedding_matrix(values: np.ndarray, where: str) -> Float32[np.ndarray, "n dim"]:
    """The embeddings as float32 [n, dim]; `DatasetError` for other kinds, no rows, or NaN or infinity (named)."""
    if values.dtype.kind not in "iuf":
        raise DatasetError(f"{where}: embeddings of type {values.dtype}; expected real numbers, preferably float32")
    if values.ndim != 2 or 0 in values.shape:
        raise DatasetError(f"{where}: embeddings of shape {values.shape}; expected [rows, columns], one row or more")
    with np.errstate(over="ignore"):  # overflow becomes infinite and is reported below
        embeddings = values.astype(np.float32)
    bad = np.nonzero(~np.isfinite(embeddings).all(axis=1))[0]
    if bad.size:
        raise DatasetError(
            f"{where}: NaN or infinity in {name_rows(bad)}; {bad.size} of {len(embeddings)} rows; "
            "extract these rows again or leave them out with their labels"
        )
    return embeddings


def check_head_data(data: HeadData, where: str) -> None:
    """Check arrays that did not come from a file; errors as for `load_head_data`."""
    embedding_matrix(data.embeddings, where)
    label_matrix(data.labels, where)
    _require_equal_rows(data.embeddings, data.labels, f"{where}: the embeddings", "the labels")


def check_train_and_val(train: HeadData, val: HeadData | None, names: tuple[str, ...]) -> list[str]:
    """Warnings about labels that validation cannot assess.

    Raises DatasetError where training and validation differ in columns, LabelError for a label without a positive or
    without a negative in training; counts are given.
    """
    for what in ("embeddings", "labels"):
        n_train, n_val = (getattr(side, what).shape[1] for side in (train, val or train))
        if n_train != n_val:
            raise DatasetError(
                f"{what} have {n_train} columns in training and {n_val} in validation; expected the same"
            )
    n, n_positive = len(train.labels), train.labels.sum(axis=0, dtype=np.int64)
    if len(names) != len(n_positive):
        raise DatasetError(f"{len(names)} label names for {len(n_positive)} columns of labels: {', '.join(names)}")
    if not ((n_positive > 0) & (n_positive < n)).all():
        counts = ", ".join(f"{name} {count}" for name, count in zip(names, n_positive, strict=True))
        raise LabelError(
            f"training: a label without positives or without negatives cannot be learned; positives of {n} rows: "
            f"{counts}; expected at least one positive and one negative of each; add rows or drop the label"
        )
    return [
        f"label {name} has {int(column.sum())} positive of {len(column)} rows in validation: its AUROC is undefined "
        "(null) and its threshold is 0.5"
        for name, column in zip(names, [] if val is None else val.labels.T, strict=val is not None)
        if column.min() == column.max()
    ]


def read_origin(embeddings_path: Path, n_columns: int) -> EmbeddingOrigin:
    """What `summary.json` next to the embeddings states; unknown, with a warning, if there is no usable one.

    Raises DatasetError where the summary describes embeddings of another size.
    """
    path = Path(embeddings_path).with_name(SUMMARY_NAME)
    problem = f"no {SUMMARY_NAME} next to {embeddings_path}"
    if path.is_file():
        try:
            origin, expected = _origin_of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, OSError, RecursionError) as error:
            problem = f"{path} does not state which backbone made the embeddings ({error})"
        else:
            if n_columns != (expected or n_columns):
                raise DatasetError(
                    f"{embeddings_path} has {n_columns} columns but {path} describes {expected} "
                    f"(pool mode {origin.pool_mode}); keep each summary next to its own embeddings"
                )
            return origin
    return EmbeddingOrigin(warnings=(f"{problem}: backbone, pooling and resize of the embeddings are unknown",))


def _origin_of(document: Any) -> tuple[EmbeddingOrigin, int | None]:
    # the origin, and the number of columns its embeddings have; None if that is unknown
    backbone = document.get("backbone") if isinstance(document, dict) else None
    if not isinstance(backbone, dict):
        raise ValueError("it has no backbone")
    if (view := document.get("view", "cls")) not in ("cls", "cls+head"):  # which of them, the identity says
        raise DatasetError(f"the embeddings are of the view {view}; expected class tokens: extract with --views cls")
    mode, resize = document.get("pool_mode", "unknown"), document.get("resize")
    if mode not in POOL_MODES:
        raise ValueError(f"pool_mode {mode!r}")
    if resize is not None and (type(resize) is not int or resize < 1):
        raise ValueError(f"resize {resize!r}")
    identity = identity_from_document(backbone)
    n_columns = None if mode == "unknown" else POOL_MODES[mode][0] * identity.embed_dim
    return EmbeddingOrigin(mode, resize, identity), n_columns


def same_origin(train: EmbeddingOrigin, val: EmbeddingOrigin) -> list[str]:
    """Warnings if training and validation embeddings come from different engines, precisions or calibrations.

    Raises DatasetError where they come from another backbone, resize or pooling; lists both.
    """
    if train.identity is None or val.identity is None:
        return []
    different, slight = backbone_differences(asdict(train.identity), asdict(val.identity))
    for name in ("resize", "pool_mode"):
        if getattr(train, name) != getattr(val, name):
            different.append(f"{name}: expected {getattr(train, name)}, found {getattr(val, name)}")
    if different:
        raise DatasetError(
            "training (expected) and validation (found) embeddings were made differently: "
            f"{'; '.join(different)}; extract both with the same backbone and flags"
        )
    return [f"validation embeddings were made with another {text}" for text in slight]
