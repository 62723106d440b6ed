"""RSNA 2019 as Kaggle distributes it -> header index, series table and slice labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from meddinov3_stroke.data.cohort import Prepared
from meddinov3_stroke.data.exclusion import read_id_list
from meddinov3_stroke.data.header_index import index_order, write_header_index
from meddinov3_stroke.data.header_pass import HeaderPass, read_headers_of_folder
from meddinov3_stroke.data.nifti_copies import NiftiCopy, copies_document, copies_warnings, write_nifti_copies
from meddinov3_stroke.data.rsna_labels import ConflictPolicy, read_slice_labels
from meddinov3_stroke.data.rsna_series import assemble_rows
from meddinov3_stroke.data.rsna_tables import LabelledSeries, label_series, ledger_document, ledger_warnings
from meddinov3_stroke.data.slice_labels import SLICE_LABELS, write_slice_labels
from meddinov3_stroke.data.table import SeriesTable, read_series_table
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import LabelPolicy
from meddinov3_stroke.system.atomic import write_text
from meddinov3_stroke.system.provenance import Stopwatch

LABELS_CSV, IMAGES_FOLDER = "stage_2_train.csv", "stage_2_train"
"""Contents of Kaggle's folder (the competition's data page)."""

FILES = {
    "series_csv": "rsna_hemorrhage_series_labels.csv",
    "header_index": "header_index.parquet",
    "slice_labels": SLICE_LABELS,
}
"""Files that are written."""

PARTS_FOLDER = "header_parts"
"""Folder of every header that was read. It may be deleted afterwards; a later run then reads the headers again."""


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
        LabelError: as `read_slice_labels`.
        SeriesTableError: no series is left, or `read_series_table` refuses the table.
        MissingInput: no folder of images, or an empty one.
        MachineError: the machine refuses to read or write.
        KeyboardInterrupt: SIGINT; headers that were read are kept.
    """
    watch, marks = Stopwatch(), [("", 0.0)]
    images_folder, files = root / IMAGES_FOLDER, {name: output_dir / file for name, file in FILES.items()}
    ids = None if exclude_ids is None else read_id_list(exclude_ids)
    labels = read_slice_labels(root / LABELS_CSV, conflicts=conflicting_labels, policy=label_policy)
    marks.append(("labels", watch.elapsed_s))
    parts = output_dir / PARTS_FOLDER
    headers = read_headers_of_folder(images_folder, parts, workers=workers, show_progress=show_progress)
    marks.append(("headers", watch.elapsed_s))
    images = assemble_rows(headers.rows, images_folder)
    order = index_order(images)
    found = label_series(images, order, labels, ids)
    _require_series(found, root)
    marks.append(("series", watch.elapsed_s))
    write_header_index(files["header_index"], images, order, images_folder)
    marks.append(("index", watch.elapsed_s))
    copies: list[NiftiCopy] = []
    if write_nifti:
        copies = write_nifti_copies(
            found.usable, files["header_index"], output_dir, workers=workers, show_progress=show_progress
        )
        found = found.ending({copy.series_uid: (copy.outcome.status, copy.outcome) for copy in copies if not copy.path})
        _require_series(found, root)
        marks.append(("nifti", watch.elapsed_s))
    write_slice_labels(files["slice_labels"], found.slice_labels)
    table = _write_table(found, files, copies, label_policy)
    marks.append(("writing", watch.elapsed_s))
    seconds = {name: round(end - start, 3) for (_, start), (name, end) in pairwise(marks)}
    facts = _facts(found, headers, workers, copies, seconds)
    about = (*labels.warnings, *(found.exclusion.warnings if found.exclusion else ()), *table.warnings)
    return Prepared(
        replace(table, exclusion=found.exclusion),
        facts,
        files,
        (*about, *ledger_warnings(facts["ledger"]), *copies_warnings(copies)),
        n_failed=facts["ledger"]["images"]["failed"] + facts["ledger"]["series"]["by_outcome"]["failed"],
    )


def _facts(
    found: LabelledSeries,
    headers: HeaderPass,
    workers: int,
    copies: Sequence[NiftiCopy],
    seconds: dict[str, float],
) -> dict[str, Any]:
    n_read, reading_s = headers.n_read_now, seconds["headers"]
    return {
        "ledger": ledger_document(found),
        "exclusion": None if found.exclusion is None else found.exclusion.document,
        "headers": {
            "n_files": headers.n_files,
            "n_read_now": n_read,
            "n_known_before": headers.n_files - n_read,
            "workers": workers,
            "files_per_s": round(n_read / reading_s, 1) if reading_s and n_read else None,
        },
        "nifti": copies_document(copies) if copies else None,
        "seconds": seconds,
    }


def _require_series(found: LabelledSeries, root: Path) -> None:
    if not found.usable:
        first = found.series[0] if found.series else None
        why = f", the first {first.kind}: {first.outcome.reason}" if first else ""
        raise SeriesTableError(f"{root}: no series is left for the table; found {len(found.series)} series{why}")


def _write_table(
    found: LabelledSeries, files: dict[str, Path], copies: Sequence[NiftiCopy], policy: LabelPolicy
) -> SeriesTable:
    """The table as the pipeline reads it back, so that one that it would refuse is reported here."""
    frame = found.frame
    if copies:
        paths = {copy.series_uid: copy.path.resolve().as_posix() for copy in copies if copy.path is not None}
        frame.insert(3, "nifti_path", frame["series_uid"].map(paths))
    else:
        frame.insert(3, "header_index", files["header_index"].resolve().as_posix())
    write_text(files["series_csv"], frame.to_csv(index=False, lineterminator="\n"))
    return read_series_table(files["series_csv"], label_policy=policy)
