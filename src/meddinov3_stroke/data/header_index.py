"""The header index: which file is which slice of which series, for folders that hold many series flat.

One row per image. Rows are sorted by series and then by slice, in small row groups with statistics, so that
`pyarrow.parquet.read_table(path, filters=[("series_uid", "=", uid)])` reads one or two of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from meddinov3_stroke.data.header_rows import SCHEMA
from meddinov3_stroke.data.rsna_series import AssembledImages
from meddinov3_stroke.system.atomic import atomic_file

INDEX_VERSION = "1"
"""Raised when a column changes its meaning; stored in the file's metadata as `header_index`."""

ROW_GROUP_ROWS = 8192
"""Rows of a row group: about 235 series of RSNA's 35 slices."""

_COLUMN_OF = {
    "series_uid": "series_instance_uid",
    "study_uid": "study_instance_uid",
    "patient_id": "patient_id",
    "sop_uid": "sop_instance_uid",
    "file": "file",  # absolute path
    "frame": "frame",  # 0-based in a multi-frame file, else null
    "slice_index": None,  # canonical, 0-based, inferior to superior; -1 if not a slice of the series' volume
    "position_x_mm": None,  # RAS+, centre of the first voxel as stored (Image Position), of any image
    "position_y_mm": None,
    "position_z_mm": None,
    **{name: name for name in ("rows", "columns", "slope", "intercept", "is_wrapped", "status", "reason")},
}
"""Columns of the index in their order, and the column of the header pass that each is, or has its type from."""

_COMPUTED = {"slice_index": pa.int32(), **{f"position_{axis}_mm": pa.float64() for axis in "xyz"}}

INDEX_SCHEMA = pa.schema(
    [(name, SCHEMA.field(source).type if source else _COMPUTED[name]) for name, source in _COLUMN_OF.items()],
    metadata={b"header_index": INDEX_VERSION.encode()},
)


def index_order(images: AssembledImages) -> Int64[np.ndarray, " row"]:
    """The rows by series, then slices in order, then the other images by file; files without an image first."""
    uids = images.rows["series_instance_uid"].combine_chunks()
    names = uids.dictionary.to_pylist()
    by_name = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names) + 1, np.int64)
    place[by_name] = np.arange(1, len(names) + 1)
    place[-1] = 0  # no series
    series = place[np.asarray(pc.fill_null(uids.indices, len(names)))]
    slice_place = np.where(images.slice_index < 0, np.iinfo(np.int32).max, images.slice_index)
    return np.lexsort((np.arange(len(series)), slice_place, series)).astype(np.int64)


def write_header_index(path: Path, images: AssembledImages, order: Int64[np.ndarray, " row"], folder: Path) -> None:
    """Write the index of a header pass over `folder`.

    Raises:
        StorageError: it cannot be written.
    """
    # one row group at a time: the whole index is never in memory
    with atomic_file(path) as handle, pq.ParquetWriter(handle, INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, max(len(order), 1), ROW_GROUP_ROWS):
            writer.write_table(_piece(images, order[start : start + ROW_GROUP_ROWS], folder))


def _piece(images: AssembledImages, places: Int64[np.ndarray, " some"], folder: Path) -> pa.Table:
    rows = images.rows.take(pa.array(places))
    columns = {name: rows[source] for name, source in _COLUMN_OF.items() if source}
    columns["file"] = pc.binary_join_element_wise(folder.resolve().as_posix(), rows["file"], "/")
    columns["slice_index"] = pa.array(images.slice_index[places])
    for k, axis in enumerate("xyz"):
        columns[f"position_{axis}_mm"] = pa.array(images.positions_mm[places, k], from_pandas=True)
    columns["status"] = pa.array(images.status[places], pa.string())
    columns["reason"] = pa.array(images.reason[places], pa.string())
    return pa.table({name: columns[name] for name in INDEX_SCHEMA.names}).cast(INDEX_SCHEMA)
