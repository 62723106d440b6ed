"""Applying a head: its logits for rows of embeddings, and whether it belongs to a backbone. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.heads.checkpoint import INPUTS_PER_DIM, HeadCheckpoint
from meddinov3_stroke.types import BackboneIdentity, HeadOutput, Preprocessing

ROWS_PER_BATCH = 16384
"""Rows sent through the head at a time; bounds memory."""

_MUST_MATCH = ("weights_sha256", "preprocessing", "patch_size", "rope_dtype")
"""Identity fields whose difference makes a head unusable."""

_SHOULD_MATCH = ("engine", "precision")
"""Identity fields whose difference changes the embeddings slightly: a warning."""


def predict_logits(
    checkpoint: HeadCheckpoint, embeddings: Float32[np.ndarray, "n dim"], labels: Sequence[str] | None = None
) -> HeadOutput:
    """Logits [n, label] of the rows, computed in numpy.

    Raises:
        CheckpointError: the embedding size or the labels differ from the checkpoint's; lists expected and found.
        NonFiniteEmbedding: a row gives NaN or infinity.
    """
    check_columns(checkpoint, embeddings.shape[1], checkpoint.labels if labels is None else labels)
    forward = ARCHITECTURES[checkpoint.arch].logits
    starts = range(0, max(len(embeddings), 1), ROWS_PER_BATCH)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        parts = [forward(checkpoint.state_dict, embeddings[start : start + ROWS_PER_BATCH]) for start in starts]
    logits = np.concatenate(parts)
    bad = np.nonzero(~np.isfinite(logits).all(axis=1))[0]
    if bad.size:
        raise NonFiniteEmbedding(f"the head gives NaN or infinity for {bad.size} of {len(logits)} rows, first {bad[0]}")
    return HeadOutput(logits, checkpoint.labels)


def check_columns(checkpoint: HeadCheckpoint, input_dim: int, labels: Sequence[str]) -> None:
    """Check that embeddings of `input_dim` columns and these labels fit the checkpoint.

    Raises:
        CheckpointError: they do not; lists expected and found.
    """
    if input_dim != checkpoint.input_dim:
        raise CheckpointError(
            f"embeddings of {input_dim} columns do not fit the head; expected {checkpoint.input_dim} "
            f"(pool mode {checkpoint.pool_mode}), found {input_dim}; use the head trained on these embeddings"
        )
    if tuple(labels) != checkpoint.labels:
        raise CheckpointError(
            f"the head's labels differ; expected {', '.join(checkpoint.labels)}; found {', '.join(labels)}; "
            "use labels of the same names in the same order"
        )


def check_backbone(checkpoint: HeadCheckpoint, identity: BackboneIdentity, resize: int | None) -> list[str]:
    """Warnings about applying a head to embeddings of this backbone at `resize` pixels (None: unknown).

    Raises:
        CheckpointError: other weights, preprocessing, resize or input size (lists expected and found), or a head of
            another implementation.
    """
    if checkpoint.is_foreign:
        raise CheckpointError(
            "this head checkpoint was written by another implementation and trained on slices that lay transposed and "
            "were resized without antialiasing, so its probabilities would be wrong here; retraining on cached "
            "features takes minutes: python script/train_meddinov3_rsna.py --series-csv YOUR.csv"
        )
    faults = _input_dim_faults(checkpoint, identity.embed_dim)
    if None not in (checkpoint.resize, resize) and checkpoint.resize != resize:
        faults.append(f"resize: expected {checkpoint.resize}, found {resize}")
    found = asdict(identity)
    if checkpoint.backbone is not None:
        faults += _differences(checkpoint.backbone, found, _MUST_MATCH)
    if faults:
        raise CheckpointError(
            f"the head was not trained on embeddings of backbone {identity.name}: {'; '.join(faults)}; "
            "use the backbone and --resize of its training, or train a head on this backbone"
        )
    unknown = ["the --resize of these embeddings is unknown"] if resize is None else []
    return [*_warnings(checkpoint, found), *unknown]


def identity_from_document(document: Mapping[str, Any]) -> BackboneIdentity:
    """The `BackboneIdentity` whose `asdict` this is.

    Raises:
        ValueError: keys are missing; names them.
    """
    preprocessing = document.get("preprocessing")
    if not isinstance(preprocessing, Mapping):
        raise ValueError("the backbone identity lacks preprocessing")
    own = _pick(document, BackboneIdentity)
    own["preprocessing"] = Preprocessing(**_pick(preprocessing, Preprocessing))
    return BackboneIdentity(**own)


def _pick(document: Mapping[str, Any], kind: type[BackboneIdentity] | type[Preprocessing]) -> dict[str, Any]:
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in document]
    if missing:
        raise ValueError(f"the backbone identity lacks {', '.join(missing)}")
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
        warnings.append("the checkpoint does not name the backbone it was trained on; check that this one is right")
    else:
        both_int8 = checkpoint.backbone["precision"] == found["precision"] == "int8"
        names = (*_SHOULD_MATCH, "calibration_sha256") if both_int8 else _SHOULD_MATCH
        different = _differences(checkpoint.backbone, found, names)
        warnings += [f"the head was trained on embeddings of another {text}" for text in different]
    if checkpoint.resize is None:
        warnings.append("the checkpoint does not state the --resize of its training")
    if checkpoint.pool_mode == "unknown":
        warnings.append("the checkpoint does not state how its training embeddings were pooled")
    return warnings
