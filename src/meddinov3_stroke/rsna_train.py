"""Stage `train-rsna`: series CSV -> split, cached features, trained and tested head, one summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from meddinov3_stroke import config
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.explain import is_demo
from meddinov3_stroke.options import CohortOptions, ForceOption, OutputDir
from meddinov3_stroke.rsna_split import SplitOptions, print_table
from meddinov3_stroke.system.command import Range, log_warnings, run_command
from meddinov3_stroke.system.provenance import ending, provenance
from meddinov3_stroke.types import LABELS, HeadData

if TYPE_CHECKING:
    from meddinov3_stroke.rsna_pipeline import Cohort, SplitFeatures, Splits


@dataclass(frozen=True, kw_only=True)
class SeriesHeadConfig(HeadConfig):
    """The head's options with this stage's own default and flag names."""

    epochs: int = config.RSNA_EPOCHS
    """Passes over the training rows, at least 1."""
    batch_size: Annotated[int, tyro.conf.arg(name="train-batch-size")] = HeadConfig.batch_size
    """Series in a step of the head's training."""
    seed: int = config.SEED
    """Seed of the split and of the head's training."""


@dataclass(frozen=True, kw_only=True)
class Args(SplitOptions, CohortOptions, ForceOption):
    """Split a series CSV by patient, embed and cache every volume, train a head and test it."""

    output_dir: OutputDir = config.RSNA_OUTPUT_DIR
    """Folder for splits/, features/, test_metrics.json and pipeline_summary.json."""
    checkpoints_dir: Path = config.RSNA_CHECKPOINTS_DIR
    """Folder for best.pt, last.pt, train_summary.json and training_curve.png."""
    head: Annotated[SeriesHeadConfig, tyro.conf.OmitArgPrefixes] = SeriesHeadConfig()
    eval_threshold: Annotated[float, Range(0, 1)] = config.EVAL_THRESHOLD
    """Probability at which the test figures (accuracy, precision, F1 ...) are also reported, 0 to 1."""


def run(args: Args) -> dict[str, Any]:
    """The document written as `pipeline_summary.json`; of a shard, what was embedded.

    Raises:
        UsageError: a flag out of range.
        DatasetError: the table, its labels, its split, or the same pixels in two splits.
        InputError, OutOfScope: the first volume that cannot be used, without --skip-invalid-nifti.
        TooManyInvalid: more of them than --max-invalid.
        WeightsError: no backbone, or one that gives NaN.
        MachineError: torch is not installed.
        KeyboardInterrupt: SIGINT; what is finished is kept and not computed again.
    """
    from meddinov3_stroke import rsna_pipeline as rsna
    from meddinov3_stroke.system.atomic import require_writable, write_json
    from meddinov3_stroke.system.devices import require_torch
    from meddinov3_stroke.system.provenance import Stopwatch, memory_statistics

    watch = Stopwatch()
    if args.shard is None:
        require_torch()  # before hours of extraction
    outputs = [args.output_dir / name for name in ("splits", "features")]
    require_writable(args.output_dir, *outputs, args.checkpoints_dir, args.cache_dir, *args.stage_folders)
    splits = _split(args)
    rsna.write_splits(splits, args.output_dir / "splits")
    if not args.submit_shards(dict(splits.items()), args.output_dir):
        return {}
    cohort = args.extract(dict(splits.items()), args.force, args.output_dir)
    if args.shard is not None:
        return args.print_shard(cohort, args.output_dir)
    report, backbone = cohort.invalid_report(), cohort.extractor.backbone
    origin = {**provenance(), **_origin(args, splits, cohort)}
    write_json(args.output_dir / "invalid_nifti_report.json", {**origin, **report})
    found = [*rsna.require_within_cap(report, args.max_invalid), *backbone.warnings, *cohort.audit()]
    log_warnings(found)
    features = cohort.features()
    rsna.write_features(cohort, features, args.output_dir / "features")
    train = _train(args, cohort, features)
    test = _test(args, features["test"], features["val"].data)
    origin["head_sha256"] = test["head_sha256"]
    write_json(args.output_dir / "test_metrics.json", {**origin, **test})
    summary = {
        **origin,
        "config": {**_flags(args), "train_batch_size": args.head.batch_size},
        "split": rsna.split_document(splits),
        "extraction": cohort.document(),
        "train": {**train, "invalid_nifti_report": report, "class_balance": cohort.class_balance(features)},
        "test": test,
        "files": _files(args),
        "warnings": [*splits.warnings, *found],
        "elapsed_s": round(watch.elapsed_s, 3),
        "memory": memory_statistics(backbone.device),
    }
    write_json(args.output_dir / "pipeline_summary.json", summary)
    _print(args, summary)
    return summary


def _flags(args: Args) -> dict[str, Any]:
    flags = vars(args) | asdict(args.head)
    return {name: value for name, value in flags.items() if name not in ("head", "batch_size")}


def _split(args: Args) -> Splits:
    from meddinov3_stroke.heads.training import check_config

    check_config(args.head)
    return args.split(args.head.seed)


def _train(args: Args, cohort: Cohort, features: Mapping[str, SplitFeatures]) -> dict[str, Any]:
    from meddinov3_stroke.head_train import train_head
    from meddinov3_stroke.heads import HeadContext
    from meddinov3_stroke.system.devices import use_available_cpus

    use_available_cpus()
    arrays = [f"{name}_{what}" for name in ("train", "val") for what in ("embeddings", "labels")]
    context = HeadContext(
        pool_mode=cohort.pool_mode,
        resize=args.resize,
        backbone=asdict(cohort.extractor.identity),
        label_names=LABELS,
        sources={name: str(args.output_dir / "features" / f"{name}.npy") for name in arrays},
    )
    train, val = features["train"].data, features["val"].data
    return train_head(train, val, args.head, context, args.checkpoints_dir, args.show_progress)


def _test(args: Args, test: SplitFeatures, val: HeadData) -> dict[str, Any]:
    from meddinov3_stroke.data.exposure import digests_of_data, record_exposure
    from meddinov3_stroke.head_eval import evaluate_head
    from meddinov3_stroke.heads import load_checkpoint
    from meddinov3_stroke.metrics import weighted_log_loss
    from meddinov3_stroke.system.atomic import write_npy

    checkpoint = load_checkpoint(args.checkpoints_dir / "best.pt")
    metrics, probabilities = evaluate_head(
        checkpoint, test.data, test.table.groups, threshold=args.eval_threshold, val=val
    )
    write_npy(args.output_dir / "test_probs.npy", probabilities)
    exposure = record_exposure(None, digests_of_data(test.data), checkpoint.sha256, "train-rsna")
    loss = weighted_log_loss(test.data.labels, probabilities, LABELS)
    about = {"checkpoint": str(args.checkpoints_dir / "best.pt"), "head_sha256": checkpoint.sha256}
    return {**metrics, "weighted_log_loss": loss, "exposure": exposure, **about}


def _origin(args: Args, splits: Splits, cohort: Cohort) -> dict[str, Any]:
    backbone = asdict(cohort.extractor.identity)
    return {
        "input": str(args.series_csv),
        "input_sha256": splits.train.sha256,
        "backbone": backbone,
        **{name: backbone[name] for name in ("weights_sha256", "engine", "precision")},
        "device": cohort.extractor.backbone.device,
        "seed": args.head.seed,
        "pool_mode": cohort.pool_mode,
        "resize": args.resize,
        "selection": asdict(args.selection),
    }


def _files(args: Args) -> dict[str, str]:
    written = ("splits", "features", "test_metrics.json", "test_probs.npy", "invalid_nifti_report.json")
    paths = [args.output_dir / name for name in (*written, "pipeline_summary.json")]
    trained = ("best.pt", "last.pt", "train_summary.json", "training_curve.png")
    return {path.stem: str(path) for path in (*paths, *(args.checkpoints_dir / name for name in trained))}


def _print(args: Args, summary: Mapping[str, Any]) -> None:
    test, balance = summary["test"], summary["train"]["class_balance"]["test"]["after"]
    positive = {label: f"{n} / {balance['n_series']}" for label, n in balance["n_positive"].items()}
    rows = [[label, _auroc(test["per_class_auroc"][label]), positive[label]] for label in LABELS]
    interval, macro = test.get("macro_auroc_interval") or {}, _auroc(test["macro_auroc"])
    if test["macro_auroc"] is not None and interval.get("low") is not None:
        macro += f" ({interval['low']:.3f} to {interval['high']:.3f})"
    rows += [[], ["macro", macro, f"{balance['n_patients']} patients"]]
    where, is_demo_model = f"{args.output_dir}, {args.checkpoints_dir}", is_demo(summary["backbone"]["name"])
    last = ending(f"test macro AUROC {macro}", where, len(summary["warnings"]), is_demo_model)
    print_table("Held-out test", ("label", "test AUROC", "positive / series"), rows, _files(args).values(), last)


def _auroc(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
