"""Resident memory that embedding a volume adds to a loaded, warm engine; each volume in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, judged
from benchmarks.children import told_by
from benchmarks.table import Table

ADDED_MIB = Bar(1024, " MiB", "less than")

PROCESS_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells a process its memory, and where it takes the order to forget the peak."""

FORGET_PEAK = "5"
"""The order."""


def measure(quick: bool) -> Table:
    """MiB of the warm engine and MiB added at the peak, by number of slices."""
    from benchmarks.heads import write_volume
    from benchmarks.workspace import workspace

    sizes, side = ((4, 12), 128) if quick else ((30, 100, 300), 512)
    place = workspace(quick)
    place.load()
    warm_up = write_volume(place.folder / "warm_up.nii.gz", 16, side, seed=3)
    rows = []
    for n_slices in sizes:
        path = write_volume(place.folder / f"memory_{n_slices}.nii.gz", n_slices, side, seed=4)
        told = told_by("benchmarks.memory", place.weights, place.cache_dir, warm_up, path)
        rows.append({"slices": n_slices, "stored_mib": n_slices * side * side * 2 / 2**20, **told})
    notes = [
        *judged(quick, [ADDED_MIB.verdict(f"added by {sizes[-1]} slices", rows[-1]["peak_mib_added"])]),
        f"{side} x {side} int16 .nii.gz; features.extract in a fresh process whose engine has "
        "embedded 16 other slices; the peak is VmHWM, made to forget all before",
    ]
    return Table("memory", "Memory of embedding a volume", rows, notes)


def embed_once(weights: Path, cache_dir: Path, warm_up: Path, path: Path) -> dict[str, Any]:
    """Resident MiB of the warm engine, and how far embedding the volume raised the peak above it."""
    from meddinov3_stroke.backbone import load_backbone
    from meddinov3_stroke.features import FeatureExtractor, extract

    extractor = FeatureExtractor(load_backbone(weights, device="cpu", cache_dir=cache_dir))
    list(extract([warm_up], extractor))
    CLEAR_REFS.write_text(FORGET_PEAK, encoding="ascii")
    before_mib = memory_mib("VmRSS")
    list(extract([path], extractor))
    return {"engine_mib": before_mib, "peak_mib_added": memory_mib("VmHWM") - before_mib}


def memory_mib(name: str) -> float:
    """A field of the process's status, such as VmRSS."""
    lines = PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(embed_once(*map(Path, sys.argv[1:5]))))
