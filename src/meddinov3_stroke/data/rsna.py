"""RSNA 2019 as Kaggle distributes it -> header index, series table, slice labels and, if asked for, NIfTI copies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from meddinov3_stroke.ct import open_input
from meddinov3_stroke.ct.writing import POSITION_TOLERANCE_MM, misplaced_mm, nifti_bytes_of, slices_document
from meddinov3_stroke.data.cohort import Prepared
from meddinov3_stroke.data.csv_file import read_id_list
from meddinov3_stroke.data.header_pass import HeaderPass, in_processes, read_headers_of_folder
from meddinov3_stroke.data.rsna_series import assemble_rows, write_header_index
from meddinov3_stroke.data.rsna_tables import LabelledSeries, label_series, ledger_document, ledger_warnings
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, ConflictPolicy, read_slice_labels, write_slice_labels
from meddinov3_stroke.data.table import IDENTITY_COLUMNS, read_series_table
from meddinov3_stroke.errors import InputError, LabelError, MachineError, Outcome, OutOfScope, SeriesTableError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_text
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.progress import finish_on_interrupt, progress_bar
from meddinov3_stroke.system.provenance import Stopwatch, provenance
from meddinov3_stroke.types import VolumeInput

LABELS_CSV, IMAGES_FOLDER = "stage_2_train.csv", "stage_2_train"
"""Contents of Kaggle's folder (the competition's data page)."""

FILES = {
    "series_csv": "rsna_hemorrhage_series_labels.csv",
    "header_index": "header_index.parquet",
    "slice_labels": SLICE_LABELS,
}

PARTS_FOLDER = "header_parts"
"""Folder of every header that was read. It may be deleted afterwards; a later run then reads the headers again."""

NIFTI_FOLDER = "nifti"
UNKNOWN_PATIENT = "unknown"  # folder of patients without an ID

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # an ID that may be part of a path; `../../x` may not


@dataclass(frozen=True)
class _NiftiCopy:
    """One series as NIfTI, or why it could not be written."""

    series_uid: str
    path: Path | None = None
    outcome: Outcome = field(default_factory=Outcome)
    was_there: bool = False  # written by an earlier run from the same bytes
    misplaced_mm: float = 0.0  # how far NIfTI's one affine puts the furthest slice from where it was acquired


def prepare_rsna(
    root: Path,
    output_dir: Path,
    *,
    exclude_ids: Path | None = None,
    label_policy: LabelPolicy = "strict",
    conflicting_labels: ConflictPolicy = "stop",
    workers: int = 1,
    write_nifti: bool = False,
    show_progress: bool = False,
) -> Prepared:
    """The series table of Kaggle's folder `root`, written with its header index and slice labels.

    `workers` processes read headers. With `write_nifti` each series is written as NIfTI too, and the table names these.

    Raises:
        DatasetError: as `read_slice_labels`; no series is left, or `read_series_table` refuses the table.
        InputError: no folder of images, or an empty one.
        MachineError: the machine refuses to read or write.
    """
    watch, seconds = Stopwatch(), dict[str, float]()

    def lap(name: str) -> None:
        seconds[name] = round(watch.elapsed_s - sum(seconds.values()), 3)

    images_folder, files = root / IMAGES_FOLDER, {name: output_dir / file for name, file in FILES.items()}
    ids = None if exclude_ids is None else read_id_list(exclude_ids)
    _require_labels(root)
    labels = read_slice_labels(root / LABELS_CSV, conflicts=conflicting_labels, policy=label_policy)
    lap("labels")
    parts = output_dir / PARTS_FOLDER
    headers = read_headers_of_folder(images_folder, parts, workers=workers, show_progress=show_progress)
    lap("headers")
    images = assemble_rows(headers.rows, images_folder)
    found = label_series(images, labels, ids)
    _require_series(found, root)
    lap("series")
    write_header_index(files["header_index"], images, images_folder)
    lap("index")
    copies: list[_NiftiCopy] = []
    if write_nifti:
        copies = _write_copies(found, files["header_index"], output_dir, workers, show_progress)
        _require_series(found, root)
        lap("nifti")
    write_slice_labels(files["slice_labels"], found.slice_labels)
    _write_table(found, files, copies)
    table = read_series_table(files["series_csv"], label_policy=label_policy)  # as the pipeline will read it
    lap("writing")
    exclusion, ledger = found.exclusion, ledger_document(found)
    facts = {
        "ledger": ledger,
        "exclusion": None if exclusion is None else exclusion.document,
        "headers": _headers_document(headers, workers, seconds["headers"]),
        "nifti": _copies_document(copies) if copies else None,
        "seconds": seconds,
    }
    about = (*labels.warnings, *(exclusion.warnings if exclusion else ()), *table.warnings)
    warnings = (*about, *ledger_warnings(ledger), *_copies_warnings(facts["nifti"]))
    n_failed = ledger["images"]["failed"] + ledger["series"]["by_outcome"]["failed"]
    return Prepared(replace(table, exclusion=exclusion), facts, files, warnings, n_failed)


def _require_labels(root: Path) -> None:
    """Raise `LabelError` with the folder that `--root` should be, if the labels are not in `root` but near it."""
    if (root / LABELS_CSV).exists():
        return
    for path in (root.parent / LABELS_CSV, *root.glob(f"*/{LABELS_CSV}"), *root.glob(f"*/*/{LABELS_CSV}")):
        if path.is_file():
            raise LabelError(f"no {LABELS_CSV} in {root}; it is in {path.parent}; pass --root {path.parent}")
    for path in root.glob("stage_1_train*.csv"):
        raise LabelError(
            f"no {LABELS_CSV} in {root}; found {path.name}, of the first stage; download stage 2, which contains it, "
            f"or rename {path.name} to {LABELS_CSV} and its folder of images to {IMAGES_FOLDER}"
        )


def _write_copies(
    found: LabelledSeries, index: Path, output_dir: Path, workers: int, show_progress: bool
) -> list[_NiftiCopy]:
    """A copy of each series, or why there is none; finished files remain and are not written again."""
    series = list(found.frame[list(IDENTITY_COLUMNS)].itertuples(index=False, name=None))
    write = partial(_write_copy, index=index, folder=output_dir / NIFTI_FOLDER)
    copies = []
    with (
        progress_bar("NIfTI", len(series), "series", show_progress) as advance,
        finish_on_interrupt("series") as stop,
        closing(in_processes(write, series, workers if len(series) > workers else 1)) as written,
    ):
        for copy in written:
            copies.append(copy)
            advance()
            stop.check()
    for copy in copies:
        if copy.path is None:
            found.end([copy.series_uid], copy.outcome.status, copy.outcome.status, copy.outcome.reason)
    return copies


def _require_series(found: LabelledSeries, root: Path) -> None:
    if found.usable.empty:
        first = "".join(f", the first {one.kind}: {one.reason}" for one in found.series.iloc[:1].itertuples())
        raise SeriesTableError(f"{root}: no series is left for the table; found {len(found.series)} series{first}")


def _write_table(found: LabelledSeries, files: dict[str, Path], copies: Sequence[_NiftiCopy]) -> None:
    frame = found.frame
    if copies:
        paths = {copy.series_uid: copy.path.resolve().as_posix() for copy in copies if copy.path is not None}
        frame.insert(3, "nifti_path", frame["series_uid"].map(paths))
    else:
        frame.insert(3, "header_index", files["header_index"].resolve().as_posix())
    write_text(files["series_csv"], frame.to_csv(index=False, lineterminator="\n"))


def _headers_document(headers: HeaderPass, workers: int, reading_s: float) -> dict[str, Any]:
    n_read = headers.n_read_now
    return {
        "n_files": headers.n_files,
        "n_read_now": n_read,
        "n_known_before": headers.n_files - n_read,
        "workers": workers,
        "files_per_s": round(n_read / reading_s, 1) if reading_s and n_read else None,
    }


def _copies_document(copies: Sequence[_NiftiCopy]) -> dict[str, Any]:
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


def _copies_warnings(counts: Mapping[str, Any] | None) -> Iterator[str]:
    if counts and counts["n_misplaced"]:
        yield (
            f"NIfTI cannot hold the positions of {counts['n_misplaced']} series whose slices are not evenly spaced "
            f"(off by up to {counts['most_misplaced_mm']:g} mm); the true ones are in the .slices.json beside each"
        )


def _write_copy(identity: tuple[str, str, str], *, index: Path, folder: Path) -> _NiftiCopy:
    names = (identity[0] or UNKNOWN_PATIENT, *identity[1:])
    if not all(_SAFE.fullmatch(name) for name in names):
        return _NiftiCopy(names[2], outcome=Outcome("refused", message="an ID that cannot be part of a file name"))
    path, beside = (folder / names[0] / names[1] / f"_{names[2]}{ending}" for ending in (".nii.gz", ".slices.json"))
    try:
        opened = open_input(VolumeInput(index, names[2]))
        known = _known(path, beside)
        if known and known["input_sha256"] == opened.digest:
            return _NiftiCopy(names[2], path, was_there=True, misplaced_mm=known["nifti_misplaces_slices_by_mm"])
        volume = opened.volume()
    except (InputError, OutOfScope, MachineError) as error:
        return _NiftiCopy(names[2], outcome=Outcome.of(error))
    write_bytes(path, nifti_bytes_of(volume))
    facts = {"input_sha256": volume.source.sha256, "nifti_sha256": sha256_of_file(path)}
    write_json(beside, {**provenance(), **facts, "warnings": list(volume.warnings), **slices_document(volume)})
    return _NiftiCopy(names[2], path, misplaced_mm=misplaced_mm(volume))


def _known(path: Path, beside: Path) -> Mapping[str, Any] | None:
    """The facts that an earlier run recorded of a file, None if it is absent or has changed."""
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        is_same = facts["nifti_sha256"] == sha256_of_file(path) and "input_sha256" in facts
        return facts if is_same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
