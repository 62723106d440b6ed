"""The series of a header index as NIfTI files, each with the true positions of its slices beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from meddinov3_stroke.ct import open_input
from meddinov3_stroke.ct.writing import POSITION_TOLERANCE_MM, misplaced_mm, nifti_bytes_of, slices_document
from meddinov3_stroke.data.processes import in_processes
from meddinov3_stroke.data.rsna_series import PreparedSeries
from meddinov3_stroke.errors import InputError, MachineError, Outcome, OutOfScope
from meddinov3_stroke.system.atomic import write_bytes, write_json
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.types import VolumeInput

NIFTI_FOLDER = "nifti"
UNKNOWN_PATIENT = "unknown"
"""Folder of patients without an ID."""

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""An ID that may be part of a path; `../../x` may not."""


@dataclass(frozen=True)
class NiftiCopy:
    """One series as NIfTI, or why it could not be written."""

    series_uid: str
    path: Path | None = None
    outcome: Outcome = field(default_factory=Outcome)
    was_there: bool = False
    """An earlier run wrote it, from the same bytes."""
    misplaced_mm: float = 0.0
    """How far NIfTI's one affine puts the furthest slice from where it was acquired."""


def write_nifti_copies(
    series: Sequence[PreparedSeries], index: Path, output_dir: Path, *, workers: int, show_progress: bool
) -> list[NiftiCopy]:
    """A copy of each series: `nifti/<patient>/<study>/_<series>.nii.gz` below `output_dir`, or why there is none.

    Raises:
        MachineError: a file cannot be written, or a process died.
        KeyboardInterrupt: SIGINT; finished files stay and are not written again.
    """
    copies = []
    write = partial(_write_copy, index=index, folder=output_dir / NIFTI_FOLDER)
    with (
        progress_bar("NIfTI", len(series), "series", show_progress) as advance,
        finish_on_interrupt("series") as stop,
        closing(in_processes(write, series, workers if len(series) > workers else 1)) as found,
    ):
        for copy in found:
            copies.append(copy)
            advance()
            stop.check()
    return copies


def copies_document(copies: Sequence[NiftiCopy]) -> dict[str, Any]:
    """Counts for JSON: n_series = n_written + n_from_before + n_without."""
    there = [copy for copy in copies if copy.path is not None]
    return {
        "n_series": len(copies),
        "n_written": sum(not copy.was_there for copy in there),
        "n_from_before": sum(copy.was_there for copy in there),
        "n_without": len(copies) - len(there),
        "n_misplaced": sum(copy.misplaced_mm > POSITION_TOLERANCE_MM for copy in there),
        "most_misplaced_mm": round(max((copy.misplaced_mm for copy in there), default=0.0), 3),
    }


def copies_warnings(copies: Sequence[NiftiCopy]) -> tuple[str, ...]:
    """One if slices are not where NIfTI puts them."""
    counts = copies_document(copies)
    if not counts["n_misplaced"]:
        return ()
    return (
        f"NIfTI cannot hold the positions of {counts['n_misplaced']} series whose slices are not evenly spaced (off by "
        f"up to {counts['most_misplaced_mm']:g} mm); the true ones are in the .slices.json beside each",
    )


def _write_copy(one: PreparedSeries, *, index: Path, folder: Path) -> NiftiCopy:
    names = (one.patient_id or UNKNOWN_PATIENT, one.study_uid, one.series_uid)
    if not all(_SAFE.fullmatch(name) for name in names):
        unsafe = Outcome("refused", message="an ID that cannot be part of a file name")
        return NiftiCopy(one.series_uid, outcome=unsafe)
    path = folder / names[0] / names[1] / f"_{names[2]}.nii.gz"
    beside = path.with_name(f"_{names[2]}.slices.json")
    try:
        opened = open_input(VolumeInput(index, one.series_uid))
        known = _known(path, beside)
        if known and known["input_sha256"] == opened.digest:
            misplaced = float(known["nifti_misplaces_slices_by_mm"])
            return NiftiCopy(one.series_uid, path, was_there=True, misplaced_mm=misplaced)
        volume = opened.volume()
    except (InputError, OutOfScope, MachineError) as error:
        return NiftiCopy(one.series_uid, outcome=Outcome.of(error))
    write_bytes(path, nifti_bytes_of(volume))
    facts = {"input_sha256": volume.source.sha256, "nifti_sha256": sha256_of_file(path)}
    write_json(beside, {**provenance(), **facts, "warnings": list(volume.warnings), **slices_document(volume)})
    return NiftiCopy(one.series_uid, path, misplaced_mm=misplaced_mm(volume))


def _known(path: Path, beside: Path) -> Mapping[str, Any] | None:
    """The facts that an earlier run recorded of a file, None if it is absent or has changed."""
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        is_same = facts["nifti_sha256"] == sha256_of_file(path) and "input_sha256" in facts
        return facts if is_same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
