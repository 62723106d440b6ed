"""Applying a head: its logits for rows of embeddings, and whether it belongs to a backbone. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding, OutOfScope
from meddinov3_stroke.heads.architectures import ARCHITECTURES
from meddinov3_stroke.heads.checkpoint import POOL_MODES, HeadCheckpoint
from meddinov3_stroke.system.command import command_of
from meddinov3_stroke.types import BackboneIdentity, HeadOutput

LEAST_ROWS = 100
"""Training rows below which a head gets no rule for the distance to them."""

NO_HEAD: Mapping[str, Any] = {"in_distribution": None, "reason": "no head was applied"}

ROWS_PER_BATCH = 16384  # rows sent through the head at a time; bounds memory


def predict_logits(
    checkpoint: HeadCheckpoint, embeddings: Float32[np.ndarray, "n dim"], labels: Sequence[str] | None = None
) -> HeadOutput:
    """Logits [n, label] of the rows, computed in numpy.

    Raises CheckpointError where the embedding size or the labels differ from the checkpoint's (lists expected and
    found), NonFiniteEmbedding where a row gives NaN or infinity.
    """
    if embeddings.shape[1] != checkpoint.input_dim:
        raise CheckpointError(
            f"embeddings of {embeddings.shape[1]} columns do not fit the head; expected {checkpoint.input_dim} "
            f"(pool mode {checkpoint.pool_mode}), found {embeddings.shape[1]}; use the head trained on these embeddings"
        )
    if labels is not None and tuple(labels) != checkpoint.labels:
        raise CheckpointError(
            f"the head's labels differ; expected {', '.join(checkpoint.labels)}; found {', '.join(labels)}; "
            "use labels of the same names in the same order"
        )
    forward = ARCHITECTURES[checkpoint.arch].logits
    starts = range(0, max(len(embeddings), 1), ROWS_PER_BATCH)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        parts = [forward(checkpoint.state_dict, embeddings[start : start + ROWS_PER_BATCH]) for start in starts]
    logits = np.concatenate(parts)
    bad = np.nonzero(~np.isfinite(logits).all(axis=1))[0]
    if bad.size:
        raise NonFiniteEmbedding(f"the head gives NaN or infinity for {bad.size} of {len(logits)} rows, first {bad[0]}")
    return HeadOutput(logits, checkpoint.labels)


def judge_distance(checkpoint: HeadCheckpoint, rows: Float32[np.ndarray, "n dim"]) -> dict[str, Any]:
    """The verdict on a case whose rows the head takes, with its figures; of several rows, the median distance counts.

    `in_distribution` is None, with the reason, for a head without a rule.
    """
    if (rule := checkpoint.distribution) is None:
        reason = f"the head carries no rule: trained on fewer than {LEAST_ROWS} rows, or by an earlier version"
        return {"in_distribution": None, "reason": reason}
    distance = float(np.median(rule.distances(rows)))
    return {"in_distribution": distance <= rule.limit, "distance": round(distance, 4), **rule.figures()}


def require_in_distribution(verdict: Mapping[str, Any], where: object) -> None:
    """Raise `OutOfScope` for a verdict of out of distribution."""
    for message in distribution_warnings(verdict):
        error = OutOfScope(f"{where}: {message}; use a head trained on such CT, or pass --force to compute anyway")
        error.rules = ("distribution",)
        raise error


def distribution_warnings(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The warning about a case out of distribution; none otherwise."""
    if verdict["in_distribution"] is not False:
        return ()
    return (
        f"unlike the CTs that the head was trained on: distance {verdict['distance']:.2f} from the training set, "
        f"expected at most {verdict['limit']:.2f}",
    )


def check_backbone(checkpoint: HeadCheckpoint, identity: BackboneIdentity, resize: int | None) -> list[str]:
    """Warnings about applying a head to embeddings of this backbone at `resize` pixels (None: unknown).

    Raises CheckpointError for other weights, preprocessing, resize or input size (lists expected and found), and for a
    head of another implementation.
    """
    if checkpoint.is_foreign:
        raise CheckpointError(
            "this head checkpoint was written by another implementation and trained on slices that lay transposed and "
            "were resized without antialiasing, so its probabilities would be wrong here; retraining on cached "
            f"features takes minutes: {command_of('train-rsna')} --series-csv YOUR.csv"
        )
    faults, mode = [], checkpoint.pool_mode
    fitting = [factor * identity.embed_dim for factor in POOL_MODES[mode]]
    if checkpoint.input_dim not in fitting:
        found = " or ".join(map(str, fitting))
        faults.append(f"input_dim: expected {checkpoint.input_dim}, found {found} (pool mode {mode})")
    if None not in (checkpoint.resize, resize) and checkpoint.resize != resize:
        faults.append(f"resize: expected {checkpoint.resize}, found {resize}")
    warnings = ["the checkpoint does not name the backbone it was trained on; check that this one is right"]
    if checkpoint.backbone is not None:
        unusable, slight = backbone_differences(checkpoint.backbone, asdict(identity))
        faults += unusable
        warnings = [f"the head was trained on embeddings of another {text}" for text in slight]
    if faults:
        raise CheckpointError(
            f"the head was not trained on embeddings of backbone {identity.name}: {'; '.join(faults)}; "
            f"compute embeddings with {_flags_of_training(checkpoint)}, or train a head on this backbone"
        )
    unstated = {
        "the checkpoint does not state the --resize of its training": checkpoint.resize is None,
        "the checkpoint does not state how its training embeddings were pooled": mode == "unknown",
        "the --resize of these embeddings is unknown": resize is None,
    }
    return warnings + [text for text, holds in unstated.items() if holds]


def _flags_of_training(checkpoint: HeadCheckpoint) -> str:
    """The flags that give the backbone and the size a head was trained on, as far as it states them."""
    resize = "the --resize of its training" if checkpoint.resize is None else f"--resize {checkpoint.resize}"
    if (trained := checkpoint.backbone) is None:
        return f"the --backbone and {resize}"
    name, digest = trained["name"], trained["weights_sha256"][:12]
    return f"--backbone {name if name == 'demo' else f'PATH/{name}'} (weights {digest}) and {resize}"


def backbone_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences between two backbone identities: those that make embeddings incomparable, and slight ones."""
    both_int8 = expected["precision"] == found["precision"] == "int8"
    groups = (
        ("weights_sha256", "preprocessing", "patch_size", "rope_dtype"),
        ("engine", "precision", "calibration_sha256") if both_int8 else ("engine", "precision"),
    )
    unusable, slight = (
        [f"{k}: expected {expected.get(k)}, found {found.get(k)}" for k in names if expected.get(k) != found.get(k)]
        for names in groups
    )
    return unusable, slight
