"""Stage `train-head`: embeddings and labels in `.npy` files -> a head, chosen on validation, with its thresholds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddinov3_stroke import config
from meddinov3_stroke.labels import LabelPolicy, label_names
from meddinov3_stroke.options import DeviceName, OutputDir
from meddinov3_stroke.system.command import ConsoleOptions, run_command
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.types import HeadContext, HeadData, HeadOptions, HeadOutput

if TYPE_CHECKING:
    from meddinov3_stroke.heads import BestEpoch, EpochResult, HeadCheckpoint

LOGGER = logging.getLogger("meddinov3_stroke")

SUMMARY_NAME = "train_summary.json"
CURVE_NAME = "training_curve.png"

__all__ = ["Args", "HeadContext", "HeadData", "HeadOptions", "main", "run", "train_head"]


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Train a light multi-label head on frozen embeddings and keep the epoch that validates best."""

    train_embeddings: Path
    """.npy, float [rows, columns]: training embeddings."""
    train_labels: Path
    """.npy, 0 or 1 [rows, labels]: their labels; six columns are any and the five subtypes."""
    val_embeddings: Path
    """.npy: validation embeddings; they choose the epoch and the thresholds."""
    val_labels: Path
    """.npy: their labels."""
    epochs: int = config.EPOCHS
    """Passes over the training rows, at least 1."""
    batch_size: int = config.BATCH_SIZE
    """Rows in a step of the optimizer."""
    lr: float = config.LR
    """Learning rate of AdamW."""
    weight_decay: float = config.WEIGHT_DECAY
    """Weight decay of AdamW."""
    hidden_dim: int = config.HIDDEN_DIM
    """Width of the hidden layer; 0 or less: a single linear layer."""
    dropout: float = config.DROPOUT
    """Share of hidden units dropped in training, in [0, 1)."""
    patience: int = config.PATIENCE
    """Epochs without a better validation macro AUROC before training stops; 0 trains to the end."""
    seed: int = config.SEED
    """The same seed on the same data gives the same head."""
    label_policy: LabelPolicy = "strict"
    """Where `any` is not the OR of the five subtypes: stop, set it to the OR, or take it as it stands."""
    device: DeviceName = config.DEVICE
    """Where to train; a head is small, cpu will do."""
    output_dir: OutputDir = config.HEAD_DIR
    """Folder for best.pt, last.pt, train_summary.json and training_curve.png."""

    @property
    def options(self) -> HeadOptions:
        """The flags that training itself needs."""
        return HeadOptions(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            seed=self.seed,
            patience=self.patience,
        )


def run(args: Args) -> dict[str, Any]:
    """The summary of the training, as written to `train_summary.json`.

    Raises:
        UsageError: a flag out of range.
        DatasetError: arrays that are missing, damaged or contradict each other.
    """
    from meddinov3_stroke.heads import check_options, load_head_data, read_origin, same_origin
    from meddinov3_stroke.report.training import training_table
    from meddinov3_stroke.system.devices import resolve_device, use_available_cpus

    check_options(args.options)
    device = str(resolve_device(args.device))
    use_available_cpus()
    train, train_warnings = load_head_data(args.train_embeddings, args.train_labels, args.label_policy)
    val, val_warnings = load_head_data(args.val_embeddings, args.val_labels, args.label_policy)
    origin = read_origin(args.train_embeddings, train.embeddings.shape[1])
    val_origin = read_origin(args.val_embeddings, val.embeddings.shape[1])
    origin_warnings = same_origin(origin, val_origin)
    context = HeadContext(
        pool_mode=origin.pool_mode,
        resize=origin.resize,
        backbone=asdict(origin.identity) if origin.identity else None,
        label_names=label_names(train.labels.shape[1]),
        sources={
            name: str(getattr(args, name))
            for name in ("train_embeddings", "train_labels", "val_embeddings", "val_labels")
        },
        warnings=(*origin.warnings, *val_origin.warnings, *origin_warnings, *train_warnings, *val_warnings),
    )
    summary = train_head(train, val, args.options, context, args.output_dir, args.show_progress, device)
    print(training_table(summary))
    return summary


def train_head(
    train: HeadData,
    val: HeadData,
    options: HeadOptions,
    context: HeadContext,
    output_dir: Path,
    progress: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """The summary of a training that wrote best.pt, last.pt, train_summary.json and training_curve.png.

    The best epoch has the highest validation macro AUROC and, among equals, the lowest validation loss; where no label
    has an AUROC on validation, the lowest loss. Checkpoints are written after each epoch that earns one.

    Raises:
        UsageError: an option out of range.
        DatasetError: arrays that contradict each other; a label without positives or negatives in training.
        NonFiniteLoss: a NaN or infinite loss; the checkpoints of the epochs before stay.
        KeyboardInterrupt: SIGINT came; the epoch was finished and everything saved.
    """
    from meddinov3_stroke.errors import NonFiniteLoss
    from meddinov3_stroke.heads import check_head_data, check_options, check_train_and_val
    from meddinov3_stroke.system.interrupt import finish_on_interrupt
    from meddinov3_stroke.system.progress import progress_bar

    check_options(options)
    check_head_data(train, "training")
    check_head_data(val, "validation")
    warnings = [*context.warnings, *check_train_and_val(train, val, context.label_names)]
    for warning in warnings:
        LOGGER.warning("%s", warning)
    training = _Training(train, val, options, context, Path(output_dir), device)
    with finish_on_interrupt("epoch") as interruption:
        try:
            with progress_bar("training the head", options.epochs, "epochs", progress) as advance:
                for result in training.epochs():
                    training.keep(result)
                    advance()
                    if interruption.requested or training.best.is_stale(options.patience):
                        break
        except NonFiniteLoss:
            training.write(warnings, "non-finite loss")
            raise
        summary = training.write(warnings, _why_stopped(training, interruption.requested))
        interruption.check()
    return summary


class _Training:
    """One training under way: history, best epoch and the checkpoints written so far."""

    def __init__(
        self, train: HeadData, val: HeadData, options: HeadOptions, context: HeadContext, output_dir: Path, device: str
    ) -> None:
        from meddinov3_stroke.heads import BestEpoch, positive_weights
        from meddinov3_stroke.metrics import undefined_reason
        from meddinov3_stroke.system.statistics import Stopwatch

        self.train, self.val, self.options, self.context = train, val, options, context
        self.output_dir, self.device, self.watch = output_dir, device, Stopwatch()
        self.pos_weight = positive_weights(train.labels, config.POS_WEIGHT_CAP)
        self.history: list[dict[str, Any]] = []
        self.best: BestEpoch = BestEpoch(ranked=any(undefined_reason(column) is None for column in val.labels.T))
        self.best_checkpoint: HeadCheckpoint | None = None
        self.sha256: dict[str, str] = {}

    def epochs(self) -> Iterator[EpochResult]:
        """Train, one epoch for each item asked for."""
        from meddinov3_stroke.heads import train_epochs

        return train_epochs(self.train, self.val, self.options, self.pos_weight, self.device)

    def keep(self, result: EpochResult) -> None:
        """Judge an epoch on validation, record it, and write last.pt and, if it is the best so far, best.pt."""
        from meddinov3_stroke.heads import save_checkpoint
        from meddinov3_stroke.metrics import auroc_report

        names = self.context.label_names
        output = HeadOutput(result.val_logits, names)
        report = auroc_report(self.val.labels, output.probabilities, names)
        row = {"epoch": result.epoch, "train_loss": result.train_loss, "val_loss": result.val_loss}
        self.history.append({**row, "val_macro_auroc": report.macro, "val_per_class_auroc": report.per_class})
        is_best = self.best.offer(result.epoch, report.macro, result.val_loss)
        checkpoint = self.checkpoint(result, output, self.best.metric_of(report.macro, result.val_loss))
        self.sha256["last"] = save_checkpoint(self.output_dir / "last.pt", checkpoint)
        if is_best:
            self.best_checkpoint = checkpoint
            self.sha256["best"] = save_checkpoint(self.output_dir / "best.pt", checkpoint)

    def checkpoint(self, result: EpochResult, output: HeadOutput, metric: float | None) -> HeadCheckpoint:
        """The head as it stands after an epoch, with thresholds from its own validation probabilities."""
        from meddinov3_stroke.heads import HeadCheckpoint
        from meddinov3_stroke.metrics import youden_thresholds

        names, context = self.context.label_names, self.context
        return HeadCheckpoint(
            state_dict={name: tensor.detach().cpu().clone() for name, tensor in result.head.state_dict().items()},
            labels=names,
            input_dim=self.train.embeddings.shape[1],
            hidden_dim=max(self.options.hidden_dim, 0),
            dropout=float(self.options.dropout),
            pool_mode=context.pool_mode,
            resize=context.resize,
            backbone=dict(context.backbone) if context.backbone is not None else None,
            thresholds=youden_thresholds(self.val.labels, output.probabilities, names),
            pos_weight=dict(zip(names, self.pos_weight.tolist(), strict=True)),
            seed=self.options.seed,
            epoch=result.epoch,
            metric_name=self.best.metric_name,
            best_metric=metric,
        )

    def write(self, warnings: Sequence[str], stopped: str) -> dict[str, Any]:
        """The summary, written with the curve beside the checkpoints; both only if an epoch was finished."""
        from meddinov3_stroke.report.curves import training_curve_png
        from meddinov3_stroke.system.atomic import write_bytes, write_json

        if self.best_checkpoint is None:
            return {}
        summary = {**provenance(), **self._about_data(), **self._about_result(self.best_checkpoint, stopped)}
        summary["warnings"] = list(warnings)
        write_bytes(self.output_dir / CURVE_NAME, training_curve_png(self.history, self.best.epoch))
        write_json(self.output_dir / SUMMARY_NAME, summary)
        return summary

    def _about_data(self) -> dict[str, Any]:
        from meddinov3_stroke.report.training import about_backbone, about_rows

        context = self.context
        return {
            "config": {
                **asdict(self.options),
                "pos_weight_cap": config.POS_WEIGHT_CAP,
                "device": self.device,
                "output_dir": str(self.output_dir),
                **context.sources,
            },
            "seeds": {"head_training": self.options.seed},
            "device": self.device,
            "labels": list(context.label_names),
            "pool_mode": context.pool_mode,
            "resize": context.resize,
            **about_backbone(context.backbone),
            "train": about_rows(self.train, context.label_names),
            "val": about_rows(self.val, context.label_names),
        }

    def _about_result(self, best: HeadCheckpoint, stopped: str) -> dict[str, Any]:
        from meddinov3_stroke.system.statistics import memory_statistics

        return {
            "pos_weight": best.pos_weight,
            "pos_weight_rule": f"negatives per positive in training, at most {config.POS_WEIGHT_CAP:g}",
            "history": self.history,
            "metric_name": best.metric_name,
            "best_metric": best.best_metric,
            "best_epoch": best.epoch,
            "stopped": stopped,
            "thresholds": {label: threshold.value for label, threshold in best.thresholds.items()},
            "threshold_origins": {label: threshold.origin for label, threshold in best.thresholds.items()},
            "checkpoints": {name: str(self.output_dir / f"{name}.pt") for name in self.sha256},
            "checkpoint_sha256": self.sha256,
            "files": {"summary": str(self.output_dir / SUMMARY_NAME), "curve": str(self.output_dir / CURVE_NAME)},
            "elapsed_s": round(self.watch.elapsed_s, 3),
            "memory": memory_statistics(self.device),
        }


def _why_stopped(training: _Training, interrupted: bool) -> str:
    if interrupted:
        return "interrupted"
    return "all epochs" if len(training.history) == training.options.epochs else "patience"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
