"""Which volume a row of a series CSV names: by NIfTI file, by DICOM folder, zip or file, or through a header index."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from meddinov3_stroke.data.columns import VOLUME_COLUMNS
from meddinov3_stroke.errors import SeriesTableError
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.types import VolumeInput


def with_volume_columns(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with all of `VOLUME_COLUMNS`, empty strings where the CSV has no such column."""
    return cells.assign(**{name: "" for name in VOLUME_COLUMNS if name not in cells})


def volume_inputs(
    cells: pd.DataFrame, series_uid: pd.Series, csv_folder: Path, datasets_dir: Path | None, where: str
) -> list[VolumeInput | None]:
    """The input each row names, None where it names none.

    `series_uid` goes with a DICOM input or an index, which may hold several series; with a NIfTI file it is only a key.

    Raises:
        SeriesTableError: a row that names two volumes, an index and no series of it, or NIfTI as DICOM.
    """
    _require_one_each(cells, where)
    _require_series(cells, series_uid, where)
    _require_dicom(cells, where)
    resolve = cache(_resolver(csv_folder, datasets_dir))  # one index is named by thousands of rows
    inputs: list[VolumeInput | None] = []
    for nifti, dicom, index, uid in zip(*(cells[name] for name in VOLUME_COLUMNS), series_uid, strict=True):
        path = resolve(str(nifti or dicom or index))
        inputs.append(None if path is None else VolumeInput(path, None if nifti else str(uid) or None))
    return inputs


def _require_one_each(cells: pd.DataFrame, where: str) -> None:
    named = (cells[list(VOLUME_COLUMNS)] != "").sum(axis=1)
    rows = [int(row) for row in cells.index[named > 1]]
    if rows:
        raise SeriesTableError(
            f"{where}: more than one volume named in {name_rows(rows, counted=False)}; expected one of "
            f"{', '.join(VOLUME_COLUMNS)} in a row; empty the others"
        )


def _require_series(cells: pd.DataFrame, series_uid: pd.Series, where: str) -> None:
    is_index = (cells["header_index"] != "") | cells["dicom_path"].str.lower().str.endswith(".parquet")
    rows = [int(row) for row in cells.index[is_index & (series_uid == "")]]
    if rows:
        raise SeriesTableError(
            f"{where}: a header_index and no series_uid in {name_rows(rows, counted=False)}; an index lists many "
            "series; fill series_uid with the one of the row"
        )


def _require_dicom(cells: pd.DataFrame, where: str) -> None:
    is_nifti = (cells["dicom_path"] + cells["header_index"]).str.lower().str.endswith((".nii", ".nii.gz"))
    rows = [int(row) for row in cells.index[is_nifti]]
    if rows:
        raise SeriesTableError(
            f"{where}: a NIfTI file under dicom_path or header_index in {name_rows(rows, counted=False)}; it belongs "
            "under nifti_path"
        )


def _resolver(csv_folder: Path, datasets_dir: Path | None) -> Callable[[str], Path | None]:
    def resolve(text: str) -> Path | None:
        if not text:
            return None  # joined to a folder, it would be the folder itself
        written = Path(text).expanduser()
        if written.is_absolute():
            return written
        candidates = [folder / written for folder in (datasets_dir, csv_folder) if folder is not None]
        return next((path for path in candidates if path.exists()), candidates[0])

    return resolve
