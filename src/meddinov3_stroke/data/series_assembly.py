"""Images of a large folder put into series, each told what became of it; headers are held for one series at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int32, Int64

from meddinov3_stroke.ct.dicom.choice import rank
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.layout import canonical_positions_mm
from meddinov3_stroke.ct.dicom.series import LPS_TO_RAS, Stack, assemble, distance_mm, scaling_fault
from meddinov3_stroke.ct.dicom.survey import same_pixels
from meddinov3_stroke.data.header_rows import READ, headers_of_rows
from meddinov3_stroke.data.statuses import REFUSED, REJECTED, SET_ASIDE, SLICE, USABLE
from meddinov3_stroke.errors import InputError


@dataclass(frozen=True)
class AssembledSeries:
    """One series of the folder."""

    series_uid: str
    study_uid: str
    patient_id: str
    n_slices: int
    """Of its volume; 0 where it gives none."""
    status: str
    reason: str = ""
    """Why it is not usable."""


@dataclass(eq=False)
class AssembledImages:
    """What became of each row of the header pass."""

    rows: pa.Table
    """Of `header_rows.SCHEMA`."""
    slice_index: Int32[np.ndarray, " row"]
    """0-based in the canonical volume of its series, inferior to superior; -1 where it is no slice of it."""
    positions_mm: Float64[np.ndarray, "row 3"]
    """RAS+ mm of the centre of the first stored voxel (Image Position); NaN where the header has none."""
    slice_positions_mm: Float64[np.ndarray, "row 3"]
    """RAS+ mm of the centre of the first canonical voxel of each slice, as `Volume.slice_positions_mm`; else NaN."""
    copy_of: Int32[np.ndarray, " row"]
    """Row of the slice whose copy the image is (same position, same pixels, dropped); -1 where it is none."""
    status: Int32[np.ndarray, " row"]
    """Place in `words`."""
    reason: Int32[np.ndarray, " row"]
    """Place in `words`."""
    words: list[str]
    series: list[AssembledSeries] = field(default_factory=list)

    def status_of(self, word: str) -> np.ndarray:
        """Which rows have this status."""
        return np.asarray(self.status == self.words.index(word)) if word in self.words else self.status < 0


ROWS_AT_ONCE = 1 << 13
"""Headers held at a time, and those of one series more."""


class _Words:
    """Codes of texts that occur often."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self._places: dict[str, int] = {}

    def code(self, word: str) -> int:
        if word not in self._places:
            self._places[word] = len(self.listed)
            self.listed.append(word)
        return self._places[word]


def assemble_rows(rows: pa.Table, folder: Path) -> AssembledImages:
    """What became of every image of a header pass over `folder`: each series in the order of its slices along the
    normal, by the rules that a volume is read by.

    Raises:
        MachineError: a file cannot be read for the machine's own reasons, where two images lie at one position.
    """
    n_rows, words = len(rows), _Words()
    images = AssembledImages(
        rows,
        slice_index=np.full(n_rows, -1, np.int32),
        positions_mm=_positions(rows),
        slice_positions_mm=np.full((n_rows, 3), np.nan),
        copy_of=np.full(n_rows, -1, np.int32),
        status=np.empty(n_rows, np.int32),
        reason=np.empty(n_rows, np.int32),
        words=words.listed,
    )
    for name, codes in (("status", images.status), ("reason", images.reason)):
        values = rows[name].combine_chunks()
        values = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
        known = np.array([words.code(word or "") for word in values.dictionary.to_pylist()], np.int32)
        codes[:] = known[np.asarray(values.indices)]
    damaged = _damaged(rows)
    for places, headers in _series_headers(rows):
        fault = damaged.get(headers[0].series_instance_uid, "")
        images.series.append(_place_series(headers, places, folder, images, words, fault))
    return images


def _damaged(rows: pa.Table) -> dict[str, str]:
    """Why a series is not whole, of each that a damaged file says it belongs to: what is in that file is not known."""
    some = rows.filter(pc.and_kleene(pc.equal(rows["status"], REJECTED), pc.is_valid(rows["series_instance_uid"])))
    faults: dict[str, list[str]] = {}
    for uid, reason in zip(some["series_instance_uid"].to_pylist(), some["reason"].to_pylist(), strict=True):
        faults.setdefault(uid, []).append(reason)
    return {uid: f"{len(reasons)} of its files cannot be read: {min(reasons)}" for uid, reasons in faults.items()}


def _series_headers(rows: pa.Table) -> Iterator[tuple[Int64[np.ndarray, " image"], list[ImageHeader]]]:
    """(rows, headers) of each series; they are taken from the table some thousands at a time, which it does fast."""
    waiting: list[Int64[np.ndarray, " _"]] = []
    for places in _series_places(rows):
        waiting.append(places)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield from _taken(rows, waiting)
            waiting = []
    if waiting:
        yield from _taken(rows, waiting)


def _taken(
    rows: pa.Table, series: list[Int64[np.ndarray, " _"]]
) -> Iterator[tuple[Int64[np.ndarray, " image"], list[ImageHeader]]]:
    headers = iter(headers_of_rows(rows.take(pa.array(np.concatenate(series)))))
    yield from ((places, list(islice(headers, len(places)))) for places in series)


def _positions(rows: pa.Table) -> Float64[np.ndarray, "row 3"]:
    columns = [rows[f"position_{axis}"].combine_chunks().to_numpy(zero_copy_only=False) for axis in "xyz"]
    return np.asarray(np.stack(columns, axis=1).astype(np.float64) * LPS_TO_RAS)


def _series_places(rows: pa.Table) -> Iterator[Int64[np.ndarray, " image"]]:
    """The rows of each series, series by UID, rows in the order of files."""
    is_read = np.flatnonzero(np.asarray(pc.equal(rows["status"], READ).combine_chunks()))
    uids = rows["series_instance_uid"].combine_chunks()
    codes = np.asarray(pc.fill_null(uids.indices, 0))[is_read]
    in_order = np.argsort(np.array(uids.dictionary.to_pylist(), dtype=object), kind="stable")
    ranks = np.empty(len(in_order), np.int64)
    ranks[in_order] = np.arange(len(in_order))
    order = np.argsort(ranks[codes], kind="stable")
    edges = np.flatnonzero(np.diff(ranks[codes][order])) + 1
    yield from (places for places in np.split(is_read[order], edges) if places.size)


def _place_series(
    headers: list[ImageHeader],
    places: Int64[np.ndarray, " image"],
    folder: Path,
    images: AssembledImages,
    words: _Words,
    damage: str,
) -> AssembledSeries:
    place_of = {id(header): int(place) for header, place in zip(headers, places, strict=True)}

    def tell(header: ImageHeader, status: str, reason: str) -> None:
        place = place_of[id(header)]
        images.status[place], images.reason[place] = words.code(status), words.code(reason)

    chosen, found = _stack_of(headers, places, folder, images.rows)
    fault = _fault_of(headers, chosen, found, damage)
    for stack in found:
        end = _end_of(stack, chosen, fault)
        for header in stack.images:
            tell(header, *end)
        for header, reason in stack.set_aside:
            tell(header, SET_ASIDE, reason)
    first = headers[0]
    names = (first.series_instance_uid, first.study_instance_uid, first.patient_id)
    if fault is not None:
        return AssembledSeries(*names, 0, *fault)
    assert chosen is not None
    of_slices = [place_of[id(header)] for header in chosen.images]
    images.slice_index[of_slices] = np.arange(len(of_slices))
    images.slice_positions_mm[of_slices] = canonical_positions_mm(chosen)
    for header, twin in _copies(chosen):
        images.copy_of[place_of[id(header)]] = place_of[id(twin)]
    return AssembledSeries(*names, len(chosen.images), USABLE)


def _stack_of(
    headers: list[ImageHeader], places: Int64[np.ndarray, " image"], folder: Path, rows: pa.Table
) -> tuple[Stack | None, tuple[Stack, ...]]:
    """(the stack to read where there is one, all stacks of the series)."""
    sizes = rows["n_bytes"].take(pa.array(places)).to_pylist()
    files = {
        header.file: InputFile(header.file, folder / header.file, size)
        for header, size in zip(headers, sizes, strict=True)
    }
    try:
        stacks = assemble(headers, lambda first, second: same_pixels(files, first, second))
    except InputError as error:  # of two images at one position, one cannot be decoded
        return None, (Stack(tuple(headers), verdict="refused", reason=f"{error.code}: {error}"),)
    usable = [stack for stack in stacks if stack.verdict == "usable"]
    return min(usable, key=rank) if usable else None, stacks


def _copies(stack: Stack) -> Iterator[tuple[ImageHeader, ImageHeader]]:
    """(image that was dropped from the stack, the slice of it that lies at its position)."""
    distances_mm = stack.distances_mm
    for header, _ in stack.set_aside:
        nearest = int(np.abs(distances_mm - distance_mm(header, stack.first.normal)).argmin())
        yield header, stack.images[nearest]


def _fault_of(
    headers: list[ImageHeader], chosen: Stack | None, stacks: tuple[Stack, ...], damage: str
) -> tuple[str, str] | None:
    """(status, reason) of a series that gives no volume, None where it gives one."""
    first = headers[0]
    if not first.series_instance_uid:
        return REFUSED, "no Series Instance UID in the header"
    owners = {(header.study_instance_uid, header.patient_id) for header in headers}
    if len(owners) > 1:
        return REFUSED, f"one Series Instance UID under {len(owners)} studies or patients"
    if chosen is None:
        refused = [stack for stack in stacks if stack.verdict == "refused"]
        largest = max(refused or stacks, key=lambda stack: len(stack.images))
        return REFUSED if refused else SET_ASIDE, largest.reason
    fault = scaling_fault(chosen) or damage
    return (REFUSED, fault) if fault else None


def _end_of(stack: Stack, chosen: Stack | None, fault: tuple[str, str] | None) -> tuple[str, str]:
    """(status, reason) of the images of a stack."""
    if stack.verdict != "usable":
        return REFUSED if stack.verdict == "refused" else SET_ASIDE, stack.reason
    if fault is not None:
        return fault
    if stack is chosen or chosen is None:
        return SLICE, ""
    n_slices = len(chosen.images)
    return SET_ASIDE, f"of another size, orientation, kernel or acquisition than the {n_slices} slices that are read"
