"""Reading .nii.gz against nibabel, and what other inflaters than zlib would save; each reading in a fresh process."""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Int16

from benchmarks.table import Table
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.nifti import PIECE_BYTES, READ_BYTES
from meddinov3_stroke.system.provenance import peak_resident_mib

ROOT = Path(__file__).resolve().parents[1]

INFLATERS = ("zlib", "isal.isal_zlib", "zlib_ng.zlib_ng")
"""Modules with zlib's interface; all but the first are measured only where somebody installed them."""

PROCESS_STATUS = Path("/proc/self/status")
"""Where Linux tells a process its own peak; `getrusage` starts a child at the peak of its parent."""


def measure(quick: bool) -> Table:
    """Seconds, milliseconds a slice and peak memory of each way to read, the ways taking turns; medians of rounds."""
    side, sizes, rounds = (128, (4, 12), 1) if quick else (512, (30, 300), 5)
    inflaters = [name for name in INFLATERS if _is_installed(name)]
    ways = ["read_volume", "nibabel", *(f"inflate {name}" for name in inflaters)]
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        warm_up = write_head(Path(folder) / "warm_up.nii.gz", 2, 16)
        for n_slices in sizes:
            path = write_head(Path(folder) / f"{n_slices}.nii.gz", n_slices, side)
            rows += [row(way, n_slices, side, runs) for way, runs in take_turns(ways, warm_up, path, rounds).items()]
    return Table("reading", "Reading a .nii.gz volume", rows, notes(rounds, inflaters))


def notes(rounds: int, inflaters: list[str]) -> list[str]:
    """What the rows compare, and what was not there to be compared."""
    absent = [name for name in INFLATERS if name not in inflaters]
    told = [
        f"int16 noise around a head, gzip level 6; median of rounds that take turns ({rounds}), a fresh process each",
        "read_volume checks every byte, hashes file and pixels and gives canonical order; nibabel is "
        "np.asanyarray(image.dataobj), which never reaches the CRC, hashes nothing and keeps the file's order",
        f"inflate is the gzip stream alone, read in {READ_BYTES >> 10} KiB and inflated in pieces of at most "
        f"{PIECE_BYTES >> 10} KiB, as read_volume does with zlib",
        "peak_mib_added is the process's peak above what it was after a tiny volume",
    ]
    return told + ([f"not installed, so not compared: {', '.join(absent)}"] if absent else [])


def write_head(path: Path, n_slices: int, side: int) -> Path:
    """`path`, written as a noisy ellipse of bone and brain, its rows to anterior as dcm2niix writes them."""
    image = nib.Nifti1Image(noisy_head(n_slices, side).T[:, ::-1], np.diag([-0.5, 0.5, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
    return path


def noisy_head(n_slices: int, side: int) -> Int16[np.ndarray, "slice row col"]:
    """HU with the noise that decides how fast a CT inflates: 8 HU in the head, 4 HU in air."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    radius = np.hypot(row / 0.9, col / 0.75)
    mean_hu = np.select([radius < 0.9, radius < 1], [35.0, 900.0], -1000.0)
    noise_hu = np.where(radius < 1, 8.0, 4.0)
    slices = [np.maximum(rng.normal(mean_hu, noise_hu), -1024).astype(np.int16) for _ in range(n_slices)]
    return np.stack(slices)


def take_turns(ways: list[str], warm_up: Path, path: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each process told of itself, by way."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.reading", way, str(warm_up), str(path)]
            told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            runs[way].append(json.loads(told))
    return runs


def row(way: str, n_slices: int, side: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    """A row of the table."""
    seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "way": way,
        "slices": n_slices,
        "stored_mib": n_slices * side * side * 2 / 2**20,
        "seconds": seconds,
        "ms_per_slice": 1000 * seconds / n_slices,
        "peak_mib_added": statistics.median(run["peak_mib_added"] for run in runs),
    }


def read_once(way: str, warm_up: Path, path: Path) -> dict[str, float]:
    """Seconds of one reading in this process and how far it raised the peak of resident memory."""
    read = _reader(way)
    read(warm_up)
    before_mib, start = _peak_mib(), time.perf_counter()
    _kept = read(path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib_added": _peak_mib() - before_mib}


def _reader(way: str) -> Callable[[Path], Any]:
    if way == "read_volume":
        return read_volume
    if way == "nibabel":
        return lambda path: np.asanyarray(nib.load(path).dataobj)
    module = import_module(way.removeprefix("inflate "))
    return lambda path: inflate(module, path)


def inflate(module: Any, path: Path) -> int:
    """Bytes in the gzip stream of the file; nothing of them is kept."""
    decoder, n_bytes = module.decompressobj(31), 0
    with path.open("rb", buffering=0) as handle:
        while rest := handle.read(READ_BYTES):
            while rest:
                n_bytes += len(decoder.decompress(rest, PIECE_BYTES))
                rest = decoder.unconsumed_tail
    assert decoder.eof
    return n_bytes


def _is_installed(name: str) -> bool:
    return find_spec(name.partition(".")[0]) is not None


def _peak_mib() -> float:
    if not PROCESS_STATUS.exists():
        return peak_resident_mib()
    line = next(line for line in PROCESS_STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(read_once(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
