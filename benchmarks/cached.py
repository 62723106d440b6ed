"""The extraction stage over a cohort, embedded and then found in the cache; each run in a process of its own."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, judged
from benchmarks.children import told_by
from benchmarks.table import Table

TIMES_AS_FAST = Bar(50, "x")

ENGINES = ("torch", "openvino")
"""What a run that finds everything in the cache must not import."""


def measure(quick: bool) -> Table:
    """Seconds of the stage when all is computed and when all is cached, and which engines were imported."""
    from benchmarks.heads import write_volumes
    from benchmarks.workspace import workspace

    n_volumes, n_slices, side, repeats = (4, 2, 128, 1) if quick else (50, 11, 512, 3)
    place = workspace(quick)
    place.load()
    folder = place.folder / "cached"
    write_volumes(folder / "volumes", n_volumes, n_slices, side)
    arguments = (place.weights, place.cache_dir, folder / "volumes", folder / "store")
    first = told_by("benchmarks.cached", *arguments)
    again = [told_by("benchmarks.cached", *arguments) for _ in range(repeats)]
    shutil.rmtree(folder)
    assert (first["n_from_cache"], {run["n_from_cache"] for run in again}) == (0, {n_volumes})
    rows = [row("embedded", [first]), row("cached", again)]
    imported = sorted({name for run in again for name in run["engines_imported"]})
    notes = [
        *judged(quick, [TIMES_AS_FAST.verdict("cached over embedded", rows[0]["stage_s"] / rows[1]["stage_s"])]),
        f"engines imported by a cached run, expected none: {', '.join(imported) or 'none'}: "
        f"{'missed' if imported else 'met'}",
        f"{n_volumes} volumes of {n_slices} slices, {side} x {side}; the stage is load_backbone, FeatureExtractor and "
        f"extract, its imports included; one run embeds, the median of {repeats} finds all; records and graph "
        "of the weights were there before both",
    ]
    return Table("cached", "A cohort that is cached", rows, notes)


def row(run: str, told: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    return {
        "run": run,
        "stage_s": statistics.median(one["stage_s"] for one in told),
        "opening_s": statistics.median(one["opening_s"] for one in told),
        "from_cache": told[0]["n_from_cache"],
        "engines_imported": ", ".join(told[0]["engines_imported"]) or "none",
    }


def extract_once(weights: Path, cache_dir: Path, volumes: Path, store: Path) -> dict[str, Any]:
    """Seconds of the stage in this process, and what it imported."""
    paths = sorted(volumes.iterdir())
    start = time.perf_counter()
    from meddinov3_stroke.backbone import load_backbone
    from meddinov3_stroke.feature_extractor import FeatureExtractor
    from meddinov3_stroke.features import EmbeddingStore, InputMemory, extract

    extractor = FeatureExtractor(load_backbone(weights, cache_dir=cache_dir))
    opened = time.perf_counter()
    found = list(extract(paths, extractor, EmbeddingStore(store), memory=InputMemory(store)))
    end = time.perf_counter()
    assert all(one.error is None for one in found)
    return {
        "stage_s": end - start,
        "opening_s": opened - start,
        "n_from_cache": sum(one.from_cache for one in found),
        "engines_imported": [name for name in ENGINES if name in sys.modules],
    }


if __name__ == "__main__":
    print(json.dumps(extract_once(*map(Path, sys.argv[1:5]))))
