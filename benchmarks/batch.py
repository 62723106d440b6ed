"""Many cases by `predict`'s batch (folders, ledger, results.csv) against the bare loop that saves each case."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.bars import Bar, judged
from benchmarks.heads import write_volumes
from benchmarks.rounds import median, take_turns, times_as_fast
from benchmarks.table import Table
from benchmarks.workspace import RESIZE, workspace
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.batch import Batch
from meddinov3_stroke.features import FeatureExtractor
from meddinov3_stroke.heads import HeadCheckpoint
from meddinov3_stroke.heads.applying import HeadEnsemble
from meddinov3_stroke.options import InputOptions
from meddinov3_stroke.predictor import ICHPredictor
from meddinov3_stroke.types import LABELS, Threshold, VolumeInput

RATE = Bar(0.95, "x")


def measure(quick: bool) -> Table:
    """Cases a second of both, in turns, with ViT-B/16 and with the small bundled backbone."""
    place = workspace(quick)
    n_cases, n_small, n_slices, side, rounds = (3, 3, 4, 128, 1) if quick else (8, 60, 6, 512, 3)
    rows, ratios = [], []
    for name, backbone, n in (("ViT-B/16", place.load(), n_cases), ("demo", load_backbone("demo"), n_small)):
        folder = place.folder / f"batch-{name[:4]}"
        write_volumes(folder / "volumes", n, n_slices, side)
        seconds = take_turns(_ways(backbone, folder), rounds, warm_ups=0)
        rows += [{"backbone": name, "way": way, "cases_per_s": n / median(seconds, way)} for way in seconds]
        ratios.append(RATE.verdict(f"batch over bare loop, {name}", times_as_fast(seconds, "batch", "bare loop")))
    notes = [
        *judged(quick, ratios),
        f"{n_cases} and {n_small} cases of {n_slices} slices, {side} x {side}, {rounds} rounds in turns; both read "
        "ahead, fill passes across cases and save every file of a case",
    ]
    return Table("batch", "Many cases in one run", rows, notes)


def _ways(backbone: Backbone, folder: Path) -> dict[str, Callable[[], None]]:
    paths, numbers = sorted((folder / "volumes").iterdir()), count()
    extractor = FeatureExtractor(backbone, resize=RESIZE)
    thresholds = dict.fromkeys(LABELS, Threshold(0.5, "default"))
    head = _linear_head(backbone.identity.embed_dim, thresholds)
    predictor = ICHPredictor(extractor, HeadEnsemble((head,), thresholds), top_k=5, warnings=(), force=True)

    def bare() -> None:
        out = folder / f"bare{next(numbers)}"
        for case in predictor.map(paths):
            case.save(out / case.name)

    def batch() -> None:
        inputs = [VolumeInput(path) for path in paths]
        Batch(folder / f"batch{next(numbers)}", {}).run(inputs, predictor.map, InputOptions(quiet=True))

    return {"bare loop": bare, "batch": batch}


def _linear_head(width: int, thresholds: dict[str, Threshold]) -> HeadCheckpoint:
    weight = np.random.default_rng(0).standard_normal((len(LABELS), width), dtype=np.float32)
    return HeadCheckpoint(
        state_dict={"weight": weight, "bias": np.zeros(len(LABELS), np.float32)},
        labels=LABELS,
        input_dim=width,
        arch="mlp",
        params={"hidden_dim": 0, "dropout": 0.0},
        pool_mode="mean",
        resize=RESIZE,
        backbone=None,
        thresholds=thresholds,
        pos_weight=dict.fromkeys(LABELS, 1.0),
        seed=0,
        epoch=1,
        metric_name="none",
        best_metric=None,
    )
