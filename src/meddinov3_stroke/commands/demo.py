"""Stage `demo`: a phantom cohort through the real pipeline, with no weights, no network and no GPU.

It shows that every step works, from a volume to a tested head and pictures. It says nothing about patients.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Column, Table

from meddinov3_stroke import config, ich_infer, rsna_train
from meddinov3_stroke.commands import phantom
from meddinov3_stroke.config import HeadConfig
from meddinov3_stroke.errors import DatasetError
from meddinov3_stroke.explain import is_demo
from meddinov3_stroke.head_eval import evaluate_head
from meddinov3_stroke.head_train import train_head
from meddinov3_stroke.heads import HeadContext, load_checkpoint, load_head_data
from meddinov3_stroke.options import DeviceName, OutputDir
from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.command import ConsoleOptions, Range, run_command
from meddinov3_stroke.system.devices import require_torch
from meddinov3_stroke.system.progress import console
from meddinov3_stroke.system.provenance import Stopwatch, ending, provenance
from meddinov3_stroke.types import LABELS, HeadData

LEAST_HELD_OUT_PATIENTS = 60  # least number of held-out patients; with fewer, the demo's AUROC would be too uncertain
SMALL_LESION_ML = 2.0  # haemorrhages below this volume are counted as small
SHUFFLES = 5  # times the control is trained on permuted labels; a single permutation scatters widely about 0.5
TRAINING: dict[str, Any] = {"epochs": config.DEMO_EPOCHS, "batch_size": config.DEMO_TRAIN_BATCH_SIZE}


@dataclass(frozen=True, kw_only=True)
class Args(ConsoleOptions):
    """Make synthetic head CT, run train-rsna and predict on it, and print the test AUROC and the paths of pictures."""

    output_dir: OutputDir = config.DEMO_DIR
    """Folder for everything the demo writes; repeating the demo reuses its cache."""
    backbone: Annotated[str, tyro.conf.arg(metavar="PATH|NAME")] = config.DEMO_BACKBONE
    """Weights file or registered name; the default is the small bundled one, trained on phantoms."""
    device: DeviceName = field(default_factory=config.default_device)
    """Where to compute; only auto may fall back."""
    patients: Annotated[int, Range(1)] = config.DEMO_PATIENTS
    """Number of phantom patients; at least 60 of them are held out."""
    seed: Annotated[int, Range(0)] = config.SEED
    """Seed of the cohort, the split and the head."""


def run(args: Args) -> dict[str, Any]:
    """The demo's summary, as written to `demo_summary.json`."""
    require_torch()  # training the head needs it
    watch, folder = Stopwatch(), args.output_dir
    if args.patients * config.DEMO_TEST_RATIO < LEAST_HELD_OUT_PATIENTS:
        least = int(np.ceil(LEAST_HELD_OUT_PATIENTS / config.DEMO_TEST_RATIO))
        raise DatasetError(f"--patients {args.patients}: too few to hold out {LEAST_HELD_OUT_PATIENTS}; give {least}")
    flags: dict[str, Any] = {"quiet": args.quiet, "json_log": args.json_log, "debug": args.debug}
    compute: dict[str, Any] = {"backbone": args.backbone, "device": args.device, **flags}
    cohort_args = phantom.Args(output_dir=folder / "phantoms", patients=args.patients, seed=args.seed, **flags)
    pipeline_args = rsna_train.Args(
        series_csv=phantom.run(cohort_args).csv_path,
        output_dir=folder / "rsna_pipeline",
        cache_dir=folder / "rsna_cache",
        checkpoints_dir=folder / "checkpoints",
        train_ratio=config.DEMO_TRAIN_RATIO,
        val_ratio=config.DEMO_VAL_RATIO,
        test_ratio=config.DEMO_TEST_RATIO,
        head=rsna_train.SeriesHeadConfig(seed=args.seed, **TRAINING),
        **compute,
    )
    pipeline = rsna_train.run(pipeline_args)
    control = _run_control(folder, args.seed)
    held_out = _held_out_series(folder)
    largest = max(held_out, key=lambda series: sum(series["lesion_volumes_ml"].values()))
    case_dir = folder / f"case_{largest['series_uid']}"
    volume, checkpoint = folder / "phantoms" / largest["nifti_path"], folder / "checkpoints" / "best.pt"
    ich_infer.run(ich_infer.Args(input=(volume,), checkpoint=(checkpoint,), output_dir=case_dir, **compute))
    summary = {
        **provenance(),
        "backbone": args.backbone,
        "demonstration_only": "synthetic head CT; these figures say nothing about patients",
        "seed": args.seed,
        "held_out": _describe(held_out),
        **{key: pipeline["test"][key] for key in ("macro_auroc", "macro_auroc_interval", "per_class_auroc")},
        "shuffled_labels": {key: control[key] for key in ("macro_auroc", "macro_auroc_of_shuffles", "per_class_auroc")},
        "pictures": [str(case_dir / "similarity_map.png"), str(folder / "checkpoints" / "training_curve.png")],
        "elapsed_s": round(watch.elapsed_s, 1),
    }
    write_json(folder / "demo_summary.json", summary)
    _print_summary(args, summary)
    return summary


def _run_control(output_dir: Path, seed: int) -> dict[str, Any]:
    # test metrics of heads trained on the same features with permuted labels: near 0.5, unless something leaks
    folder, features = output_dir / "control_shuffled_labels", output_dir / "rsna_pipeline" / "features"
    train, val, test = (
        load_head_data(features / f"{name}_embeddings.npy", features / f"{name}_labels.npy")[0]
        for name in ("train", "val", "test")
    )
    rng = np.random.default_rng(seed)
    context = HeadContext(pool_mode=config.POOL_MODE, resize=config.RESIZE, backbone=None, label_names=LABELS)
    shuffles = []
    for k in range(SHUFFLES):
        shuffled = [HeadData(part.embeddings, part.labels[rng.permutation(len(part.labels))]) for part in (train, val)]
        run_dir, head = folder / f"shuffle_{k}", HeadConfig(seed=seed + k, **TRAINING)
        train_head(shuffled[0], shuffled[1], head, context, run_dir, progress=False)
        shuffles.append(evaluate_head(load_checkpoint(run_dir / "best.pt"), test)[0])
    scores = [shuffle["macro_auroc"] for shuffle in shuffles]
    per_class = {label: [shuffle["per_class_auroc"][label] for shuffle in shuffles] for label in LABELS}
    document = {
        **provenance(),
        "control": "training and validation labels permuted between series; test labels as they are",
        "macro_auroc": float(np.mean(scores)),
        "macro_auroc_of_shuffles": scores,
        "per_class_auroc": {label: float(np.mean(aurocs)) for label, aurocs in per_class.items()},
        "loss": float(np.mean([shuffle["loss"] for shuffle in shuffles])),
    }
    write_json(folder / "test_metrics.json", document)
    return document


def _held_out_series(folder: Path) -> list[dict[str, Any]]:
    # the records of `phantom_cohort.json` whose series are in the test split
    cohort = json.loads((folder / "phantoms" / "phantom_cohort.json").read_text(encoding="utf-8"))
    with (folder / "rsna_pipeline" / "splits" / "test.csv").open(newline="", encoding="utf-8") as table:
        test = {row["series_uid"] for row in csv.DictReader(table)}
    return [record for record in cohort["series"] if record["series_uid"] in test]


def _describe(held_out: list[dict[str, Any]]) -> dict[str, Any]:
    volumes_ml = [ml for record in held_out for ml in record["lesion_volumes_ml"].values() if ml > 0]
    quantiles = np.percentile(volumes_ml, (0, 50, 100)).round(2).tolist()
    return {
        "patients": len({record["patient_id"] for record in held_out}),
        "series": len(held_out),
        "lesions": len(volumes_ml),
        "lesions_below_2_ml": sum(ml < SMALL_LESION_ML for ml in volumes_ml),
        "lesion_volume_ml": dict(zip(("min", "median", "max"), quantiles, strict=True)),
    }


def _print_summary(args: Args, summary: dict[str, Any]) -> None:
    held_out, interval = summary["held_out"], summary["macro_auroc_interval"]
    title = "Test AUROC on held-out phantom patients (synthetic; says nothing about patients)"
    table = Table("label", *(Column(name, justify="right") for name in ("AUROC", "labels shuffled")), title=title)
    for label, auroc in summary["per_class_auroc"].items():
        control = summary["shuffled_labels"]["per_class_auroc"][label]
        table.add_row(label, "-" if auroc is None else f"{auroc:.3f}", f"{control:.3f}")
    macro = f"{summary['macro_auroc']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
    table.add_row("macro", macro, f"{summary['shuffled_labels']['macro_auroc']:.3f}", style="bold")
    console().print(table)
    small = held_out["lesions_below_2_ml"]
    console().print(
        f"{held_out['patients']} held-out patients, {held_out['series']} series, {held_out['lesions']} haemorrhages of "
        f"{held_out['lesion_volume_ml']['min']} to {held_out['lesion_volume_ml']['max']} mL, {small} below 2 mL; "
        f"interval {interval['level']:.0%}, patients resampled"
    )
    print("\n".join(f"picture: {picture}" for picture in summary["pictures"]))
    print(f"all figures: {args.output_dir / 'demo_summary.json'}   ({summary['elapsed_s']:.0f} s)")
    answer = f"test macro AUROC {macro} on phantoms, backbone {args.backbone}"
    print(ending(answer, args.output_dir, is_demo=is_demo(args.backbone)))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code of the command."""
    return run_command(Args, run, argv, prog=prog)
