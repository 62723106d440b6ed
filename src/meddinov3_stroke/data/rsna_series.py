"""Images of a large folder assembled into series, each with its outcome; headers of a few series are held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int32, Int64, Shaped

from meddinov3_stroke.ct.dicom.choice import rank
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.layout import canonical_positions_mm
from meddinov3_stroke.ct.dicom.series import LPS_TO_RAS, Stack, assemble, distance_mm, scaling_fault
from meddinov3_stroke.ct.dicom.survey import same_pixels
from meddinov3_stroke.data.header_rows import READ, headers_of_rows
from meddinov3_stroke.errors import InputError, Outcome

ROWS_AT_ONCE = 1 << 13
"""Headers held at a time, in addition to those of one series."""

End = tuple[str, str]
"""(status, reason): what an image or series is, and why it is not read."""


@dataclass(frozen=True)
class PreparedSeries:
    """One series of the folder and its outcome; a series that is done is a row of the table."""

    series_uid: str
    study_uid: str
    patient_id: str
    n_slices: int = 0
    """Of its volume; 0 if it has none."""
    kind: str = "usable"
    """`usable`; `set aside`, `unlabelled` or `excluded`; else the outcome's status."""
    outcome: Outcome = field(default_factory=Outcome)


@dataclass(eq=False)
class AssembledImages:
    """What each row of the header pass is."""

    rows: pa.Table
    """Of `header_rows.SCHEMA`."""
    slice_index: Int32[np.ndarray, " row"]
    """0-based in the canonical volume of its series, inferior to superior; -1 if it is not a slice of it."""
    positions_mm: Float64[np.ndarray, "row 3"]
    """RAS+ mm of the centre of the first stored voxel (Image Position); NaN where the header has none."""
    slice_positions_mm: Float64[np.ndarray, "row 3"]
    """RAS+ mm of the centre of the first canonical voxel of each slice, as `Volume.slice_positions_mm`; else NaN."""
    copy_of: Int32[np.ndarray, " row"]
    """Row of the slice that the image duplicates (same position, same pixels); -1 if it is not a duplicate."""
    status: Shaped[np.ndarray, " row"]
    """`slice`, `set aside`, `refused`, `rejected` or `failed`."""
    reason: Shaped[np.ndarray, " row"]
    """Why it is not a slice."""
    series: list[PreparedSeries] = field(default_factory=list)
    """By UID."""

    def has_status(self, status: str) -> Bool[np.ndarray, " row"]:
        """Which rows have this status."""
        return np.asarray(self.status == status, dtype=bool)


def assemble_rows(rows: pa.Table, folder: Path) -> AssembledImages:
    """What every image of a header pass over `folder` is: series are assembled by the rules that volumes are read by.

    Raises:
        MachineError: of two images at one position, one cannot be read for the machine's own reasons.
    """
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
    for places, headers in _headers_of_series(rows):
        damage = damaged.get(headers[0].series_instance_uid, "")
        images.series.append(_place_series(headers, places, folder, images, damage))
    return images


def _texts(rows: pa.Table, name: str) -> Shaped[np.ndarray, " row"]:
    """A column as Python strings, equal ones the same object."""
    return np.array(rows[name].to_pandas().astype(object).fillna(""), dtype=object)


def _damaged(rows: pa.Table) -> dict[str, str]:
    """Why a series is incomplete, of each series that a damaged file names."""
    some = rows.filter(pc.and_kleene(pc.equal(rows["status"], "rejected"), pc.is_valid(rows["series_instance_uid"])))
    faults: dict[str, list[str]] = {}
    for uid, reason in zip(some["series_instance_uid"].to_pylist(), some["reason"].to_pylist(), strict=True):
        faults.setdefault(uid, []).append(reason)
    return {uid: f"{len(reasons)} of its files cannot be read: {min(reasons)}" for uid, reasons in faults.items()}


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
    damage: str,
) -> PreparedSeries:
    """The series of these headers; what its images are is written to `images`."""
    place_of = {id(header): int(place) for header, place in zip(headers, places, strict=True)}
    sizes = images.rows["n_bytes"].take(pa.array(places)).to_pylist()
    stacks = _stacks(headers, sizes, folder)
    usable = [stack for stack in stacks if stack.verdict == "usable"]
    chosen = min(usable, key=rank) if usable else None
    fault = _fault_of(headers, chosen, stacks, damage)
    for stack in stacks:
        ends = [(header, _end_of(stack, chosen, fault)) for header in stack.images]
        for header, (status, reason) in ends + [(header, ("set aside", why)) for header, why in stack.set_aside]:
            place = place_of[id(header)]
            images.status[place], images.reason[place] = status, reason
    names = (headers[0].series_instance_uid, headers[0].study_instance_uid, headers[0].patient_id)
    if fault is not None or chosen is None:
        kind, reason = fault or ("set aside", "")
        return PreparedSeries(*names, kind=kind, outcome=Outcome("refused", message=reason))
    of_slices = [place_of[id(header)] for header in chosen.images]
    images.slice_index[of_slices] = np.arange(len(of_slices))
    images.slice_positions_mm[of_slices] = canonical_positions_mm(chosen)
    for header, _ in chosen.set_aside:
        nearest = int(np.abs(chosen.distances_mm - distance_mm(header, chosen.first.normal)).argmin())
        images.copy_of[place_of[id(header)]] = of_slices[nearest]
    return PreparedSeries(*names, n_slices=len(of_slices))


def _stacks(headers: list[ImageHeader], sizes: list[int], folder: Path) -> tuple[Stack, ...]:
    pairs = zip(headers, sizes, strict=True)
    files = {header.file: InputFile(header.file, folder / header.file, size) for header, size in pairs}
    try:
        return assemble(headers, lambda first, second: same_pixels(files, first, second))
    except InputError as error:  # of two images at one position, one cannot be decoded
        return (Stack(tuple(headers), verdict="refused", reason=f"{error.code}: {error}"),)


def _fault_of(headers: list[ImageHeader], chosen: Stack | None, stacks: tuple[Stack, ...], damage: str) -> End | None:
    """Why a series has no usable volume, None if it has one."""
    if not headers[0].series_instance_uid:
        return "refused", "no Series Instance UID in the header"
    n_owners = len({(header.study_instance_uid, header.patient_id) for header in headers})
    if n_owners > 1:
        return "refused", f"one Series Instance UID under {n_owners} studies or patients"
    if chosen is None:
        refused = [stack for stack in stacks if stack.verdict == "refused"]
        largest = max(refused or stacks, key=lambda stack: len(stack.images))
        return "refused" if refused else "set aside", largest.reason
    fault = scaling_fault(chosen) or damage
    return ("refused", fault) if fault else None


def _end_of(stack: Stack, chosen: Stack | None, fault: End | None) -> End:
    """What the images of a stack are."""
    if stack.verdict != "usable":
        return stack.verdict, stack.reason
    if fault is not None:
        return fault
    if stack is chosen or chosen is None:
        return "slice", ""
    n_slices = len(chosen.images)
    return "set aside", f"differs in size, orientation, kernel or acquisition from the {n_slices} slices that are read"
