"""Which volumes int8 is made on and which it is measured on; no patient is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from meddinov3_stroke.data import SeriesTable
from meddinov3_stroke.errors import DatasetError, MissingInput, SplitError
from meddinov3_stroke.types import VolumeInput


@dataclass(frozen=True, eq=False)
class CalibrationVolume:
    """A volume, whose patient it is, and its labels where they are known."""

    input: VolumeInput
    group: str
    """What must not be on both sides: the patient, the study, or the file itself."""
    labels: Int8[np.ndarray, " label"] | None = None


def volumes_of_table(table: SeriesTable) -> list[CalibrationVolume]:
    """One volume a row.

    Raises:
        MissingInput: a row that names no volume; says which.
    """
    empty = [row for row, named in zip(table.rows, table.inputs, strict=True) if named is None]
    if empty:
        raise MissingInput(f"{table.name} row {empty[0]}: nifti_path is empty; mend the row")
    return [
        CalibrationVolume(named, group, labels)
        for named, group, labels in zip(table.inputs, table.groups, table.labels, strict=True)
        if named is not None
    ]


def volumes_of_paths(paths: Sequence[Path]) -> list[CalibrationVolume]:
    """One volume a file, each a patient of its own: nothing else is known of them."""
    return [CalibrationVolume(VolumeInput(path), str(path.resolve())) for path in paths]


def hold_out(
    volumes: Sequence[CalibrationVolume], share: float, seed: int
) -> tuple[list[CalibrationVolume], list[CalibrationVolume]]:
    """(volumes to calibrate on, volumes to measure on), drawn by group in an order that `seed` decides.

    Raises:
        DatasetError: fewer than two groups.
    """
    groups = sorted({volume.group for volume in volumes})
    if len(groups) < 2:
        raise DatasetError(
            f"int8 calibration needs volumes of at least 2 patients, found {len(groups)}: some to calibrate on, others "
            "to measure on; name more volumes"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    n_held_out = min(max(1, round(share * len(groups))), len(groups) - 1)
    held_out = {groups[k] for k in order[:n_held_out]}
    rank = {groups[k]: place for place, k in enumerate(order)}
    shuffled = sorted(volumes, key=lambda volume: rank[volume.group])
    return (
        [volume for volume in shuffled if volume.group not in held_out],
        [volume for volume in shuffled if volume.group in held_out],
    )


def refuse_copies(calibration_pixels: Sequence[str], check_pixels: Sequence[str]) -> None:
    """Nothing, where no volume measured on was calibrated on under another name.

    Raises:
        SplitError: the same pixels on both sides.
    """
    shared = set(calibration_pixels) & set(check_pixels)
    if shared:
        raise SplitError(
            f"{len(shared)} volume(s) measured on hold the same pixels as one calibrated on, under another name; "
            "remove the copies"
        )
