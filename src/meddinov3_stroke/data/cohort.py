"""Cases of a public cohort as a series table, with labels of slices where there are any, and a ledger of all cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int8

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, slice_label_table, write_slice_labels
from meddinov3_stroke.data.table import SeriesTable, read_series_table
from meddinov3_stroke.errors import (
    STATUSES,
    CorruptInput,
    MedDINOError,
    Outcome,
    SeriesTableError,
    UnsupportedInput,
    name_some,
)
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.types import LABELS, Volume

_MASK_TOLERANCE_VOXELS = 0.5
"""How far a corner of a mask may be from its volume's, in shares of the smallest voxel side."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was written of a cohort.

    `facts` go into the summary, with the `ledger` of every case, image and series; `n_failed` counts those that could
    not be read this time, for the machine's reasons.
    """

    table: SeriesTable
    facts: dict[str, Any]
    files: dict[str, Path]
    warnings: tuple[str, ...]
    n_failed: int


@dataclass(frozen=True, eq=False)
class CohortCase:
    """One case of a cohort and its outcome; a case that is done is a row of the table.

    `kind` is `usable`, `missing`, `unlabelled` or `undecided`, else the outcome's status. `columns` is the row of the
    table: identities, volume, what else the cohort knows, and the six labels. `slices` has its slice labels.
    """

    name: str
    outcome: Outcome = field(default_factory=Outcome)
    kind: str = "usable"
    columns: Mapping[str, Any] = field(default_factory=dict)
    slices: pa.Table | None = None

    @classmethod
    def failed(cls, name: str, error: MedDINOError) -> CohortCase:
        """The case whose volume, mask or labels raised `error`."""
        outcome = Outcome.of(error)
        return cls(name, outcome, outcome.status)

    @classmethod
    def left_out(cls, name: str, kind: str, reason: str) -> CohortCase:
        """The case of this kind that cannot be a row of the table, although nothing failed."""
        return cls(name, Outcome("rejected", message=reason), kind)

    @classmethod
    def labelled(
        cls, name: str, volume: Volume, mask: Path | None, labels: Int8[np.ndarray, "slice 6"], *, patient_id: str
    ) -> CohortCase:
        """The usable case of one NIfTI file, which names its study and series, with the labels of its slices."""
        columns = {
            "patient_id": patient_id,
            "study_uid": name,
            "series_uid": name,
            "nifti_path": volume.source.path.resolve().as_posix(),
            "mask": "" if mask is None else mask.resolve().as_posix(),
            "n_slices": volume.n_slices,
            **dict(zip(LABELS, labels.max(axis=0).tolist(), strict=True)),
        }
        series_uid, sop_uid = (pa.array([text] * volume.n_slices, pa.string()) for text in (name, ""))
        slices = slice_label_table(series_uid, np.arange(volume.n_slices), sop_uid, volume.slice_positions_mm, labels)
        return cls(name, columns=columns, slices=slices)


def write_cohort(
    name: str,
    cases: Sequence[CohortCase],
    output_dir: Path,
    *,
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    label_policy: LabelPolicy = "strict",
) -> Prepared:
    """The tables of a cohort, written to `<name>_series_labels.csv` and, where slices have labels, beside it."""
    cases = sorted(cases, key=lambda case: case.name)
    usable = [case for case in cases if case.outcome.status == "done"]
    if not usable:
        first = f"; the first is {cases[0].kind}: {cases[0].outcome.reason}" if cases else ""
        raise SeriesTableError(f"{name}: none of {len(cases)} cases is usable{first}")
    files = {"series_csv": output_dir / f"{name}_series_labels.csv"}
    frame = pd.DataFrame([case.columns for case in usable])
    write_text(files["series_csv"], frame.to_csv(index=False, lineterminator="\n"))
    slices = [case.slices for case in usable if case.slices is not None]
    if slices:
        files["slice_labels"] = output_dir / SLICE_LABELS
        write_slice_labels(files["slice_labels"], pa.concat_tables(slices))
    table = read_series_table(files["series_csv"], label_policy=label_policy)
    ledger, left_out = _ledger(cases)
    warnings = (*warnings, *left_out, *table.warnings)
    return Prepared(table, {"ledger": ledger, **facts}, files, warnings, ledger["by_outcome"]["failed"])


def mask_values(path: Path, volume: Volume) -> list[frozenset[int]]:
    """The values other than 0 in each canonical slice of the mask of `volume` at `path`.

    Raises:
        InputError: the mask has another shape or place than the volume, or values that are not whole numbers; or as
            `read_volume`.
    """
    mask = read_volume(path)
    if mask.stored.shape != volume.stored.shape:
        found, expected = (" x ".join(map(str, one.stored.shape)) for one in (mask, volume))
        raise UnsupportedInput(f"{path} has {found} voxels; expected its volume's {expected}")
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in mask.stored.shape])).reshape(3, -1)
    moved = (mask.affine - volume.affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    furthest_mm = float(np.linalg.norm(moved, axis=0).max())
    if furthest_mm > _MASK_TOLERANCE_VOXELS * min(volume.spacing_mm):
        raise UnsupportedInput(f"{path} lies up to {furthest_mm:.1f} mm off its volume; expected the same affine")
    values = [np.unique(of_slice).astype(np.float64) * mask.slope + mask.intercept for of_slice in mask.stored]
    voxels = np.concatenate(values)
    fractions = voxels[~np.isclose(voxels, np.rint(voxels), atol=1e-3)]
    if fractions.size:
        raise CorruptInput(f"{path} contains {fractions[0]:g}; expected whole numbers")
    return [frozenset(int(value) for value in np.rint(of_slice) if value != 0) for of_slice in values]


def _ledger(cases: Sequence[CohortCase]) -> tuple[dict[str, Any], list[str]]:
    """(counts by kind and by outcome, which both sum to n_cases, and every case not in the table; warnings)."""
    outcomes, kinds = Counter(case.outcome.status for case in cases), Counter(case.kind for case in cases)
    by_kind = {kind: [case for case in cases if case.kind == kind] for kind in kinds}
    ledger = {
        "n_cases": len(cases),
        "by_status": dict(kinds),
        "by_outcome": {status: outcomes[status] for status in STATUSES},
        "left_out": [
            {"case": case.name, "status": case.kind, "reason": case.outcome.reason}
            for case in cases
            if case.outcome.status != "done"
        ],
    }
    warnings = [
        f"{len(some)} of {len(cases)} cases are {kind} and not in the table: {name_some(case.name for case in some)}; "
        f"the first: {some[0].outcome.reason}"
        for kind, some in by_kind.items()
        if kind != "usable"
    ]
    return ledger, warnings
