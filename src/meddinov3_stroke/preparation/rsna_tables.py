"""From the images and labels of RSNA to one row a series, and the ledger of files, series and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int8, Int64

from meddinov3_stroke.cohort import Exclusion, IdList, exclude
from meddinov3_stroke.preparation.rsna_labels import SliceLabels
from meddinov3_stroke.preparation.series_assembly import (
    FAILED,
    REFUSED,
    REJECTED,
    SET_ASIDE,
    SLICE,
    USABLE,
    AssembledImages,
    AssembledSeries,
)
from meddinov3_stroke.preparation.slice_labels import slice_label_table
from meddinov3_stroke.types import LABELS

UNLABELLED, EXCLUDED = "unlabelled", "excluded"
"""Further ends of a series: a slice without a label, so that its maximum is not known; left out by a list of IDs."""

EXAMPLES = 20
"""Faults listed of each kind; all are counted."""


@dataclass(frozen=True, eq=False)
class LabelledSeries:
    """Every series of the folder, what became of it, and the slices and labels of those in the table."""

    images: AssembledImages
    series: tuple[AssembledSeries, ...]
    """With `UNLABELLED` and `EXCLUDED` among the statuses."""
    frame: pd.DataFrame
    """The series table but for the column that names the volume: identities, n_slices and the six labels."""
    slice_places: Int64[np.ndarray, " slice"]
    """Rows of the header pass that are slices of a series in the table: series by series, in the order of slices."""
    slice_labels: Int8[np.ndarray, "slice 6"]
    labels: SliceLabels
    label_places: Int64[np.ndarray, " row"]
    """Row of `labels` of each row of the header pass, -1 where it has none."""
    image_labels: Int8[np.ndarray, "row 6"]
    """Labels of each row of the header pass, -1 where not known; of a slice the maximum over it and its copies."""
    exclusion: Exclusion | None


def label_series(
    images: AssembledImages, order: Int64[np.ndarray, " row"], labels: SliceLabels, exclude_ids: IdList | None
) -> LabelledSeries:
    """Each usable series with the maximum of its slices' labels; `order` is that of the header index.

    A slice has the maximum of its own labels and those of its copies, which were dropped: the pixels are the same.
    """
    label_places = labels.places_of(images.rows["sop_instance_uid"].combine_chunks())
    is_slice = images.slice_index[order] >= 0
    slices = order[is_slice]
    starts, usable = _starts(images)
    image_labels = _image_labels(images, labels, label_places)
    lacking = np.add.reduceat(image_labels[slices, 0] < 0, starts) if usable else np.zeros(0, np.int64)
    stays, exclusion = _exclusion(images, usable, exclude_ids)
    fates = [_fate(one, int(n), bool(stay)) for one, n, stay in zip(usable, lacking, stays, strict=True)]
    kept = np.array([one.status == USABLE for one in fates], dtype=bool)
    is_kept = np.repeat(kept, [one.n_slices for one in usable]) if usable else np.zeros(0, dtype=bool)
    of_slices = image_labels[slices[is_kept]]
    changed = iter(fates)
    series = tuple(next(changed) if one.status == USABLE else one for one in _by_uid(images))
    return LabelledSeries(
        images=images,
        series=series,
        frame=_frame([one for one in fates if one.status == USABLE], of_slices),
        slice_places=slices[is_kept],
        slice_labels=of_slices,
        labels=labels,
        label_places=label_places,
        image_labels=image_labels,
        exclusion=exclusion,
    )


def _own_labels(labels: SliceLabels, places: Int64[np.ndarray, " some"]) -> Int8[np.ndarray, "some 6"]:
    return np.where((places >= 0)[:, None], labels.labels[places], np.int8(-1))


def _image_labels(
    images: AssembledImages, labels: SliceLabels, places: Int64[np.ndarray, " row"]
) -> Int8[np.ndarray, "row 6"]:
    found = _own_labels(labels, places)
    copies = np.flatnonzero(images.copy_of >= 0)
    np.maximum.at(found, images.copy_of[copies], _own_labels(labels, places[copies]))
    return found


def _by_uid(images: AssembledImages) -> list[AssembledSeries]:
    return sorted(images.series, key=lambda one: one.series_uid)


def _starts(images: AssembledImages) -> tuple[Int64[np.ndarray, " series"], list[AssembledSeries]]:
    """(place of each usable series' first slice among all slices in order of series; these series)."""
    usable = [one for one in _by_uid(images) if one.status == USABLE]
    ends = np.cumsum([one.n_slices for one in usable], dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), ends])[:-1], usable


def _exclusion(
    images: AssembledImages, usable: list[AssembledSeries], ids: IdList | None
) -> tuple[Bool[np.ndarray, " series"], Exclusion | None]:
    stays = np.ones(len(usable), dtype=bool)
    if ids is None:
        return stays, None
    names = pd.DataFrame(
        [(one.patient_id, one.study_uid, one.series_uid) for one in usable],
        columns=["patient_id", "study_uid", "series_uid"],
    )
    groups = [f"patient:{one.patient_id}" if one.patient_id else f"study:{one.study_uid}" for one in usable]
    kept, exclusion = exclude(names, groups, ids, _owners_of_images(images, ids))
    return np.isin(np.arange(len(usable)), kept), exclusion


def _owners_of_images(images: AssembledImages, ids: IdList) -> dict[str, str]:
    """{SOP UID in lower case: patient of the image, or its study where the patient is not known} of the IDs that are
    images."""
    sop_uids = pc.utf8_lower(images.rows["sop_instance_uid"].combine_chunks())
    wanted = pa.array([one.lower() for one in ids.ids], pa.string())
    places = np.flatnonzero(np.asarray(pc.is_in(sop_uids, value_set=wanted)))
    columns = ["patient_id", "study_instance_uid"]
    owners = images.rows.select(columns).take(pa.array(places)).to_pylist()
    named = zip(sop_uids.take(pa.array(places)).to_pylist(), owners, strict=True)
    return {uid: owner for uid, of in named if uid and (owner := of[columns[0]] or of[columns[1]])}


def _fate(one: AssembledSeries, n_lacking: int, stays: bool) -> AssembledSeries:
    if not stays:
        return replace(one, status=EXCLUDED, reason="left out by --exclude-ids")
    if n_lacking:
        return replace(one, status=UNLABELLED, reason=f"{n_lacking} of {one.n_slices} slices have no label")
    return one


def _frame(series: list[AssembledSeries], labels: Int8[np.ndarray, "slice 6"]) -> pd.DataFrame:
    names = ("patient_id", "study_uid", "series_uid", "n_slices")
    frame = pd.DataFrame({name: [getattr(one, name) for one in series] for name in names})
    ends = np.cumsum([one.n_slices for one in series], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    highest = np.maximum.reduceat(labels, starts) if series else np.zeros((0, len(LABELS)), np.int8)
    for k, label in enumerate(LABELS):
        frame[label] = highest[:, k]
    return frame


def leave_out(found: LabelledSeries, faults: Mapping[str, tuple[str, str]]) -> LabelledSeries:
    """The same without the series of the table that `faults` names by UID, with status and reason."""
    stays = ~found.frame["series_uid"].isin(list(faults)).to_numpy()
    of_slices = np.repeat(stays, found.frame["n_slices"].to_numpy(dtype=np.int64))
    series = tuple(
        replace(one, status=faults[one.series_uid][0], reason=faults[one.series_uid][1])
        if one.status == USABLE and one.series_uid in faults
        else one
        for one in found.series
    )
    return replace(
        found,
        series=series,
        frame=found.frame[stays].reset_index(drop=True),
        slice_places=found.slice_places[of_slices],
        slice_labels=found.slice_labels[of_slices],
    )


def slice_label_pieces(found: LabelledSeries, rows_at_once: int = 1 << 16) -> Iterator[pa.Table]:
    """The rows of `slice_labels.parquet`, some at a time."""
    for start in range(0, len(found.slice_places), rows_at_once):
        places = found.slice_places[start : start + rows_at_once]
        rows = found.images.rows.take(pa.array(places))
        yield slice_label_table(
            rows["series_instance_uid"].combine_chunks().cast(pa.string()),
            found.images.slice_index[places],
            rows["sop_instance_uid"].combine_chunks(),
            found.images.slice_positions_mm[places],
            found.slice_labels[start : start + rows_at_once],
        )


def ledger_document(found: LabelledSeries) -> dict[str, Any]:
    """Counts of images, series and labels, each of which adds up, and the first faults of each kind."""
    return {
        "images": _images_document(found.images),
        "series": _series_document(found.series),
        "labels": found.labels.document | {"ends": _label_ends(found), "copies": _copies_document(found)},
        "hu": _hu_document(found),
    }


def _images_document(images: AssembledImages) -> dict[str, Any]:
    counts = {word: int(images.status_of(word).sum()) for word in (SLICE, SET_ASIDE, REFUSED, REJECTED, FAILED)}
    faulty = np.flatnonzero(~images.status_of(SLICE))
    reasons = Counter(images.words[code] for code in images.reason[faulty].tolist())
    files = images.rows["file"]
    examples = [
        {
            "file": files[int(k)].as_py(),
            "status": images.words[images.status[k]],
            "reason": images.words[images.reason[k]],
        }
        for k in faulty[:EXAMPLES]
    ]
    return {
        "n_images": len(images.rows),
        **counts,
        "by_reason": dict(reasons.most_common(EXAMPLES)),
        "examples": examples,
    }


def _series_document(series: tuple[AssembledSeries, ...]) -> dict[str, Any]:
    counts = Counter(one.status for one in series)
    faulty = [one for one in series if one.status not in (USABLE, EXCLUDED)]
    return {
        "n_series": len(series),
        **{word: counts[word] for word in (USABLE, SET_ASIDE, REFUSED, UNLABELLED, EXCLUDED, REJECTED, FAILED)},
        "by_reason": dict(Counter(one.reason for one in faulty).most_common(EXAMPLES)),
        "examples": [
            {"series_uid": one.series_uid, "status": one.status, "reason": one.reason} for one in faulty[:EXAMPLES]
        ],
    }


def _label_ends(found: LabelledSeries) -> dict[str, int]:
    """Where each labelled image went; sums to n_images of the labels, but for what begins with `positive`."""
    images = found.images
    is_read = ~(images.status_of(REJECTED) | images.status_of(FAILED))
    in_table, of_copy, is_slice, has_file = (
        _reached(found, is_chosen)
        for is_chosen in (_in_table(found), _copies_in_table(found), images.slice_index >= 0, is_read)
    )
    is_positive = found.labels.labels[:, 0] > 0
    ends = {
        "of_slices_in_the_table": in_table,
        "of_copies_of_slices_in_the_table": of_copy & ~in_table,
        "of_slices_of_other_series": is_slice & ~in_table & ~of_copy,
        "of_images_that_are_no_slice": has_file & ~is_slice & ~of_copy,
        "without_a_readable_file": ~has_file,
        "positive_any_outside_the_table": is_positive & ~in_table & ~of_copy,
        "positive_any_in_no_series": is_positive & ~_reached(found, _in_a_series(found)),
    }
    return {name: int(is_it.sum()) for name, is_it in ends.items()}


def _reached(found: LabelledSeries, is_chosen: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " image"]:
    """Which labelled images are the ones of the chosen rows of the header pass."""
    reached = np.zeros(len(found.labels.labels), dtype=bool)
    reached[found.label_places[is_chosen & (found.label_places >= 0)]] = True
    return reached


def _in_table(found: LabelledSeries) -> Bool[np.ndarray, " row"]:
    in_table = np.zeros(len(found.label_places), dtype=bool)
    in_table[found.slice_places] = True
    return in_table


def _copies_in_table(found: LabelledSeries) -> Bool[np.ndarray, " row"]:
    copy_of = found.images.copy_of
    return np.asarray((copy_of >= 0) & _in_table(found)[copy_of])


def _in_a_series(found: LabelledSeries) -> Bool[np.ndarray, " row"]:
    """Which rows are of a series that has an end, for which a damaged file needs only to name it."""
    known = pa.array([one.series_uid for one in found.series], pa.string())
    uids = found.images.rows["series_instance_uid"].combine_chunks()
    is_known = np.asarray(pc.fill_null(pc.is_in(uids.dictionary, value_set=known), False))
    codes = np.asarray(pc.fill_null(uids.indices, -1))
    return np.asarray(np.append(is_known, False)[codes])


def _copies_document(found: LabelledSeries) -> dict[str, int]:
    """Copies of slices in the table, and the slices that have another label than one of their copies."""
    copies = np.flatnonzero(_copies_in_table(found))
    twins = found.images.copy_of[copies]
    own, of_copy = (_own_labels(found.labels, found.label_places[some]) for some in (twins, copies))
    disagree = (own != of_copy).any(axis=1) & (own[:, 0] >= 0) & (of_copy[:, 0] >= 0)
    return {"n_copies": len(copies), "n_slices_with_other_labels": len(np.unique(twins[disagree]))}


def _hu_document(found: LabelledSeries) -> dict[str, Any]:
    """How stored values become HU, over the slices in the table."""
    rows = found.images.rows.select(["slope", "intercept", "is_wrapped", "is_stated"])
    rows = rows.take(pa.array(found.slice_places))
    slope, intercept, is_wrapped, is_stated = (np.asarray(column.combine_chunks()) for column in rows.columns)
    pairs = Counter(zip(slope.tolist(), intercept.tolist(), strict=True))
    wrapped_series = rows_of_series(found, is_wrapped.astype(bool))
    return {
        "n_slices": len(found.slice_places),
        "n_slices_repaired": int(is_wrapped.sum()),
        "n_series_repaired": wrapped_series,
        "n_slices_without_rescale": int((~is_stated.astype(bool)).sum()),
        "slope_and_intercept": [
            {"slope": slope, "intercept": intercept, "n_slices": count}
            for (slope, intercept), count in pairs.most_common(EXAMPLES)
        ],
    }


def rows_of_series(found: LabelledSeries, is_chosen: Bool[np.ndarray, " slice"]) -> int:
    """How many series of the table have a chosen slice."""
    numbers = np.repeat(np.arange(len(found.frame)), found.frame["n_slices"].to_numpy(dtype=np.int64))
    return len(np.unique(numbers[is_chosen]))
