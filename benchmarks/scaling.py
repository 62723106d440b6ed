"""How time grows with the number of volumes, with the batch, with the resolution and with the cores."""

from __future__ import annotations

import json
import os
import statistics
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import judged
from benchmarks.children import told_by
from benchmarks.heads import write_volumes
from benchmarks.rounds import Seconds, median, take_turns
from benchmarks.table import Table
from benchmarks.workspace import Workspace, prepared, workspace
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.feature_extractor import FeatureExtractor
from meddinov3_stroke.features import EmbeddingStore, extract

BATCHES = (1, 4, 8, 16, 32)

RESOLUTIONS = ((224, 8), (512, 2), (896, 1))
"""Side in pixels, and the slices embedded at it."""


def measure(quick: bool) -> Table:
    """Seconds and slices a second along each axis; `value` is the number on the axis."""
    rounds = 2 if quick else 3
    place = workspace(quick)
    volumes, fit = volume_rows(place, rounds)
    auto = place.load()
    rows = [
        *volumes,
        *batch_rows(auto, BATCHES[:3] if quick else BATCHES, rounds),
        *resolution_rows(auto, RESOLUTIONS[:2] if quick else RESOLUTIONS, rounds),
        *core_rows(place, 4 if quick else 16, rounds),
    ]
    notes = [
        *judged(quick, []),
        fit,
        f"median of {rounds} rounds that take turns; auto engine ({auto.identity.engine} {auto.identity.precision})",
        "volumes: extract into an empty store, volumes of 2 slices of 256 x 256; cores: a process of its own "
        "bound to so many, which measures alone",
    ]
    return Table("scaling", "How time grows", rows, notes)


def volume_rows(place: Workspace, rounds: int) -> tuple[list[dict[str, Any]], str]:
    """Seconds of cohorts of several sizes, and what a straight line through them says."""
    sizes, n_slices = (2, 4, 8) if place.quick else (2, 4, 8, 16), 2
    paths = write_volumes(place.folder / "scaling", max(sizes), n_slices, 256)
    extractor, stores = FeatureExtractor(place.load()), count()

    def embed(n_volumes: int) -> None:
        store = EmbeddingStore(paths[0].parent / f"store-{next(stores)}")
        assert all(not one.from_cache for one in extract(paths[:n_volumes], extractor, store))

    seconds = take_turns({str(n): lambda n=n: embed(n) for n in sizes}, rounds)
    rows = [row("volumes", n, n * n_slices, seconds) for n in sizes]
    return rows, told_line(sizes, [median(seconds, str(n)) for n in sizes])


def told_line(sizes: tuple[int, ...], seconds: list[float]) -> str:
    """A note on the least-squares line of seconds against the number of volumes."""
    slope, intercept = np.polyfit(sizes, seconds, 1)
    fitted = slope * np.array(sizes) + intercept
    left = ((np.array(seconds) - fitted) ** 2).sum() / ((np.array(seconds) - np.mean(seconds)) ** 2).sum()
    return f"volumes: {slope:.4f} s each, intercept {intercept:.4f} s, R^2 {1 - left:.5f}"


def batch_rows(backbone: Backbone, batches: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Slices a second by slices in a pass; every way embeds the same slices."""
    n_slices = max(batches)
    pixels = prepared(n_slices)

    def embed(batch: int) -> None:
        for start in range(0, n_slices, batch):
            backbone.class_tokens(pixels[start : start + batch])

    seconds = take_turns({str(batch): lambda batch=batch: embed(batch) for batch in batches}, rounds)
    return [row("batch", batch, n_slices, seconds) for batch in batches]


def resolution_rows(backbone: Backbone, resolutions: tuple[tuple[int, int], ...], rounds: int) -> list[dict[str, Any]]:
    """Slices a second by the side at which the backbone sees them."""
    pixels = {side: prepared(n_slices, resize=side) for side, n_slices in resolutions}
    ways = {str(side): lambda side=side: backbone.class_tokens(pixels[side]) for side, _ in resolutions}
    seconds = take_turns(ways, rounds)
    return [row("resolution", side, n_slices, seconds) for side, n_slices in resolutions]


def core_rows(place: Workspace, n_slices: int, rounds: int) -> list[dict[str, Any]]:
    """Slices a second by cores, up to those there are."""
    cores = sorted(os.sched_getaffinity(0))
    numbers = [n for n in (1, 2, 4, 8) if n <= len(cores)]
    seconds: dict[str, list[float]] = {str(n): [] for n in numbers}
    for n in numbers:
        told = told_by("benchmarks.scaling", place.weights, place.cache_dir, n_slices, rounds, cores=cores[:n])
        assert told["cores"] == n
        seconds[str(n)].append(told["seconds"])
    return [row("cores", n, n_slices, seconds) for n in numbers]


def row(axis: str, value: int, n_slices: int, seconds: Seconds) -> dict[str, Any]:
    """A row of the table."""
    found = median(seconds, str(value))
    return {"axis": axis, "value": value, "slices": n_slices, "seconds": found, "slices_per_s": n_slices / found}


def embed_alone(weights: Path, cache_dir: Path, n_slices: int, rounds: int) -> dict[str, Any]:
    """Cores of this process and median seconds of a pass on them."""
    backbone = load_backbone(weights, device="cpu", cache_dir=cache_dir)
    pixels = prepared(n_slices)
    seconds = take_turns({"pass": lambda: backbone.class_tokens(pixels)}, rounds)["pass"]
    return {"cores": len(os.sched_getaffinity(0)), "seconds": statistics.median(seconds)}


if __name__ == "__main__":
    print(json.dumps(embed_alone(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
