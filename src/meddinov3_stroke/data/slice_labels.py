"""Labels of single slices: read from masks beside volumes, and written beside a series table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int8, Integer

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput
from meddinov3_stroke.system.atomic import atomic_file
from meddinov3_stroke.types import LABELS, Volume

SLICE_LABELS = "slice_labels.parquet"
"""File name, beside every series table that has slice labels."""

ROW_GROUP_ROWS = 8192
"""Rows of a row group: one series is in one or two of them."""

SLICE_LABEL_SCHEMA = pa.schema(
    [
        ("series_uid", pa.string()),
        ("slice_index", pa.int32()),  # canonical, 0-based, inferior to superior
        ("sop_uid", pa.string()),  # empty where the volume has no images
        ("position_x_mm", pa.float64()),  # RAS+ of the centre of voxel (row 0, col 0), as Volume.slice_positions_mm
        ("position_y_mm", pa.float64()),
        ("position_z_mm", pa.float64()),
        *((label, pa.int8()) for label in LABELS),
    ]
)
"""One row a slice; a series is one range of rows, in the order of its slices. An unknown label is null."""

MASK_TOLERANCE_VOXELS = 0.5
"""How far a corner of a mask may be from its volume's, in shares of the smallest voxel side."""


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
    """Write a table of `SLICE_LABEL_SCHEMA`.

    Raises:
        StorageError: the file cannot be written.
    """
    with atomic_file(path) as handle:
        pq.write_table(rows, handle, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def mask_values(path: Path, volume: Volume) -> list[frozenset[int]]:
    """The values other than 0 in each canonical slice of the mask of `volume` at `path`.

    Raises:
        InputError: the mask cannot be read, has another shape or place than the volume, or values that are not whole
            numbers.
        MachineError: as `read_volume`.
    """
    mask = read_volume(path)
    if mask.stored.shape != volume.stored.shape:
        raise UnsupportedInput(
            f"{path} has {' x '.join(map(str, mask.stored.shape))} voxels, its volume "
            f"{' x '.join(map(str, volume.stored.shape))}; does it belong to another case?"
        )
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in mask.stored.shape])).reshape(3, -1)
    moved = (mask.affine - volume.affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    furthest_mm = float(np.linalg.norm(moved, axis=0).max())
    if furthest_mm > MASK_TOLERANCE_VOXELS * min(volume.spacing_mm):
        raise UnsupportedInput(
            f"{path} lies up to {furthest_mm:.1f} mm off its volume; expected the same affine; does it belong to "
            "another case?"
        )
    values = [np.unique(of_slice).astype(np.float64) * mask.slope + mask.intercept for of_slice in mask.stored]
    found = np.concatenate(values)
    fractions = found[~np.isclose(found, np.rint(found), atol=1e-3)]
    if fractions.size:
        raise CorruptInput(f"{path} contains {fractions[0]:g}; expected whole numbers")
    return [frozenset(int(value) for value in np.rint(of_slice) if value != 0) for of_slice in values]
