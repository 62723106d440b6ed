"""`extract` in worker processes and on Ray against one process on the same cores; what a case costs in a long run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.bars import Bar, judged
from benchmarks.heads import write_volumes
from benchmarks.rounds import median, take_turns
from benchmarks.table import Table
from benchmarks.workspace import workspace
from meddinov3_stroke.types import LABELS

OVERHEAD = Bar(1.10, "x", "less than")
WAYS = {"one process": (), "--workers 2": ("--workers", "2"), "Ray": ("--ray", "local", "--ray-cpus", "1")}


def measure(quick: bool) -> Table:
    """Seconds of whole commands on few and on more volumes, in turns; what a further volume costs is the difference."""
    place = workspace(quick)
    place.load()
    few, more, n_slices, rounds = (2, 4, 2, 1) if quick else (10, 40, 8, 3)
    runs = _Runs(place.folder, write_volumes(place.folder / "large", more, n_slices, 256), place.weights)
    ways = {
        f"{name}, {n} volumes": (lambda n=n, flags=flags: runs.extract(n, *flags))
        for name, flags in WAYS.items()
        for n in (few, more)
    }
    seconds = take_turns(ways, rounds, warm_ups=0)
    whole = {name: [median(seconds, f"{name}, {n} volumes") for n in (few, more)] for name in WAYS}
    each = {name: (high - low) / (more - few) for name, (low, high) in whole.items()}
    rows = [
        {"way": name, f"{few}_volumes_s": low, f"{more}_volumes_s": high, "further_volume_s": each[name]}
        for name, (low, high) in whole.items()
    ]
    verdicts = [OVERHEAD.verdict(f"{name}, a further volume", each[name] / each["one process"]) for name in WAYS]
    notes = [
        *judged(quick, verdicts),
        f"volumes of {n_slices} slices, 256 x 256, ViT-B/16; medians of {rounds} rounds; Ray starts in every run",
        _long_runs(quick, place.folder),
    ]
    return Table("workers", "Worker processes and Ray", rows, notes)


def _long_runs(quick: bool, folder: Path) -> str:
    numbers = (4, 8) if quick else (100, 300, 1000, 3000, 10_000)
    runs = _Runs(folder, write_volumes(folder / "small", max(numbers), 4, 64), Path("demo"))
    took = [take_turns({"run": lambda n=n: runs.extract(n, "--workers", "2")}, 1, 0)["run"][0] for n in numbers]
    slope, start = np.polyfit(numbers, took, 1)
    squared = np.corrcoef(numbers, took)[0, 1] ** 2
    return (
        f"a case of 4 slices of 64 x 64 (demo backbone, --workers 2), {numbers[0]} to {numbers[-1]} cases: "
        f"{1000 * slope:.1f} ms + {start:.1f} s; R2 {squared:.5f}"
    )


class _Runs:
    """Whole commands on a table of the first volumes, each with a cache of its own."""

    def __init__(self, folder: Path, volumes: Sequence[Path], backbone: Path) -> None:
        self.folder, self.volumes, self.backbone, self._numbers = folder, volumes, backbone, count()

    def extract(self, n: int, *flags: str) -> None:
        out = self.folder / f"{self.backbone.stem}{next(self._numbers)}"
        out.mkdir()
        lines = [",".join(["nifti_path", "study_uid", *LABELS])]
        lines += [f"{path.resolve()},1.{k},0,0,0,0,0,0" for k, path in enumerate(self.volumes[:n])]
        (out / "table.csv").write_text("\n".join(lines))
        words = ["--series-csv", "table.csv", "--backbone", self.backbone, "--cache-dir", "cache", "-o", "out"]
        command = [sys.executable, "-m", "meddinov3_stroke", "extract", *map(str, words), "--device", "cpu", "--quiet"]
        subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL, cwd=out)
