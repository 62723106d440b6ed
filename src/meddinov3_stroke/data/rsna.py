"""RSNA 2019 as Kaggle gives it -> header index, series table and slice labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from meddinov3_stroke.data.exclusion import Exclusion, read_id_list
from meddinov3_stroke.data.header_index import index_order, write_header_index
from meddinov3_stroke.data.header_pass import HeaderPass, read_headers_of_folder
from meddinov3_stroke.data.nifti_copies import NiftiCopy, copies_document, write_nifti_copies
from meddinov3_stroke.data.rsna_labels import ConflictPolicy, read_slice_labels
from meddinov3_stroke.data.rsna_ledger import ledger_document
from meddinov3_stroke.data.rsna_tables import LabelledSeries, label_series, leave_out, slice_label_pieces
from meddinov3_stroke.data.series_assembly import assemble_rows
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, write_slice_labels
from meddinov3_stroke.data.statuses import FAILED, USABLE
from meddinov3_stroke.data.table import SeriesTable, read_series_table
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.statistics import Stopwatch

LABELS_CSV, IMAGES_FOLDER = "stage_2_train.csv", "stage_2_train"
"""What Kaggle's folder holds (the competition's data page)."""

SERIES_CSV = "rsna_hemorrhage_series_labels.csv"
HEADER_INDEX = "header_index.parquet"
PARTS_FOLDER = "header_parts"
"""Files and the folder that are written. The folder keeps every header that was read; it may be deleted when all is
done, and a later run then reads them again."""


@dataclass(frozen=True, kw_only=True)
class RsnaOptions:
    """What is prepared, and how."""

    root: Path
    """Kaggle's folder."""
    output_dir: Path
    exclude_ids: Path | None = None
    label_policy: LabelPolicy = "strict"
    conflicting_labels: ConflictPolicy = "stop"
    workers: int = 1
    """Processes that read headers."""
    write_nifti: bool = False
    """Whether each series is written as NIfTI too, which the table then names."""
    show_progress: bool = False


@dataclass(frozen=True, eq=False)
class PreparedRsna:
    """What was written."""

    table: SeriesTable
    ledger: dict[str, Any]
    exclusion: Exclusion | None
    n_files: int
    n_headers_read: int
    """Files whose header this run read."""
    n_failed: int
    """Files and series that the machine did not give this time."""
    nifti: dict[str, Any] | None
    """Counts of the NIfTI files, where they were asked for."""
    seconds: dict[str, float]
    """Of each step."""
    files: dict[str, Path]
    warnings: tuple[str, ...]


def prepare_rsna(options: RsnaOptions) -> PreparedRsna:
    """The series table of a Kaggle folder, written with its header index and slice labels.

    Raises:
        LabelError: as `read_slice_labels`.
        SeriesTableError: no series is left, or the table that was written is not one.
        MissingInput: no folder of images, or an empty one.
        MachineError: the machine refuses to read or write.
        KeyboardInterrupt: SIGINT; headers that were read are kept.
    """
    seconds: dict[str, float] = {}
    ids = None if options.exclude_ids is None else read_id_list(options.exclude_ids)
    watch = Stopwatch()
    labels = read_slice_labels(
        options.root / LABELS_CSV, conflicts=options.conflicting_labels, policy=options.label_policy
    )
    seconds["labels"], watch = watch.elapsed_s, Stopwatch()
    images_folder = options.root / IMAGES_FOLDER
    headers = read_headers_of_folder(
        images_folder,
        options.output_dir / PARTS_FOLDER,
        workers=options.workers,
        show_progress=options.show_progress,
    )
    seconds["headers"], watch = watch.elapsed_s, Stopwatch()
    images = assemble_rows(headers.rows, images_folder)
    order = index_order(images)
    found = label_series(images, order, labels, ids)
    _require_series(found, options.root)
    seconds["series"], watch = watch.elapsed_s, Stopwatch()
    files = {name: options.output_dir / file for name, file in _FILES.items()}
    write_header_index(files["header_index"], images, order, images_folder)
    seconds["index"], watch = watch.elapsed_s, Stopwatch()
    copies: list[NiftiCopy] = []
    if options.write_nifti:
        found, copies = _with_copies(found, files["header_index"], options)
        _require_series(found, options.root)
        seconds["nifti"], watch = watch.elapsed_s, Stopwatch()
    write_slice_labels(files["slice_labels"], slice_label_pieces(found))
    table = _write_table(found, files, copies, options.label_policy)
    seconds["writing"] = watch.elapsed_s
    return _prepared(found, headers, table, seconds, files, copies)


def _with_copies(found: LabelledSeries, index: Path, options: RsnaOptions) -> tuple[LabelledSeries, list[NiftiCopy]]:
    """(what is left for the table, the copies of all)."""
    usable = [one for one in found.series if one.status == USABLE]
    copies = write_nifti_copies(
        usable, index, options.output_dir, workers=options.workers, show_progress=options.show_progress
    )
    faults = {copy.series_uid: (copy.status, copy.reason) for copy in copies if copy.path is None}
    return leave_out(found, faults), copies


_FILES = {"series_csv": SERIES_CSV, "header_index": HEADER_INDEX, "slice_labels": SLICE_LABELS}


def _prepared(
    found: LabelledSeries,
    headers: HeaderPass,
    table: SeriesTable,
    seconds: dict[str, float],
    files: dict[str, Path],
    copies: list[NiftiCopy],
) -> PreparedRsna:
    ledger = ledger_document(found)
    exclusion = found.exclusion
    return PreparedRsna(
        table=table,
        ledger=ledger,
        exclusion=exclusion,
        n_files=headers.n_files,
        n_headers_read=headers.n_read_now,
        n_failed=ledger["images"][FAILED] + ledger["series"][FAILED],
        nifti=copies_document(copies) if copies else None,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        files=files,
        warnings=(
            *found.labels.warnings,
            *(exclusion.warnings if exclusion else ()),
            *table.warnings,
            *_about(ledger),
            *_about_nifti(copies),
        ),
    )


def _require_series(found: LabelledSeries, root: Path) -> None:
    if found.frame.empty:
        series = found.series[0] if found.series else None
        why = (
            f"{len(found.series)} series, the first {series.status}: {series.reason}" if series else "no series at all"
        )
        raise SeriesTableError(f"{root}: no series is left for the table; found {why}")


def _write_table(
    found: LabelledSeries, files: dict[str, Path], copies: list[NiftiCopy], policy: LabelPolicy
) -> SeriesTable:
    """The table as the pipeline reads it back; writing one that it would refuse is found out here."""
    frame: pd.DataFrame = found.frame.copy()
    if copies:
        paths = {copy.series_uid: copy.path.resolve().as_posix() for copy in copies if copy.path is not None}
        frame.insert(3, "nifti_path", frame["series_uid"].map(paths))
    else:
        frame.insert(3, "header_index", files["header_index"].resolve().as_posix())
    write_text(files["series_csv"], frame.to_csv(index=False, lineterminator="\n"))
    return read_series_table(files["series_csv"], label_policy=policy)


def _about(ledger: dict[str, Any]) -> list[str]:
    """What a reader must know of the images and series that are not in the table."""
    warnings = []
    images, series, ends = ledger["images"], ledger["series"], ledger["labels"]["ends"]
    n_out = images["n_images"] - images["slice"]
    if n_out:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in list(images["by_reason"].items())[:3])
        warnings.append(f"{n_out} of {images['n_images']} images are no slice of a volume: {reasons}")
    n_bad = series["n_series"] - series["usable"] - series["excluded"]
    if n_bad:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in list(series["by_reason"].items())[:3])
        warnings.append(f"{n_bad} of {series['n_series']} series are not in the table: {reasons}")
    if ends["positive_any_in_no_series"]:
        warnings.append(
            f"{ends['positive_any_in_no_series']} images with a positive label are in no series: their files are not "
            "there, or too damaged to say which; a series that lacks one may be labelled negative though it is not"
        )
    n_beside = ends["positive_any_beside_the_slices_read"]
    if n_beside:
        warnings.append(
            f"{n_beside} images with a positive label are of series in the table but not among the slices that are "
            "read of them; the label of a series is the maximum of the slices that are read"
        )
    n_other = ledger["labels"]["copies"]["n_slices_with_other_labels"]
    if n_other:
        warnings.append(f"{n_other} slices have copies with other labels; each is positive for what any of them has")
    if ends["without_a_readable_file"]:
        warnings.append(f"{ends['without_a_readable_file']} labelled images have no file that can be read")
    if ledger["hu"]["n_slices_repaired"]:
        warnings.append(
            f"{ledger['hu']['n_slices_repaired']} slices of {ledger['hu']['n_series_repaired']} series have values "
            "that wrapped at 4096 beside an intercept that is not theirs; they are repaired when they are read"
        )
    return warnings


def _about_nifti(copies: list[NiftiCopy]) -> list[str]:
    counts = copies_document(copies)
    if not counts["n_misplaced"]:
        return []
    return [
        f"NIfTI cannot hold the positions of {counts['n_misplaced']} series whose slices are not evenly spaced (off by "
        f"up to {counts['most_misplaced_mm']:g} mm); the true ones are in the .slices.json beside each"
    ]
