"""Stage `test-head`: a head, embeddings and labels in `.npy` files -> loss, AUROC, threshold metrics, probabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke import config
from meddinov3_stroke import metrics as measures
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.heads import (
    EmbeddingOrigin,
    HeadCheckpoint,
    TrainingDistribution,
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
from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json, write_npy
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command
from meddinov3_stroke.system.devices import resolve_device
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.provenance import ending, provenance
from meddinov3_stroke.types import LABELS, HeadData, HeadOutput, Threshold

if TYPE_CHECKING:
    from meddinov3_stroke.data.predictions import PredictionTable
    from meddinov3_stroke.metrics import Patients

LOGGER = logging.getLogger("meddinov3_stroke")

NO_POSITIONS = (
    "the embeddings are of slices, whose AUROC a rule of position alone may reach; pass --table with slice_index and "
    "n_slices for the position-matched AUROC"
)

__all__ = ["Args", "evaluate_head", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ConsoleOptions):
    """What is reported of rows with labels and scores; test-head and evaluate share it."""

    subgroups: tuple[str, ...] = ()
    """Columns of the table by whose values the figures are repeated; more than 12 numbers are cut into quarters."""
    prevalence: Annotated[float, Range(0, 1)] | None = None
    """Also report PPV and NPV at this prevalence, above 0 and below 1."""
    resamples: Annotated[int, Range(1)] = config.RESAMPLES
    """Resamples of patients behind each interval."""
    seed: Annotated[int, Range(0)] = config.SEED
    """Seed of the resamples."""
    errors: Annotated[int, Range(0)] = 5
    """Most confident false positives and false negatives of each label to list and, where the table names their
    volumes, to draw (test-head: in <metrics>_errors.png; evaluate: in errors.png); 0 for none."""
    allow_seen: bool = False
    """Evaluate although the head was trained on some of the rows, pixels or patients, with a warning; for cohorts that
    use the same patient identifiers for other patients, or hold blank slices."""
    exposure_record: Path | None = None
    """File that records which head was evaluated on which test set, and when (default: exposure.jsonl in the user's
    configuration folder); share one file in a group."""


@dataclass(frozen=True, kw_only=True)
class Args(EvaluationOptions):
    """Test a trained head on embeddings and labels it has not seen."""

    embeddings: Path
    """.npy, float [rows, columns]: test embeddings."""
    labels: Path
    """.npy, 0 or 1 [rows, labels]: their labels."""
    checkpoint: Path
    """best.pt or last.pt of a head."""
    table: Path | None = None
    """CSV that names the patient of each row (column patient_id), the subgroups, and of slices slice_index and
    n_slices: a row for each row of the embeddings, or the table they were extracted from (default: none; every row
    counts as its own patient)."""
    val_embeddings: Path | None = None
    """.npy: validation embeddings, on which operating points are fixed (Youden; sensitivity 95 % and 98 %)."""
    val_labels: Path | None = None
    """.npy: their labels."""
    output_json: Path = config.METRICS_JSON
    """Output file for the metrics; a picture of them is written beside it, as .png."""
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
    from meddinov3_stroke.data.exposure import digests_of, record_exposure
    from meddinov3_stroke.report.errors import errors_png, replace_picture
    from meddinov3_stroke.report.evaluation import evaluation_png, evaluation_table, exposure_text

    if args.device not in ("auto", "cpu"):
        resolve_device(args.device)  # a wrong or missing device is still an error
        LOGGER.info("--device %s: a head is applied on the CPU", args.device)
    given = (args.checkpoint, args.embeddings, args.labels, args.table, args.val_embeddings, args.val_labels)
    picture = args.output_json.with_suffix(".png")
    inputs = [path for path in given if path is not None]
    wrong = picture.with_name(f"{picture.stem}_errors.png")
    require_writable(files=[args.output_json, args.output_probs, picture, wrong], inputs=inputs)
    checkpoint = load_checkpoint(args.checkpoint)
    data, warnings = load_head_data(args.embeddings, args.labels, args.label_policy)
    origin = read_origin(args.embeddings, data.embeddings.shape[1])
    warnings += [*origin.warnings, *_check_origin(checkpoint, origin)]
    val, table, more = _validation_and_table(args, len(data.labels))
    warnings += more
    subgroups = {} if table is None else {column: table.column(column) for column in args.subgroups}
    metrics, probabilities = evaluate_head(
        checkpoint,
        data,
        None if table is None else table.groups,
        threshold=args.threshold,
        val=val,
        options=args,
        subgroups=subgroups,
    )
    if table is not None and table.slice_indices is not None:
        metrics["evaluation"]["slices"] = _slices(args, data, probabilities, table, list(metrics["per_class_auroc"]))
    elif origin.pool_mode == "slice":
        warnings.append(NO_POSITIONS)
    document = {**provenance(), **_about_inputs(args, checkpoint), **metrics}
    groups = None if table is None else table.groups
    drawn, more = (None, []) if table is None else errors_png(metrics["confident_errors"], table)
    warnings += more
    test = digests_of(groups, None, data.embeddings)
    document["exposure"] = record_exposure(args.exposure_record, test, checkpoint.sha256, "test-head")
    document["warnings"] = [*warnings, *metrics["warnings"]]
    for warning in document["warnings"]:
        LOGGER.warning("%s", warning)
    write_npy(args.output_probs, probabilities)
    write_json(args.output_json, document)
    write_bytes(picture, evaluation_png({**metrics["evaluation"], "warnings": document["warnings"]}))
    errors = replace_picture(wrong, drawn)
    files = [f"wrote {path}" for path in (args.output_json, args.output_probs, picture, *errors)]
    seen = exposure_text(document["exposure"])
    print(metrics_table(document), evaluation_table(metrics["evaluation"]), seen, *files, sep="\n")
    macro = "undefined" if document["macro_auroc"] is None else f"{document['macro_auroc']:.3f}"
    print(ending(f"macro AUROC {macro}", args.output_json, len(document["warnings"])))
    return document


def evaluate_head(
    checkpoint: HeadCheckpoint,
    data: HeadData,
    groups: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    threshold: float = config.EVAL_THRESHOLD,
    *,
    val: HeadData | None = None,
    options: EvaluationOptions | None = None,
    subgroups: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], Float64[np.ndarray, "n label"]]:
    """Metrics and probabilities of a head on rows it has not seen.

    `groups` names the patient of each row and adds `macro_auroc_interval`; without it every row is its own patient, and
    a warning says so. `val` fixes the operating points of `evaluation`, which has every figure with its interval,
    beside the checkpoint's thresholds. `subgroups` is {column: value of each row}. `labels` names the columns; by
    default six columns are the six labels, and any other number takes the checkpoint's names. The loss weights
    positives as in training.

    Raises UsageError (a threshold outside [0, 1]), CheckpointError (embedding size or labels differ from the
    checkpoint's; lists expected and found) or DatasetError (NaN, empty, counts that differ, or rows that the head was
    trained on).
    """
    options = options or EvaluationOptions(seed=checkpoint.seed)
    leaks = _check(checkpoint, data, groups, threshold, options.allow_seen)
    names = tuple(labels) if labels is not None else _column_names(checkpoint, data.labels.shape[1])
    output = predict_logits(checkpoint, data.embeddings, names)
    truth, probabilities = data.labels, output.probabilities
    report = measures.auroc_report(truth, probabilities, names)
    thresholds = {name: checkpoint.thresholds[name] for name in names}  # in the order of the columns
    weights = np.array([checkpoint.pos_weight[name] for name in names])
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
        "metrics_at_checkpoint_thresholds": measures.threshold_report(
            truth, probabilities, {name: value.value for name, value in thresholds.items()}, names
        ),
        "warnings": [f"AUROC of {name} is undefined (null): {reason}" for name, reason in report.reasons.items()],
    }
    if (rule := checkpoint.distribution) is not None:
        metrics["distribution"] = _distances(rule, data)
        if n_outside := metrics["distribution"]["n_outside"]:
            metrics["warnings"].append(f"{n_outside} of {len(truth)} rows are unlike the CTs the head was trained on")
    patients, unknown = measures.patients_of(groups, len(truth), options.resamples, options.seed)
    metrics["warnings"] += [*unknown, *leaks]
    points = {"checkpoint": thresholds} | ({} if val is None else _points_on(val, checkpoint, names))
    metrics["confident_errors"] = measures.confident_errors(truth, probabilities, names, thresholds, options.errors)
    metrics["evaluation"] = _evaluation(checkpoint, truth, output, patients, points, options, subgroups)
    if groups is not None:
        metrics["macro_auroc_interval"] = metrics["evaluation"]["macro"]["auroc"]["interval"]
    return metrics, probabilities


def _evaluation(
    checkpoint: HeadCheckpoint,
    truth: np.ndarray,
    output: HeadOutput,
    patients: Patients,
    points: Mapping[str, Mapping[str, Threshold]],
    options: EvaluationOptions,
    subgroups: Mapping[str, Sequence[str]] | None,
) -> dict[str, Any]:
    names, prevalence = output.labels, options.prevalence
    rows = truth, output.probabilities, names, patients
    document = measures.evaluate(*rows, points, prevalence=prevalence, subgroups=subgroups)
    if (known := checkpoint.calibration) is not None:
        columns = {name: known[name].apply(output.logits[:, k]) for k, name in enumerate(names)}
        fitted = {name: (column, known[name].about()) for name, column in columns.items()}
        own = {k: {name: one[name] for name in names} for k, one in (checkpoint.operating_points or {}).items()}
        document["calibrated"] = measures.evaluate_calibrated(*rows, fitted, own, prevalence)
    return document


def _check(
    checkpoint: HeadCheckpoint, data: HeadData, groups: Sequence[str] | None, threshold: float, allow_seen: bool
) -> list[str]:
    from meddinov3_stroke.data.exposure import digests_of, require_unseen

    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold {threshold:g}: expected a probability from 0 to 1")
    check_head_data(data, "test")
    test = digests_of(groups or data.groups, data.pixels, data.embeddings)
    return require_unseen(checkpoint, test, allow_seen=allow_seen)


def _distances(rule: TrainingDistribution, data: HeadData) -> dict[str, Any]:
    distances = rule.distances(data.embeddings)
    n_outside, median = int((distances > rule.limit).sum()), round(float(np.median(distances)), 4)
    return {"n_outside": n_outside, "median_distance": median, **rule.figures()}


def _points_on(val: HeadData, checkpoint: HeadCheckpoint, names: Sequence[str]) -> dict[str, dict[str, Threshold]]:
    check_head_data(val, "validation")
    held = predict_logits(checkpoint, val.embeddings, tuple(names)).probabilities
    return measures.validation_thresholds(val.labels, held, names)


def _validation_and_table(args: Args, n_rows: int) -> tuple[HeadData | None, PredictionTable | None, list[str]]:
    # the optional inputs, and warnings about them
    from meddinov3_stroke.data.predictions import read_row_table

    val, table = None, None
    warnings: list[str] = []
    if (args.val_embeddings is None) != (args.val_labels is None):
        raise UsageError("--val-embeddings and --val-labels belong together; give both or neither")
    if args.subgroups and args.table is None:
        raise UsageError("--subgroups names columns of a table; give it with --table")
    if args.val_embeddings is not None and args.val_labels is not None:
        val, warnings = load_head_data(args.val_embeddings, args.val_labels, args.label_policy)
    if args.table is not None:
        table = read_row_table(args.table, args.embeddings, n_rows)
        table = replace(table, datasets_dir=config.load_settings().datasets_dir)
        warnings += table.warnings
    return val, table, warnings


def _slices(
    args: Args,
    data: HeadData,
    probabilities: Float64[np.ndarray, "n label"],
    table: PredictionTable,
    names: Sequence[str],
) -> dict[str, Any]:
    patients, _ = measures.patients_of(table.groups, len(data.labels), args.resamples, args.seed)
    return measures.evaluate_slices(data.labels, probabilities, names, patients, table.heights)


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
