"""Stage `train-head`: embeddings and labels in `.npy` files -> a head selected on validation, with thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from meddinov3_stroke import config
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import NonFiniteLoss, SplitError, UsageError
from meddinov3_stroke.heads import (
    HeadCheckpoint,
    HeadContext,
    LabelCalibration,
    check_head_data,
    check_train_and_val,
    load_head_data,
    read_origin,
    same_origin,
    save_checkpoint,
)
from meddinov3_stroke.labels import LabelPolicy, label_names
from meddinov3_stroke.metrics import (
    LEAST_PATIENTS,
    N_REFITS,
    auroc_report,
    calibrate,
    patients_of,
    promised_rates,
    undefined_reason,
    validation_thresholds,
    youden_thresholds,
)
from meddinov3_stroke.options import DeviceName, OutputDir
from meddinov3_stroke.report.training import about_backbone, about_rows, training_table
from meddinov3_stroke.system.atomic import require_writable, write_bytes, write_json
from meddinov3_stroke.system.command import ConsoleOptions, log_warnings, run_command
from meddinov3_stroke.system.devices import require_torch, resolve_device, use_available_cpus
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import Stopwatch, memory_statistics, provenance
from meddinov3_stroke.types import HeadData, HeadOutput, Threshold

if TYPE_CHECKING:  # `heads.training` needs torch, and is imported where a head is trained
    from meddinov3_stroke.heads.training import EpochResult

SUMMARY_NAME = "train_summary.json"
CURVE_NAME = "training_curve.png"
NO_VALIDATION = (
    "no validation arrays: the last epoch is kept as best.pt, every threshold is 0.5, and nothing is calibrated"
)

UNKNOWN_PATIENTS = (
    "the patients of the validation rows are unknown: the calibration takes every row as a patient of its own; name "
    "the patients with --val-table"
)

__all__ = ["Args", "HeadConfig", "HeadContext", "HeadData", "main", "run", "train_head"]


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Train a light multi-label head on frozen embeddings and keep the epoch that validates best."""

    train_embeddings: Path
    """.npy, float [rows, columns]: training embeddings."""
    train_labels: Path
    """.npy, 0 or 1 [rows, labels]: their labels; six columns are any and the five subtypes."""
    val_embeddings: Path | None = None
    """.npy: validation embeddings, which select the epoch and the thresholds (default: none; the last epoch is kept and
    thresholds are 0.5)."""
    val_labels: Path | None = None
    """.npy: their labels."""
    train_table: Path | None = None
    """CSV with the patient of each training row (column patient_id): a row for each, or the table they were extracted
    from. Their digests go into the checkpoint, so that evaluations can refuse patients seen in training."""
    val_table: Path | None = None
    """The same for validation, whose patients the calibration is fitted and resampled by (default: every row counts as
    its own patient)."""
    head: Annotated[HeadConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=HeadConfig)
    label_policy: LabelPolicy = "strict"
    """If any differs from the OR of the five subtypes: stop, set it to the OR, or keep it."""
    device: DeviceName = field(default_factory=config.default_device)
    """Where to train; a CPU is enough for a head."""
    output_dir: OutputDir = config.HEAD_DIR
    """Folder for best.pt, last.pt, train_summary.json and training_curve.png."""


def run(args: Args) -> dict[str, Any]:
    """The summary of the training, as written to `train_summary.json`."""
    require_torch()
    from meddinov3_stroke.data.exposure import read_groups
    from meddinov3_stroke.heads.training import check_config

    check_config(args.head)
    if (args.val_embeddings is None) != (args.val_labels is None):
        raise UsageError("--val-embeddings and --val-labels belong together; give both or neither")
    require_writable(args.output_dir)
    device = str(resolve_device(args.device))
    use_available_cpus()
    train, warnings = load_head_data(args.train_embeddings, args.train_labels, args.label_policy)
    origin = read_origin(args.train_embeddings, train.embeddings.shape[1])
    warnings, val = [*origin.warnings, *warnings], None
    if args.val_embeddings is not None and args.val_labels is not None:
        val, val_warnings = load_head_data(args.val_embeddings, args.val_labels, args.label_policy)
        val_origin = read_origin(args.val_embeddings, val.embeddings.shape[1])
        warnings += [*val_origin.warnings, *same_origin(origin, val_origin), *val_warnings]
    if args.train_table is not None:
        train = replace(train, groups=read_groups(args.train_table, args.train_embeddings, len(train.labels)))
    if args.val_table is not None:
        if val is None or args.val_embeddings is None:
            raise UsageError("--val-table needs --val-embeddings and --val-labels")
        val = replace(val, groups=read_groups(args.val_table, args.val_embeddings, len(val.labels)))
        if shared := set(train.groups or ()) & set(val.groups or ()):
            raise SplitError(
                f"{args.val_table}: {len(shared)} patients are in {args.train_table} too (first {min(shared)}); "
                "validate on other patients, or calibration and thresholds are too good"
            )
    arrays = ("train_embeddings", "train_labels", "val_embeddings", "val_labels")
    context = HeadContext(
        pool_mode=origin.pool_mode,
        resize=origin.resize,
        backbone=asdict(origin.identity) if origin.identity else None,
        label_names=label_names(train.labels.shape[1]),
        sources={name: str(path) for name in arrays if (path := getattr(args, name)) is not None},
        warnings=tuple(warnings),
    )
    summary = train_head(train, val, args.head, context, args.output_dir, args.show_progress, device)
    print(training_table(summary))
    return summary


def train_head(
    train: HeadData,
    val: HeadData | None,
    head: HeadConfig,
    context: HeadContext,
    output_dir: Path,
    progress: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """The summary of a training that wrote best.pt, last.pt, train_summary.json and training_curve.png.

    The best epoch has the highest validation macro AUROC, then the lowest validation loss; if no label has an AUROC on
    validation, the lowest loss; without validation it is the last. Checkpoints are written after each epoch.

    Raises UsageError (a hyper-parameter out of range), DatasetError (inconsistent arrays; a label without positives or
    negatives in training), NonFiniteLoss (earlier checkpoints are kept) or KeyboardInterrupt (after SIGINT, once the
    epoch is finished and everything is saved).
    """
    from meddinov3_stroke.heads.training import check_config, train_epochs

    check_config(head)
    check_head_data(train, "training")
    if val is not None:
        check_head_data(val, "validation")
    warnings = [*context.warnings, *check_train_and_val(train, val, context.label_names)]
    warnings += [NO_VALIDATION] if val is None else []
    log_warnings(warnings)
    training = _Training(train, val, head, context, Path(output_dir), device)
    epochs = train_epochs(train, val, head, training.pos_weight, device)
    with finish_on_interrupt("epoch") as interruption:
        try:
            with progress_bar("training the head", head.epochs, "epochs", progress) as advance:
                for result in epochs:
                    training.keep(result)
                    advance()
                    if interruption.requested or training.best.is_stale(head.patience):
                        break
        except NonFiniteLoss:
            training.write([*warnings, *training.calibrate()], "non-finite loss")
            raise
        reason = "all epochs" if len(training.history) == head.epochs else "patience"
        warnings += training.calibrate()
        summary = training.write(warnings, "interrupted" if interruption.requested else reason)
        interruption.check()
    return summary


class _Training:
    """A training in progress: history, best epoch and the checkpoints written so far."""

    def __init__(
        self,
        train: HeadData,
        val: HeadData | None,
        head: HeadConfig,
        context: HeadContext,
        output_dir: Path,
        device: str,
    ) -> None:
        from meddinov3_stroke.data.exposure import digests_of_data
        from meddinov3_stroke.heads.training import BestEpoch, fit_distribution, positive_weights

        self.train, self.val, self.head, self.context = train, val, head, context
        self.output_dir, self.device, self.watch = output_dir, device, Stopwatch()
        self.pos_weight = positive_weights(train.labels, config.POS_WEIGHT_CAP)
        self.distribution = fit_distribution(train.embeddings)
        parts = {"training": train, **({} if val is None else {"validation": val})}
        self.seen = {name: digests_of_data(part) for name, part in parts.items()}
        self.history: list[dict[str, Any]] = []
        ranked = val is not None and any(undefined_reason(column) is None for column in val.labels.T)
        self.best = BestEpoch("last_epoch" if val is None else "val_macro_auroc" if ranked else "val_loss")
        self.checkpoints: dict[str, HeadCheckpoint] = {}
        self.val_logits: dict[str, np.ndarray | None] = {}
        self.sha256: dict[str, str] = {}

    def keep(self, result: EpochResult) -> None:
        """Evaluate an epoch on validation, record it, and write last.pt and, if it is the best so far, best.pt."""
        names = self.context.label_names
        row: dict[str, Any] = {"epoch": result.epoch, "train_loss": result.train_loss, "val_loss": result.val_loss}
        row |= {"val_macro_auroc": None, "val_per_class_auroc": dict.fromkeys(names)}
        thresholds = dict.fromkeys(names, Threshold(0.5, "default 0.5: no validation data"))
        if self.val is not None and result.val_logits is not None:
            probabilities = HeadOutput(result.val_logits, names).probabilities
            report = auroc_report(self.val.labels, probabilities, names)
            row |= {"val_macro_auroc": report.macro, "val_per_class_auroc": report.per_class}
            thresholds = youden_thresholds(self.val.labels, probabilities, names)
        self.history.append(row)
        checkpoint = self._checkpoint(result, row["val_macro_auroc"], thresholds)
        self._save("last", checkpoint, result.val_logits)
        if self.best.offer(result.epoch, row["val_macro_auroc"], result.val_loss):
            self._save("best", checkpoint, result.val_logits)

    def _save(self, name: str, checkpoint: HeadCheckpoint, logits: np.ndarray | None) -> None:
        self.checkpoints[name], self.val_logits[name] = checkpoint, logits
        self.sha256[name] = save_checkpoint(self.output_dir / f"{name}.pt", checkpoint)

    def calibrate(self) -> list[str]:
        """Warnings, once both checkpoints are written again with calibration and operating points."""
        found: dict[int, tuple[dict[str, Any], list[str]]] = {}
        for name, checkpoint in self.checkpoints.items():
            logits, names = self.val_logits[name], self.context.label_names
            if checkpoint.epoch not in found:
                found[checkpoint.epoch] = calibration_of(self.val, logits, names, self.head.seed)
            self._save(name, replace(checkpoint, **found[checkpoint.epoch][0]), logits)
        warnings = [text for epoch in sorted(found)[:1] for text in found[epoch][1]]
        log_warnings(warnings)
        return warnings

    def _checkpoint(self, result: EpochResult, macro: float | None, thresholds: dict[str, Threshold]) -> HeadCheckpoint:
        names, context = self.context.label_names, self.context
        return HeadCheckpoint(
            state_dict={name: t.detach().cpu().numpy().copy() for name, t in result.head.state_dict().items()},
            labels=names,
            input_dim=self.train.embeddings.shape[1],
            arch=self.head.arch,
            params=self.head.params,
            pool_mode=context.pool_mode,
            resize=context.resize,
            backbone=dict(context.backbone) if context.backbone is not None else None,
            thresholds=thresholds,
            pos_weight=dict(zip(names, self.pos_weight.tolist(), strict=True)),
            seed=self.head.seed,
            epoch=result.epoch,
            metric_name=self.best.metric_name if self.val is not None else "none (no validation)",
            best_metric=result.val_loss if macro is None else macro,
            distribution=self.distribution,
            seen=self.seen,
        )

    def write(self, warnings: Sequence[str], stopped: str) -> dict[str, Any]:
        """The summary, written with the curve next to the checkpoints once an epoch has finished."""
        from meddinov3_stroke.report.charts import training_curve_png

        if not self.checkpoints:
            return {}
        summary = self._summary(self.checkpoints["best"], stopped) | {"warnings": list(warnings)}
        write_bytes(self.output_dir / CURVE_NAME, training_curve_png(self.history, self.best.epoch))
        write_json(self.output_dir / SUMMARY_NAME, summary)
        return summary

    def _summary(self, best: HeadCheckpoint, stopped: str) -> dict[str, Any]:
        context, names = self.context, self.context.label_names
        return {
            **provenance(),
            "config": {
                **asdict(self.head),
                "arch": self.head.arch,
                "pos_weight_cap": config.POS_WEIGHT_CAP,
                "device": self.device,
                "output_dir": str(self.output_dir),
                **context.sources,
            },
            "seeds": {"head_training": self.head.seed},
            "device": self.device,
            "labels": list(names),
            "pool_mode": context.pool_mode,
            "resize": context.resize,
            **about_backbone(context.backbone),
            "train": about_rows(self.train, names),
            "val": None if self.val is None else about_rows(self.val, names),
            "pos_weight": best.pos_weight,
            "pos_weight_rule": f"negatives per positive in training, at most {config.POS_WEIGHT_CAP:g}",
            "history": self.history,
            "metric_name": best.metric_name,
            "best_metric": best.best_metric,
            "best_epoch": best.epoch,
            "stopped": stopped,
            "distribution": None if best.distribution is None else best.distribution.figures(),
            "thresholds": {label: threshold.value for label, threshold in best.thresholds.items()},
            "threshold_origins": {label: threshold.origin for label, threshold in best.thresholds.items()},
            "calibration": best.calibration and {k: one.about() for k, one in best.calibration.items()},
            "operating_points": best.operating_points
            and {k: {label: asdict(one) for label, one in v.items()} for k, v in best.operating_points.items()},
            "checkpoints": {name: str(self.output_dir / f"{name}.pt") for name in self.sha256},
            "checkpoint_sha256": self.sha256,
            "files": {"summary": str(self.output_dir / SUMMARY_NAME), "curve": str(self.output_dir / CURVE_NAME)},
            "elapsed_s": round(self.watch.elapsed_s, 3),
            "memory": memory_statistics(self.device),
        }


def calibration_of(
    val: HeadData | None, logits: np.ndarray | None, names: Sequence[str], seed: int
) -> tuple[dict[str, Any], list[str]]:
    """({calibration, operating_points} of a checkpoint, warnings), fitted on validation patients."""
    if val is None or logits is None:
        reason = {"reason": "the head was trained without validation data"}
        return {"calibration": {name: LabelCalibration(None, np.zeros((0, 2)), reason) for name in names}}, []
    patients, warnings = patients_of(val.groups, len(val.labels), N_REFITS, seed)
    fitted = {
        name: LabelCalibration(*calibrate(logits[:, k].astype(np.float64), val.labels[:, k], patients))
        for k, name in enumerate(names)
    }
    columns = [one.apply(logits[:, k]) for k, one in enumerate(fitted.values())]
    points = validation_thresholds(val.labels, np.stack(columns, axis=1), names)
    for k, (name, one) in enumerate(fitted.items()):
        at = {point: of[name] for point, of in points.items()}
        rates = promised_rates(val.labels[:, k], columns[k], at, patients)
        fitted[name] = replace(one, figures={**one.figures, "operating_points": rates})
    found = [UNKNOWN_PATIENTS] if warnings else []
    if lacking := [name for name, one in fitted.items() if one.calibrator is None]:
        found.append(
            f"no calibration of {', '.join(lacking)}: fewer than {LEAST_PATIENTS} validation patients have a positive, "
            "or a negative, row"
        )
    return {"calibration": fitted, "operating_points": points}, found


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
