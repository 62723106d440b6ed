"""`slice_labels.parquet`: the labels of single slices, beside a series table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int8, Integer

from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.types import LABELS

SLICE_LABELS = "slice_labels.parquet"
"""Its name, beside every series table that has slice labels."""

ROW_GROUP_ROWS = 8192
"""Rows of a row group: one series is in one or two of them."""

SLICE_LABEL_SCHEMA = pa.schema(
    [
        ("series_uid", pa.string()),
        ("slice_index", pa.int32()),  # canonical, 0-based, inferior to superior
        ("sop_uid", pa.string()),  # empty where the volume knows no images
        ("position_x_mm", pa.float64()),  # RAS+ of the centre of voxel (row 0, col 0), as Volume.slice_positions_mm
        ("position_y_mm", pa.float64()),
        ("position_z_mm", pa.float64()),
        *((label, pa.int8()) for label in LABELS),
    ]
)
"""One row a slice; a series is one range of rows, in the order of its slices. A label that is not known is null."""


def slice_label_table(
    series_uid: pa.Array,
    slice_index: Integer[np.ndarray, " slice"],
    sop_uid: pa.Array,
    positions_mm: Float64[np.ndarray, "slice 3"],
    labels: Int8[np.ndarray, "slice 6"],
) -> pa.Table:
    """The rows of some slices; labels in the order of `LABELS`, below 0 where not known."""
    columns = {
        "series_uid": series_uid,
        "slice_index": pa.array(slice_index),
        "sop_uid": sop_uid,
        **{f"position_{axis}_mm": pa.array(positions_mm[:, k], from_pandas=True) for k, axis in enumerate("xyz")},
        **{label: pa.array(labels[:, k], mask=labels[:, k] < 0) for k, label in enumerate(LABELS)},
    }
    return pa.table(columns).cast(SLICE_LABEL_SCHEMA)


def write_slice_labels(path: Path, pieces: Iterable[pa.Table]) -> None:
    """Write tables of `SLICE_LABEL_SCHEMA` one after the other.

    Raises:
        StorageError: the file cannot be written.
    """
    with atomic_file(path) as handle, pq.ParquetWriter(handle, SLICE_LABEL_SCHEMA, compression="zstd") as writer:
        writer.write_table(SLICE_LABEL_SCHEMA.empty_table())
        for piece in pieces:
            writer.write_table(piece, row_group_size=ROW_GROUP_ROWS)
