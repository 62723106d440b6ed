"""Does a head belong to this backbone?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.heads.checkpoint import INPUTS_PER_DIM, HeadCheckpoint
from meddinov3_stroke.types import BackboneIdentity, Preprocessing

REFUSED_FIELDS = ("weights_sha256", "preprocessing", "patch_size", "rope_dtype")
"""Fields of the backbone's identity that must be equal; other weights or preprocessing are refused (INTERFACES 1b)."""

WARNED_FIELDS = ("engine", "precision")
"""Fields whose difference changes the embeddings little: a warning (INTERFACES 1b)."""


def check_backbone(checkpoint: HeadCheckpoint, identity: BackboneIdentity, resize: int | None) -> list[str]:
    """Warnings about a head that is used with a backbone at `resize` pixels (None: unknown); empty where all agrees.

    Raises:
        CheckpointError: other weights, preprocessing, resize or input size; lists expected and found.
    """
    faults = [*_input_dim_faults(checkpoint, identity.embed_dim)]
    if None not in (checkpoint.resize, resize) and checkpoint.resize != resize:
        faults.append(f"resize: expected {checkpoint.resize}, found {resize}")
    found = asdict(identity)
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
    own = _pick(document, BackboneIdentity)
    own["preprocessing"] = Preprocessing(**_pick(preprocessing, Preprocessing))
    return BackboneIdentity(**own)


def _pick(document: Mapping[str, Any], kind: type[BackboneIdentity] | type[Preprocessing]) -> dict[str, Any]:
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
        warnings.append("the head does not say which backbone it was trained on; that this one fits is not known")
    else:
        both_int8 = checkpoint.backbone["precision"] == found["precision"] == "int8"
        names = (*WARNED_FIELDS, "calibration_sha256") if both_int8 else WARNED_FIELDS
        different = _differences(checkpoint.backbone, found, names)
        warnings += [f"the head's training embeddings came from another {text}" for text in different]
    if checkpoint.resize is None:
        warnings.append("the head does not say at which --resize it was trained")
    if checkpoint.pool_mode == "unknown":
        warnings.append("the head does not say how its training embeddings were pooled")
    return warnings
