"""Applying a head: does it belong to this backbone and these rows, and which logits does it give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke import config
from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.heads.checkpoint import FORMAT, INPUTS_PER_DIM, LEGACY_KEYS, HeadCheckpoint
from meddinov3_stroke.types import BackboneIdentity, HeadOutput, Preprocessing

REFUSED_FIELDS = ("weights_sha256", "preprocessing", "patch_size", "rope_dtype")
"""Fields of the backbone's identity that must be equal; other weights or preprocessing are refused (INTERFACES 1b)."""

WARNED_FIELDS = ("engine", "precision")
"""Fields whose difference changes the embeddings little: a warning (INTERFACES 1b)."""


def predict_logits(
    checkpoint: HeadCheckpoint,
    rows: Float32[np.ndarray, "n dim"],
    labels: Sequence[str] | None = None,
    batch_size: int = config.ROWS_PER_BATCH,
) -> HeadOutput:
    """Logits [n, label] of the rows, in numpy, `batch_size` rows at a time; `labels` must be the checkpoint's.

    Raises:
        CheckpointError: the embedding's size or the labels are not the checkpoint's; lists expected and found.
        NonFiniteEmbedding: a row gives NaN or infinity.
    """
    check_columns(checkpoint, rows.shape[1], checkpoint.labels if labels is None else labels)
    apply = ARCHITECTURES[checkpoint.arch].logits
    logits = np.empty((len(rows), len(checkpoint.labels)), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # reported below, with the row
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            logits[part] = apply(checkpoint.state_dict, rows[part].astype(np.float64))
    bad = np.nonzero(~np.isfinite(logits).all(axis=1))[0]
    if bad.size:
        raise NonFiniteEmbedding(f"the head gives NaN or infinity for {bad.size} of {len(logits)} rows, first {bad[0]}")
    return HeadOutput(logits, checkpoint.labels)


def check_columns(checkpoint: HeadCheckpoint, input_dim: int, labels: Sequence[str]) -> None:
    """Return if embeddings of `input_dim` columns and these labels are what the checkpoint was trained on.

    Raises:
        CheckpointError: they are not; lists expected and found.
    """
    if input_dim != checkpoint.input_dim:
        raise CheckpointError(
            f"embeddings of {input_dim} columns do not fit the head; expected {checkpoint.input_dim} "
            f"(pool mode {checkpoint.pool_mode}), found {input_dim}; use the head trained on such embeddings"
        )
    if tuple(labels) != checkpoint.labels:
        raise CheckpointError(
            f"the head's labels differ; expected {', '.join(checkpoint.labels)}; found {', '.join(labels)}; "
            "use labels of the same names in the same order"
        )


def check_backbone(checkpoint: HeadCheckpoint, identity: BackboneIdentity, resize: int | None) -> list[str]:
    """Warnings about a head that is used with a backbone at `resize` pixels (None: unknown); empty if all agree.

    Raises:
        CheckpointError: other weights, preprocessing, resize or input size (lists expected and found), or a head of
            the earlier public implementation.
    """
    if checkpoint.is_legacy:
        raise CheckpointError(
            "this head comes from an earlier implementation, which trained it on slices that lay transposed and were "
            "resized without antialiasing; it would give wrong probabilities for the slices read here; found keys "
            f"{', '.join(sorted(LEGACY_KEYS))}, expected format {FORMAT}; train the head again, which takes minutes on "
            "cached features: meddinov3-stroke train-rsna --series-csv TABLE.csv"
        )
    found = asdict(identity)
    faults = _input_dim_faults(checkpoint, identity.embed_dim)
    if None not in (checkpoint.resize, resize) and checkpoint.resize != resize:
        faults.append(f"resize: expected {checkpoint.resize}, found {resize}")
    if checkpoint.backbone is not None:
        faults += _differences(checkpoint.backbone, found, REFUSED_FIELDS)
    if faults:
        raise CheckpointError(
            f"the head was trained on other embeddings than backbone {identity.name} gives: {'; '.join(faults)}; "
            "use the backbone and --resize the head was trained with, or train a head on this backbone"
        )
    unknown = ["the --resize of these embeddings is not known"] if resize is None else []
    return [*_warnings(checkpoint, found), *unknown]


def identity_from_document(document: Mapping[str, Any]) -> BackboneIdentity:
    """The `BackboneIdentity` whose `asdict` this is.

    Raises:
        ValueError: keys are missing; names them.
    """
    preprocessing = document.get("preprocessing")
    if not isinstance(preprocessing, Mapping):
        raise ValueError("the backbone's identity lacks preprocessing")
    known = _known_fields(document, BackboneIdentity)
    known["preprocessing"] = Preprocessing(**_known_fields(preprocessing, Preprocessing))
    return BackboneIdentity(**known)


def _known_fields(document: Mapping[str, Any], kind: type[BackboneIdentity] | type[Preprocessing]) -> dict[str, Any]:
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in document]
    if missing:
        raise ValueError(f"the backbone's identity lacks {', '.join(missing)}")
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}


def _input_dim_faults(checkpoint: HeadCheckpoint, embed_dim: int) -> list[str]:
    known = checkpoint.pool_mode in INPUTS_PER_DIM
    factors = [INPUTS_PER_DIM[checkpoint.pool_mode]] if known else sorted(set(INPUTS_PER_DIM.values()))
    if checkpoint.input_dim in [factor * embed_dim for factor in factors]:
        return []
    found = " or ".join(str(factor * embed_dim) for factor in factors)
    return [f"input_dim: expected {checkpoint.input_dim}, found {found} (pool mode {checkpoint.pool_mode})"]


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [
        f"{name}: expected {expected.get(name)}, found {found.get(name)}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def _warnings(checkpoint: HeadCheckpoint, found: Mapping[str, Any]) -> list[str]:
    warnings = []
    if checkpoint.backbone is None:
        warnings.append("the checkpoint does not record the backbone the head was trained on; this one may not fit")
    else:
        both_int8 = checkpoint.backbone["precision"] == found["precision"] == "int8"
        names = (*WARNED_FIELDS, "calibration_sha256") if both_int8 else WARNED_FIELDS
        different = _differences(checkpoint.backbone, found, names)
        warnings += [f"the head was trained on embeddings of another {text}" for text in different]
    if checkpoint.resize is None:
        warnings.append("the checkpoint does not record the --resize the head was trained at")
    if checkpoint.pool_mode == "unknown":
        warnings.append("the checkpoint does not record how the training embeddings were pooled")
    return warnings
