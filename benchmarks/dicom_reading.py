"""Reading a DICOM series against plain pydicom decoding of the same files, for raw and compressed syntaxes."""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Integer

from benchmarks.bars import Bar, judged
from benchmarks.reading import noisy_head
from benchmarks.rounds import median, take_turns
from benchmarks.table import Table
from meddinov3_stroke.ct import read_volume

OVER_PYDICOM = Bar(2, "x", "less than")

SYNTAXES = ("explicit", "rle", "jpeg_ls", "jpeg_2000_lossless", "jpeg_lossless_sv1")
"""The bar is for the first, raw one."""


def measure(quick: bool) -> Table:
    """Milliseconds a slice of read_volume and of pydicom, taking turns, and their ratio."""
    n_slices, side, rounds = (4, 64, 1) if quick else (40, 512, 9)
    hu = noisy_head(n_slices, side)
    with TemporaryDirectory() as folder:
        rows = [row(syntax, hu, Path(folder, syntax), rounds) for syntax in SYNTAXES]
    verdict = OVER_PYDICOM.verdict("raw syntax, read_volume over pydicom", rows[0]["over_pydicom"])
    notes = [
        *judged(quick, [verdict]),
        f"{n_slices} files of {side} x {side} int16; medians of {rounds} rounds that take turns, files in the system's "
        "cache; the ratio is the median of those within a round",
        "pydicom is dcmread and pixel_array of each file, in this process; read_volume walks every element, orders by "
        "position, hashes files and voxels, gives HU in canonical order, and decodes compressed frames in its child",
    ]
    return Table("dicom_reading", "Reading a DICOM series", rows, notes)


def row(syntax: str, hu: Integer[np.ndarray, "slice row col"], folder: Path, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from dicom_writer import DicomOptions, axial_geometry, write_dicom_series

    geometry = axial_geometry([5.0] * (len(hu) - 1), hu.shape[1:], pixel_spacing_mm=(0.5, 0.5))
    write_dicom_series(folder, hu, geometry, DicomOptions(transfer_syntax=syntax))
    ways = {"read_volume": partial(read_volume, folder), "pydicom": partial(decode_all, folder)}
    seconds = take_turns(ways, rounds)
    ratios = [ours / theirs for ours, theirs in zip(seconds["read_volume"], seconds["pydicom"], strict=True)]
    return {
        "transfer_syntax": syntax,
        "read_volume_ms_per_slice": 1000 * median(seconds, "read_volume") / len(hu),
        "pydicom_ms_per_slice": 1000 * median(seconds, "pydicom") / len(hu),
        "over_pydicom": statistics.median(ratios),
    }


def decode_all(folder: Path) -> Integer[np.ndarray, "file row col"]:
    """Stored values of every file, in the order of names."""
    return np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.glob("*.dcm"))])
