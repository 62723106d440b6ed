"""Stage `train-rsna`: series CSV -> split, cached features, trained and tested head, one summary."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.options import CohortOptions, OutputDir
from meddinov3_stroke.system.command import run_command
from meddinov3_stroke.system.provenance import DISCLAIMER, provenance
from meddinov3_stroke.types import LABELS, HeadContext

if TYPE_CHECKING:
    from meddinov3_stroke.feature_extractor import FeatureExtractor
    from meddinov3_stroke.rsna_pipeline import Extractions, SplitFeatures, Splits

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, kw_only=True)
class RsnaHeadConfig(HeadConfig):
    """`HeadConfig` with the flags and defaults of this stage."""

    epochs: int = config.RSNA_EPOCHS
    """Passes over the training rows, at least 1."""
    batch_size: Annotated[int, tyro.conf.arg(name="train-batch-size")] = HeadConfig.batch_size
    """Series per optimizer step."""
    seed: int = config.SEED
    """Seed of the split and of the head's training."""


@dataclass(frozen=True, kw_only=True)
class Args(CohortOptions):
    """Split a series CSV by patient, embed and cache every volume, train a head and test it."""

    output_dir: OutputDir = config.RSNA_OUTPUT_DIR
    """Folder for splits/, features/, test_metrics.json and pipeline_summary.json."""
    checkpoints_dir: Path = config.RSNA_CHECKPOINTS_DIR
    """Folder for best.pt, last.pt, train_summary.json and training_curve.png."""
    train_ratio: float = config.TRAIN_RATIO
    """Share of patients (never of series) in the training split."""
    val_ratio: float = config.VAL_RATIO
    """Share of patients in the validation split."""
    test_ratio: float = config.TEST_RATIO
    """Share of patients in the test split; the three sum to 1."""
    eval_threshold: float = config.EVAL_THRESHOLD
    """Probability at or above which a test row counts as positive in metrics_at_threshold, 0 to 1."""
    head: Annotated[RsnaHeadConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RsnaHeadConfig)


def run(args: Args) -> dict[str, Any]:
    """The document written as `pipeline_summary.json`.

    Raises:
        UsageError: a flag out of range.
        DatasetError: the table, its labels, its split, or the same pixels in two splits.
        InputError, OutOfScope: the first volume that cannot be used, without --skip-invalid-nifti.
        TooManyInvalid: more of them than --max-invalid.
        WeightsError: no backbone, or one that gives NaN.
        KeyboardInterrupt: SIGINT; what is finished is kept and not computed again.
    """
    from meddinov3_stroke import rsna_pipeline as rsna
    from meddinov3_stroke.system.atomic import write_json
    from meddinov3_stroke.system.statistics import Stopwatch, memory_statistics

    watch = Stopwatch()
    splits = _split(args)
    rsna.write_splits(splits, args.output_dir / "splits")
    extractor = args.extractor()
    extractions, extraction = _extract(args, splits, extractor)
    report = rsna.invalid_report(splits, extractions)
    origin = {**provenance(), **_origin(args, splits, extractor)}
    write_json(args.output_dir / "invalid_nifti_report.json", {**origin, **report})
    rsna.require_within_cap(report, args.max_invalid)
    found = (extractor.backbone.warnings, rsna.skip_warnings(report), rsna.audit_extractions(splits, extractions))
    warnings = [*splits.warnings, *_tell(*found)]
    features = _features(args, splits, extractions, extractor)
    train = _train(args, features, extractor)
    test = _test(args, features)
    origin["head_sha256"] = test["head_sha256"]
    write_json(args.output_dir / "test_metrics.json", {**origin, **test})
    summary = {
        **origin,
        "config": _flags(args),
        "split": rsna.split_document(splits),
        "extraction": extraction,
        "train": {**train, "invalid_nifti_report": report, "class_balance": rsna.class_balance(splits, features)},
        "test": test,
        "files": _files(args),
        "warnings": warnings,
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics(extractor.backbone.device),
    }
    write_json(args.output_dir / "pipeline_summary.json", summary)
    _print(args, summary)
    return summary


def _flags(args: Args) -> dict[str, Any]:
    """Every flag and its value, by the flag's name."""
    own = {one.name: getattr(args, one.name) for one in fields(args) if one.name != "head"}
    head = asdict(args.head)
    return {**own, "train_batch_size": head.pop("batch_size"), **head}


def _split(args: Args) -> Splits:
    from meddinov3_stroke.data import check_ratios
    from meddinov3_stroke.heads.training import check_config
    from meddinov3_stroke.rsna_pipeline import check_max_invalid, split_by_patient

    ratios = check_ratios((args.train_ratio, args.val_ratio, args.test_ratio))
    check_max_invalid(args.max_invalid)
    check_config(args.head)
    table = args.read_table()
    splits = split_by_patient(table, ratios, args.head.seed)
    _tell(splits.warnings)
    return splits


def _extract(args: Args, splits: Splits, extractor: FeatureExtractor) -> tuple[Extractions, dict[str, Any]]:
    from meddinov3_stroke.features import EmbeddingStore
    from meddinov3_stroke.rsna_pipeline import extract_splits, ledger_of, volume_warnings
    from meddinov3_stroke.system.statistics import Stopwatch

    watch = Stopwatch()
    extractions = extract_splits(
        splits,
        extractor,
        EmbeddingStore(args.cache_dir),
        skip_invalid=args.skip_invalid_nifti,
        show_progress=args.show_progress,
    )
    counts = ledger_of(extractions)
    LOGGER.info("%(n_total)d volumes: %(n_from_cache)d from the cache, %(n_computed)d embedded now", counts)
    facts = {"elapsed_s": round(watch.elapsed_s, 3), "cache_dir": str(args.cache_dir)}
    return extractions, {**counts, **facts, "volume_warnings": volume_warnings(splits, extractions)}


def _features(
    args: Args, splits: Splits, extractions: Extractions, extractor: FeatureExtractor
) -> dict[str, SplitFeatures]:
    from meddinov3_stroke.rsna_pipeline import pool_split, write_features

    features = {name: pool_split(name, table, extractions[name], args.pool_mode) for name, table in splits.items()}
    write_features(features, args.output_dir / "features", args.pool_mode, extractor)
    return features


def _train(args: Args, features: Mapping[str, SplitFeatures], extractor: FeatureExtractor) -> dict[str, Any]:
    from meddinov3_stroke.head_train import train_head
    from meddinov3_stroke.system.devices import use_available_cpus

    use_available_cpus()
    folder = args.output_dir / "features"
    context = HeadContext(
        pool_mode=args.pool_mode,
        resize=args.resize,
        backbone=asdict(extractor.backbone.identity),
        label_names=LABELS,
        sources={
            f"{name}_{what}": str(folder / f"{name}_{what}.npy")
            for name in ("train", "val")
            for what in ("embeddings", "labels")
        },
    )
    train, val = features["train"].data, features["val"].data
    return train_head(train, val, args.head, context, args.checkpoints_dir, args.show_progress)


def _test(args: Args, features: Mapping[str, SplitFeatures]) -> dict[str, Any]:
    from meddinov3_stroke.head_eval import evaluate_head
    from meddinov3_stroke.heads import load_checkpoint
    from meddinov3_stroke.metrics import weighted_log_loss
    from meddinov3_stroke.system.atomic import write_npy

    test = features["test"]
    checkpoint = load_checkpoint(args.checkpoints_dir / "best.pt")
    metrics, probabilities = evaluate_head(checkpoint, test.data, test.table.groups, threshold=args.eval_threshold)
    metrics["weighted_log_loss"] = weighted_log_loss(test.data.labels, probabilities, LABELS)
    metrics["checkpoint"] = str(args.checkpoints_dir / "best.pt")
    metrics["head_sha256"] = checkpoint.sha256
    write_npy(args.output_dir / "test_probs.npy", probabilities)
    return metrics


def _origin(args: Args, splits: Splits, extractor: FeatureExtractor) -> dict[str, Any]:
    identity = extractor.backbone.identity
    return {
        "input": str(args.series_csv),
        "input_sha256": splits.train.sha256,
        "backbone": asdict(identity),
        "weights_sha256": identity.weights_sha256,
        "engine": identity.engine,
        "precision": identity.precision,
        "device": extractor.backbone.device,
        "seed": args.head.seed,
        "pool_mode": args.pool_mode,
        "resize": args.resize,
        "selection": asdict(extractor.selection),
    }


def _tell(*warnings: Sequence[str]) -> list[str]:
    told = [warning for some in warnings for warning in some]
    for warning in told:
        LOGGER.warning("%s", warning)
    return told


def _files(args: Args) -> dict[str, str]:
    paths = {
        "splits": args.output_dir / "splits",
        "features": args.output_dir / "features",
        "best": args.checkpoints_dir / "best.pt",
        "last": args.checkpoints_dir / "last.pt",
        "train_summary": args.checkpoints_dir / "train_summary.json",
        "training_curve": args.checkpoints_dir / "training_curve.png",
        "test_metrics": args.output_dir / "test_metrics.json",
        "test_probs": args.output_dir / "test_probs.npy",
        "invalid_nifti_report": args.output_dir / "invalid_nifti_report.json",
        "pipeline_summary": args.output_dir / "pipeline_summary.json",
    }
    return {name: str(path) for name, path in paths.items()}


def _print(args: Args, summary: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    test, balance = summary["test"], summary["train"]["class_balance"]["test"]["after"]
    shown = Table("label", "test AUROC", "positive / series", title="Held-out test", title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for label in LABELS:
        auroc = test["per_class_auroc"][label]
        value = "undefined" if auroc is None else f"{auroc:.3f}"
        shown.add_row(label, value, f"{balance['n_positive'][label]} / {balance['n_series']}")
    shown.add_section()
    shown.add_row("macro", _macro(test), f"{balance['n_patients']} patients")
    Console().print(shown)
    print("\n".join(_files(args).values()))
    print(DISCLAIMER)


def _macro(test: Mapping[str, Any]) -> str:
    if test["macro_auroc"] is None:
        return "undefined"
    interval = test.get("macro_auroc_interval") or {}
    text = f"{test['macro_auroc']:.3f}"
    if interval.get("low") is not None:
        text += f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return text


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
