"""Labels of single slices: as Kaggle's `stage_2_train.csv` has them, and as written beside a series table.

Kaggle's rows are `ID,Label`, the ID `ID_<sop>_<label>`, six rows for each slice, some of them twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from jaxtyping import Float64, Int8, Int64, Integer

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.data.csv_file import zeros_and_ones
from meddinov3_stroke.errors import LabelError, name_some
from meddinov3_stroke.labels import LabelPolicy, apply_label_policy, contradicts_any
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import LABELS

SLICE_LABELS = "slice_labels.parquet"  # file name, beside every series table that has slice labels

SLICE_LABEL_SCHEMA = pa.schema(
    [
        ("series_uid", pa.string()),
        ("slice_index", pa.int32()),  # canonical, 0-based, inferior to superior
        ("sop_uid", pa.string()),  # empty where the volume has no images
        # RAS+ of the centre of voxel (row 0, col 0), as Volume.slice_positions_mm
        *((f"position_{axis}_mm", pa.float64()) for axis in "xyz"),
        *((label, pa.int8()) for label in LABELS),
    ]
)
"""One row a slice; a series is one range of rows, in the order of its slices. An unknown label is null."""

ConflictPolicy = Literal["stop", "positive"]
"""Where an ID occurs twice with different labels: stop and name the IDs, or read it as positive."""

_ID = rf"^(?P<sop>.+)_(?P<label>{'|'.join(LABELS)})$"


@dataclass(frozen=True, eq=False)
class SliceLabels:
    """The six labels of every image in the CSV, in its order.

    `document` has counts for JSON; n_rows = 6 * n_images + n_repeated + n_conflicting_rows.
    """

    sop_uids: pa.Array
    labels: Int8[np.ndarray, "image 6"]
    document: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def places_of(self, sop_uids: pa.Array) -> Int64[np.ndarray, " asked"]:
        """Row of `labels` of each SOP UID, -1 where the CSV does not list it."""
        places = pc.fill_null(pc.index_in(sop_uids, value_set=self.sop_uids), -1)
        return np.asarray(places).astype(np.int64)


def slice_label_table(
    series_uid: pa.Array | pa.ChunkedArray,
    slice_index: Integer[np.ndarray, " slice"],
    sop_uid: pa.Array | pa.ChunkedArray,
    positions_mm: Float64[np.ndarray, "slice 3"],
    labels: Int8[np.ndarray, "slice 6"],
) -> pa.Table:
    """The rows of some slices; labels in the order of `LABELS`, below 0 where unknown."""
    columns = {
        "series_uid": series_uid,
        "slice_index": pa.array(slice_index),
        "sop_uid": sop_uid,
        **{f"position_{axis}_mm": pa.array(positions_mm[:, k], from_pandas=True) for k, axis in enumerate("xyz")},
        **{label: pa.array(labels[:, k], mask=labels[:, k] < 0) for k, label in enumerate(LABELS)},
    }
    return pa.table(columns).cast(SLICE_LABEL_SCHEMA)


def write_slice_labels(path: Path, rows: pa.Table) -> None:
    """Write a table of `SLICE_LABEL_SCHEMA`; a series is in one or two row groups."""
    with atomic_file(path) as handle:
        pq.write_table(rows, handle, row_group_size=8192, compression="zstd")


def read_series_slice_labels(path: Path) -> dict[str, dict[int, tuple[Int8[np.ndarray, " 6"], float]]]:
    """series UID -> slice index -> (the six labels, -1 where unknown; height in mm, NaN where unknown), as
    `write_slice_labels` wrote them. Raises LabelError for another file."""
    try:
        with machine_errors(path):
            table = pq.read_table(path, schema=SLICE_LABEL_SCHEMA)
    except pa.ArrowException as error:
        raise LabelError(f"{path} is no table of slice labels ({error}); prepare-rsna writes one") from error
    labels = np.stack([np.asarray(pc.fill_null(table[label], -1)) for label in LABELS], axis=1).astype(np.int8)
    heights = np.asarray(table["position_z_mm"].to_numpy(zero_copy_only=False), dtype=np.float64)
    found: dict[str, dict[int, tuple[Int8[np.ndarray, " 6"], float]]] = {}
    pairs = zip(table["series_uid"].to_pylist(), table["slice_index"].to_pylist(), strict=True)
    for (uid, index), row, height in zip(pairs, labels, heights.tolist(), strict=True):
        found.setdefault(uid, {})[index] = row, height
    return found


def read_slice_labels(path: Path, *, conflicts: ConflictPolicy, policy: LabelPolicy) -> SliceLabels:
    """The labels of every image in Kaggle's CSV at `path`.

    Raises:
        LabelError: no such file or columns, an ID or label of another form, an image without all six, an ID with two
            labels (if `conflicts` is "stop"), or `any` that is not the OR of the types (if `policy` is "strict").
    """
    sop_uids, keys, values = _rows(path)
    n_keys = len(sop_uids) * len(LABELS)
    counts, ones = (np.bincount(some, minlength=n_keys) for some in (keys, keys[values == 1]))
    _require_all_six(counts.reshape(-1, len(LABELS)), sop_uids, path)
    conflicting = np.flatnonzero((ones > 0) & (ones < counts))
    n_conflicting = len(conflicting)
    if n_conflicting and conflicts == "stop":
        ids = [f"{sop_uids[key // len(LABELS)].as_py()}_{LABELS[key % len(LABELS)]}" for key in conflicting.tolist()]
        raise LabelError(
            f"{path}: {n_conflicting} ID(s) have both 0 and 1: {name_some(ids)}; correct them, or pass "
            "--conflicting-labels positive"
        )
    labels = (ones > 0).astype(np.int8).reshape(-1, len(LABELS))
    wrong = np.flatnonzero(contradicts_any(labels, LABELS))
    names = sop_uids.take(pa.array(wrong)).to_pylist()
    labels[wrong], warnings = apply_label_policy(labels[wrong], LABELS, policy, path.name, names)
    if n_conflicting:
        warnings.append(f"{path.name}: {n_conflicting} IDs have both labels and were read as positive")
    with machine_errors(path):
        sha256 = sha256_of_file(path)
    n_conflicting_rows = int((counts[conflicting] - 1).sum())
    document = {
        "sha256": sha256,
        "n_rows": len(values),
        "n_images": len(labels),
        "n_repeated": len(values) - n_keys - n_conflicting_rows,
        "n_conflicting_ids": n_conflicting,
        "n_conflicting_rows": n_conflicting_rows,
        "n_positive": {label: int(labels[:, k].sum()) for k, label in enumerate(LABELS)},
    }
    return SliceLabels(sop_uids, labels, document, tuple(warnings))


def _rows(path: Path) -> tuple[pa.Array, Int64[np.ndarray, " row"], Int8[np.ndarray, " row"]]:
    """(SOP UIDs; of each row of the CSV 6 * (place of its SOP UID) + (place of its label), and its value)."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise LabelError(f"no labels at {path}; found {found}, expected Kaggle's {path.name}; --root is its folder")
    ids, cells = (column.combine_chunks() for column in _columns(path))
    parts = pc.extract_regex(ids, pattern=_ID)
    strange = ids.filter(pc.is_null(parts))
    if len(strange):
        raise LabelError(
            f"{path}: found the ID {strange[0].as_py()!r}; expected ID_<sop>_<label>, the label one of "
            f"{', '.join(LABELS)}; is this stage_2_train.csv?"
        )
    spelled = cells.dictionary_encode()
    spellings = pd.Series(spelled.dictionary.to_pylist(), dtype=str).str.strip()
    values = zeros_and_ones(spellings)[np.asarray(spelled.indices)]
    for bad in np.flatnonzero(values < 0)[:1].tolist():
        found = f"{ids[bad].as_py()} has the label {cells[bad].as_py()!r}"
        raise LabelError(f"{path}: {found}; expected 0 or 1; download the file again")
    codes = pc.index_in(pc.struct_field(parts, "label"), value_set=pa.array(LABELS))
    sops = pc.struct_field(parts, "sop").dictionary_encode()
    keys = np.asarray(sops.indices).astype(np.int64) * len(LABELS) + np.asarray(codes)
    return sops.dictionary, keys, values


def _columns(path: Path) -> list[pa.ChunkedArray]:
    """The columns `ID` and `Label` as text."""
    wanted = {"ID": pa.string(), "Label": pa.string()}
    convert = pcsv.ConvertOptions(column_types=wanted, include_columns=list(wanted), strings_can_be_null=False)
    try:
        with machine_errors(path):
            table = pcsv.read_csv(path, convert_options=convert)
    except (pa.ArrowException, KeyError) as error:
        with path.open("rb") as handle:
            first = handle.readline(80).decode("utf-8", "replace").strip()
        expected = "expected ID,Label in the first line and two cells in every row, in UTF-8"
        raise LabelError(f"{path} cannot be read as labels: its first line is {first!r}; {expected}") from error
    if not len(table):
        raise LabelError(f"{path} has no rows; expected six for each image")
    return [table[name] for name in wanted]


def _require_all_six(counts: Int64[np.ndarray, "image 6"], sop_uids: pa.Array, path: Path) -> None:
    lacking = np.flatnonzero((counts == 0).any(axis=1))
    if lacking.size:
        first = int(lacking[0])
        absent = ", ".join(label for label, count in zip(LABELS, counts[first], strict=True) if count == 0)
        raise LabelError(
            f"{path}: {lacking.size} image(s) lack some of their six rows, first {sop_uids[first].as_py()} (no "
            f"{absent}); the file is truncated; download it again"
        )
