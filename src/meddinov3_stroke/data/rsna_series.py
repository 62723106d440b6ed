"""Images of a large folder assembled into series, each with its outcome, and the header index of them.

The index says which file is which slice of which series. Its rows are sorted by series and then by slice, in small row
groups with statistics, so that `pyarrow.parquet.read_table(path, filters=[("series_uid", "=", uid)])` reads one or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int32, Int64, Shaped

from meddinov3_stroke.ct.dicom.choice import rank
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.grouping import difference
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.layout import canonical_positions_mm
from meddinov3_stroke.ct.dicom.series import LPS_TO_RAS, Stack, assemble, distance_mm, scaling_fault
from meddinov3_stroke.ct.dicom.survey import same_pixels
from meddinov3_stroke.data.header_rows import READ, headers_of_rows, plain_type
from meddinov3_stroke.errors import InputError
from meddinov3_stroke.system.atomic import atomic_file

ROWS_AT_ONCE = 1 << 13
"""Headers held at a time, in addition to those of one series; rows of a row group of the index (about 235 series)."""

_COLUMNS: dict[str, str | pa.DataType] = {
    "series_uid": "series_instance_uid",
    "study_uid": "study_instance_uid",
    "patient_id": "patient_id",
    "sop_uid": "sop_instance_uid",
    "file": "file",  # absolute path
    "frame": "frame",  # 0-based in a multi-frame file, else null
    "slice_index": pa.int32(),  # canonical, 0-based, inferior to superior; -1 if not a slice of the series' volume
    "position_x_mm": pa.float64(),  # RAS+, centre of the first voxel as stored (Image Position), of any image
    "position_y_mm": pa.float64(),
    "position_z_mm": pa.float64(),
    **{name: name for name in ("rows", "columns", "slope", "intercept", "is_wrapped", "status", "reason")},
}
"""Columns of the index in their order: each is a column of the header pass (or has its type), or is of this type."""

INDEX_SCHEMA = pa.schema(
    [(name, plain_type(of) if isinstance(of, str) else of) for name, of in _COLUMNS.items()],
    metadata={b"header_index": b"1"},  # raised when a column changes its meaning
)


@dataclass(eq=False)
class AssembledImages:
    """What each row of the header pass is, and the series by UID.

    `series` has series_uid, study_uid, patient_id, n_slices (0 without a volume), kind (`usable`, `set aside` or
    `refused`), and status and reason as of `Outcome`.
    """

    rows: pa.Table  # of `header_rows.SCHEMA`
    slice_index: Int32[np.ndarray, " row"]  # 0-based in the series' canonical volume, inferior to superior; else -1
    positions_mm: Float64[np.ndarray, "row 3"]  # RAS+ of the first stored voxel (Image Position); NaN where unknown
    slice_positions_mm: Float64[np.ndarray, "row 3"]  # of slices, as `Volume.slice_positions_mm`; else NaN
    copy_of: Int32[np.ndarray, " row"]  # row of the slice that the image duplicates; -1 if it is not a duplicate
    status: Shaped[np.ndarray, " row"]  # `slice`, `set aside`, `refused`, `rejected` or `failed`
    reason: Shaped[np.ndarray, " row"]  # why it is not a slice
    series: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def order(self) -> Int64[np.ndarray, " row"]:
        """The rows by series, then slices in order, then the other images by file; files without an image first."""
        series = pd.factorize(_texts(self.rows, "series_instance_uid"), sort=True)[0]
        series[np.asarray(self.rows["series_instance_uid"].is_null())] = -1
        slice_place = np.where(self.slice_index < 0, np.iinfo(np.int32).max, self.slice_index)
        return np.lexsort((np.arange(len(series)), slice_place, series)).astype(np.int64)


def assemble_rows(rows: pa.Table, folder: Path) -> AssembledImages:
    """What every image of a header pass over `folder` is, by the rules by which volumes are read."""
    lps = [rows[f"position_{axis}"].to_numpy().astype(np.float64) for axis in "xyz"]
    images = AssembledImages(
        rows,
        slice_index=np.full(len(rows), -1, np.int32),
        positions_mm=np.asarray(np.stack(lps, axis=1) * LPS_TO_RAS),
        slice_positions_mm=np.full((len(rows), 3), np.nan),
        copy_of=np.full(len(rows), -1, np.int32),
        status=_texts(rows, "status"),
        reason=_texts(rows, "reason"),
    )
    damaged = _damaged(rows)
    names = ("series_uid", "study_uid", "patient_id", "n_slices", "kind", "status", "reason")
    placed = [_place_series(headers, places, folder, images, damaged) for places, headers in _headers_of_series(rows)]
    images.series = pd.DataFrame(placed, columns=list(names))
    return images


def write_header_index(path: Path, images: AssembledImages, folder: Path) -> None:
    """Write the index of a header pass over `folder`, one row group at a time."""
    with atomic_file(path) as handle, pq.ParquetWriter(handle, INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(images.order), ROWS_AT_ONCE):
            places = images.order[start : start + ROWS_AT_ONCE]
            rows = images.rows.take(pa.array(places))
            columns = {name: rows[of] for name, of in _COLUMNS.items() if isinstance(of, str)}
            columns["file"] = pc.binary_join_element_wise(folder.resolve().as_posix(), rows["file"], "/")
            columns["slice_index"] = pa.array(images.slice_index[places])
            for k, axis in enumerate("xyz"):
                columns[f"position_{axis}_mm"] = pa.array(images.positions_mm[places, k], from_pandas=True)
            columns["status"] = pa.array(images.status[places], pa.string())
            columns["reason"] = pa.array(images.reason[places], pa.string())
            writer.write_table(pa.table(columns).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))


def _texts(rows: pa.Table, name: str) -> Shaped[np.ndarray, " row"]:
    """A column as Python strings, equal ones the same object."""
    return np.array(rows[name].to_pandas().astype(object).fillna(""), dtype=object)


def _damaged(rows: pa.Table) -> dict[str, str]:
    """Why a series is incomplete, of each series that a damaged file names."""
    some = rows.filter(pc.and_kleene(pc.equal(rows["status"], "rejected"), pc.is_valid(rows["series_instance_uid"])))
    reasons = some.select(["series_instance_uid", "reason"]).to_pandas().astype(object)
    by_series = reasons.groupby("series_instance_uid")["reason"]
    return {str(uid): f"{len(of)} of its files cannot be read: {min(of)}" for uid, of in by_series}


def _headers_of_series(rows: pa.Table) -> Iterator[tuple[Int64[np.ndarray, " image"], list[ImageHeader]]]:
    """(rows, headers) of each series, series by UID, rows in the order of files.

    Headers are taken from the table some thousands at a time, which is much faster than one series at a time.
    """
    is_read = np.flatnonzero(np.asarray(pc.equal(rows["status"], READ)))
    codes, uids = pd.factorize(_texts(rows, "series_instance_uid")[is_read], sort=True)
    places = is_read[np.argsort(codes, kind="stable")]
    ends = np.cumsum(np.bincount(codes, minlength=len(uids)))
    waiting: list[Int64[np.ndarray, " image"]] = []
    for of_series in np.split(places, ends[:-1]) if len(uids) else ():
        waiting.append(of_series)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE or of_series[-1] == places[-1]:
            headers = iter(headers_of_rows(rows.take(pa.array(np.concatenate(waiting)))))
            yield from [(some, list(islice(headers, len(some)))) for some in waiting]
            waiting = []


def _place_series(
    headers: list[ImageHeader],
    places: Int64[np.ndarray, " image"],
    folder: Path,
    images: AssembledImages,
    damaged: dict[str, str],
) -> tuple[Any, ...]:
    """The row of `AssembledImages.series` of these headers; what its images are is written to `images`."""
    place_of = {id(header): int(place) for header, place in zip(headers, places, strict=True)}
    stacks = _stacks(headers, images.rows["n_bytes"].take(pa.array(places)).to_pylist(), folder)
    names = (headers[0].series_instance_uid, headers[0].study_instance_uid, headers[0].patient_id)
    usable = [stack for stack in stacks if stack.verdict == "usable"]
    chosen = min(usable, key=rank) if usable else None
    fault = _fault_of(headers, chosen, stacks, damaged.get(names[0], ""))
    for stack in stacks:
        end = _end_of(stack, chosen, fault)
        for header, (status, reason) in [
            *((header, end) for header in stack.images),
            *((header, ("set aside", why)) for header, why in stack.set_aside),
        ]:
            place = place_of[id(header)]
            images.status[place], images.reason[place] = status, reason
    if fault is not None or chosen is None:
        kind, reason = fault or ("set aside", "")
        return *names, 0, kind, "refused", reason
    of_slices = [place_of[id(header)] for header in chosen.images]
    images.slice_index[of_slices] = np.arange(len(of_slices))
    images.slice_positions_mm[of_slices] = canonical_positions_mm(chosen)
    for header, _ in chosen.set_aside:
        nearest = int(np.abs(chosen.distances_mm - distance_mm(header, chosen.first.normal)).argmin())
        images.copy_of[place_of[id(header)]] = of_slices[nearest]
    return *names, len(of_slices), "usable", "done", ""


def _stacks(headers: list[ImageHeader], sizes: list[int], folder: Path) -> tuple[Stack, ...]:
    pairs = zip(headers, sizes, strict=True)
    files = {header.file: InputFile(header.file, folder / header.file, size) for header, size in pairs}
    try:
        return assemble(headers, lambda first, second: same_pixels(files, {}, first, second))
    except InputError as error:  # of two images at one position, one cannot be decoded
        return (Stack(tuple(headers), verdict="refused", reason=f"{error.code}: {error}"),)


def _fault_of(
    headers: list[ImageHeader], chosen: Stack | None, stacks: tuple[Stack, ...], damage: str
) -> tuple[str, str] | None:
    """(kind, reason) of a series without a usable volume, None if it has one."""
    if not headers[0].series_instance_uid:
        return "refused", "no Series Instance UID in the header"
    n_owners = len({(header.study_instance_uid, header.patient_key) for header in headers})
    if n_owners > 1:
        return "refused", f"one Series Instance UID under {n_owners} studies or patients"
    if chosen is None:
        refused = [stack for stack in stacks if stack.verdict == "refused"]
        largest = max(refused or stacks, key=lambda stack: len(stack.images))
        return "refused" if refused else "set aside", largest.reason
    fault = scaling_fault(chosen) or damage
    return ("refused", fault) if fault else None


def _end_of(stack: Stack, chosen: Stack | None, fault: tuple[str, str] | None) -> tuple[str, str]:
    """(status, reason) of the images of a stack."""
    if stack.verdict != "usable":
        return stack.verdict, stack.reason
    if fault is not None:
        return fault
    if stack is chosen or chosen is None:
        return "slice", ""
    n_slices = len(chosen.images)
    differing = difference(chosen.images, stack.images)
    return "set aside", f"differs from the {n_slices} slices that are read: {differing}"
