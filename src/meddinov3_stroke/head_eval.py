"""Stage `test-head`: a head, embeddings and labels in `.npy` files -> loss, AUROC, threshold metrics, probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke import config
from meddinov3_stroke import metrics as measures
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.heads import (
    EmbeddingOrigin,
    HeadCheckpoint,
    check_backbone,
    check_head_data,
    load_checkpoint,
    load_head_data,
    predict_logits,
    read_origin,
)
from meddinov3_stroke.labels import LabelPolicy, label_names
from meddinov3_stroke.options import DeviceName
from meddinov3_stroke.report.training import about_backbone, metrics_table
from meddinov3_stroke.system.atomic import require_writable, write_json, write_npy
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command
from meddinov3_stroke.system.devices import resolve_device
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.provenance import ending, provenance
from meddinov3_stroke.types import LABELS, HeadData

LOGGER = logging.getLogger("meddinov3_stroke")

__all__ = ["Args", "evaluate_head", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Test a trained head on embeddings and labels it has not seen."""

    embeddings: Path
    """.npy, float [rows, columns]: test embeddings."""
    labels: Path
    """.npy, 0 or 1 [rows, labels]: their labels."""
    checkpoint: Path
    """best.pt or last.pt of a head."""
    output_json: Path = config.METRICS_JSON
    """Output file for the metrics."""
    output_probs: Path = config.PROBS_NPY
    """Output file for the probabilities, float64 [rows, labels]."""
    threshold: Annotated[float, Range(0, 1)] = config.EVAL_THRESHOLD
    """Probability at or above which a row counts as positive in metrics_at_threshold, 0 to 1."""
    label_policy: LabelPolicy = "strict"
    """If any differs from the OR of the five subtypes: stop, set it to the OR, or keep it."""
    batch_size: Annotated[int, Range(1)] = HeadConfig.batch_size
    """Accepted for older scripts; has no effect on the results."""
    device: DeviceName = config.DEVICE
    """Accepted for older scripts; a head is always applied on the CPU."""


def run(args: Args) -> dict[str, Any]:
    """The metrics, as written to `args.output_json`."""
    if args.device not in ("auto", "cpu"):
        resolve_device(args.device)  # a wrong or missing device is still an error
        LOGGER.info("--device %s: a head is applied on the CPU", args.device)
    inputs = (args.checkpoint, args.embeddings, args.labels)
    require_writable(files=[args.output_json, args.output_probs], inputs=inputs)
    checkpoint = load_checkpoint(args.checkpoint)
    data, warnings = load_head_data(args.embeddings, args.labels, args.label_policy)
    origin = read_origin(args.embeddings, data.embeddings.shape[1])
    warnings += [*origin.warnings, *_check_origin(checkpoint, origin)]
    metrics, probabilities = evaluate_head(checkpoint, data, threshold=args.threshold)
    document = {**provenance(), **_about_inputs(args, checkpoint), **metrics}
    document["warnings"] = [*warnings, *metrics["warnings"]]
    for warning in document["warnings"]:
        LOGGER.warning("%s", warning)
    write_npy(args.output_probs, probabilities)
    write_json(args.output_json, document)
    print(metrics_table(document), f"wrote {args.output_json}", f"wrote {args.output_probs}", sep="\n")
    macro = "undefined" if document["macro_auroc"] is None else f"{document['macro_auroc']:.3f}"
    print(ending(f"macro AUROC {macro}", args.output_json, len(document["warnings"])))
    return document


def evaluate_head(
    checkpoint: HeadCheckpoint,
    data: HeadData,
    groups: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    threshold: float = config.EVAL_THRESHOLD,
) -> tuple[dict[str, Any], Float64[np.ndarray, "n label"]]:
    """Metrics and probabilities of a head on rows it has not seen.

    `groups` names the patient of each row and adds `macro_auroc_interval`. `labels` names the columns; by default six
    columns are the six labels, and any other number takes the checkpoint's names. The loss weights positives as in
    training.

    Raises UsageError (a threshold outside [0, 1]), CheckpointError (embedding size or labels differ from the
    checkpoint's; lists expected and found) or DatasetError (NaN, empty, or counts that differ).
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold {threshold:g}: expected a probability from 0 to 1")
    check_head_data(data, "test")
    names = tuple(labels) if labels is not None else _column_names(checkpoint, data.labels.shape[1])
    output = predict_logits(checkpoint, data.embeddings, names)
    truth, probabilities = data.labels, output.probabilities
    report = measures.auroc_report(truth, probabilities, names)
    thresholds = {name: checkpoint.thresholds[name] for name in names}  # in the order of the columns
    weights = np.array([checkpoint.pos_weight[name] for name in names])
    own = {name: value.value for name, value in thresholds.items()}
    metrics: dict[str, Any] = {
        "loss": measures.binary_cross_entropy(truth, output.logits, weights),
        "loss_name": "binary cross-entropy, positives weighted as in training (pos_weight)",
        "pos_weight": dict(checkpoint.pos_weight),
        "macro_auroc": report.macro,
        "n_classes_in_macro": report.n_classes,
        "per_class_auroc": report.per_class,
        "per_class_auroc_reasons": report.reasons,
        "n_samples": len(data.labels),
        "n_positive": dict(zip(names, data.labels.sum(axis=0, dtype=int).tolist(), strict=True)),
        "operating_points": measures.operating_points(truth, probabilities, thresholds),
        "metrics_at_threshold": measures.threshold_report(truth, probabilities, threshold, names),
        "metrics_at_checkpoint_thresholds": measures.threshold_report(truth, probabilities, own, names),
        "warnings": [f"AUROC of {name} is undefined (null): {reason}" for name, reason in report.reasons.items()],
    }
    if (rule := checkpoint.distribution) is not None:
        distances = rule.distances(data.embeddings)
        n_outside = int((distances > rule.limit).sum())
        median = round(float(np.median(distances)), 4)
        metrics["distribution"] = {"n_outside": n_outside, "median_distance": median, **rule.figures()}
        if n_outside:
            metrics["warnings"].append(f"{n_outside} of {len(truth)} rows are unlike the CTs the head was trained on")
    if groups is not None:
        interval = measures.bootstrap_macro_auroc(truth, probabilities, groups, seed=checkpoint.seed)
        metrics["macro_auroc_interval"] = asdict(interval)
    return metrics, probabilities


def _column_names(checkpoint: HeadCheckpoint, n_labels: int) -> tuple[str, ...]:
    is_unnamed = n_labels != len(LABELS) and n_labels == len(checkpoint.labels)
    return checkpoint.labels if is_unnamed else label_names(n_labels)


def _check_origin(checkpoint: HeadCheckpoint, origin: EmbeddingOrigin) -> list[str]:
    if checkpoint.is_foreign:
        return ["the checkpoint was written by another implementation; its embeddings must come from it too"]
    if origin.identity is None:
        return []
    warnings = check_backbone(checkpoint, origin.identity, origin.resize)
    if "unknown" not in (checkpoint.pool_mode, origin.pool_mode) and checkpoint.pool_mode != origin.pool_mode:
        warnings.append(
            f"the head was trained on embeddings pooled by {checkpoint.pool_mode}, these are {origin.pool_mode}"
        )
    return warnings


def _about_inputs(args: Args, checkpoint: HeadCheckpoint) -> dict[str, Any]:
    return {
        "inputs": {
            name: {"path": str(path), "sha256": sha256_of_file(path)}
            for name, path in (("embeddings", args.embeddings), ("labels", args.labels))
        },
        "checkpoint": str(args.checkpoint),
        "head_sha256": checkpoint.sha256,
        "pool_mode": checkpoint.pool_mode,
        "resize": checkpoint.resize,
        **about_backbone(checkpoint.backbone),
        "seeds": {"head_training": checkpoint.seed},
        "device": "cpu",
    }


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
