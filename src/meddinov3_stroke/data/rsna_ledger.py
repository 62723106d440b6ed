"""The ledger of a preparation of RSNA: where every image, series and label went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from meddinov3_stroke.data.rsna_tables import LabelledSeries, own_labels
from meddinov3_stroke.data.series_assembly import AssembledImages, AssembledSeries
from meddinov3_stroke.data.statuses import (
    EXCLUDED,
    FAILED,
    REFUSED,
    REJECTED,
    SET_ASIDE,
    SLICE,
    UNLABELLED,
    USABLE,
)

EXAMPLES = 20
"""Faults listed of each kind; all are counted."""


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
    of_series = _reached(found, _of_series(found, [one.series_uid for one in found.series]))
    of_table = _reached(found, _of_series(found, found.frame["series_uid"]))
    is_positive = found.labels.labels[:, 0] > 0
    ends = {
        "of_slices_in_the_table": in_table,
        "of_copies_of_slices_in_the_table": of_copy & ~in_table,
        "of_slices_of_other_series": is_slice & ~in_table & ~of_copy,
        "of_images_that_are_no_slice": has_file & ~is_slice & ~of_copy,
        "without_a_readable_file": ~has_file,
        "positive_any_outside_the_table": is_positive & ~in_table & ~of_copy,
        "positive_any_beside_the_slices_read": is_positive & ~in_table & ~of_copy & of_table,
        "positive_any_in_no_series": is_positive & ~of_series,
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


def _of_series(found: LabelledSeries, series_uids: Iterable[str]) -> Bool[np.ndarray, " row"]:
    """Which rows are of one of these series, for which a damaged file needs only to name it."""
    known = pa.array(list(series_uids), pa.string())
    uids = found.images.rows["series_instance_uid"].combine_chunks()
    is_known = np.asarray(pc.fill_null(pc.is_in(uids.dictionary, value_set=known), False))
    codes = np.asarray(pc.fill_null(uids.indices, -1))
    return np.asarray(np.append(is_known, False)[codes])


def _copies_document(found: LabelledSeries) -> dict[str, int]:
    """Copies of slices in the table, and the slices that have another label than one of their copies."""
    copies = np.flatnonzero(_copies_in_table(found))
    twins = found.images.copy_of[copies]
    own, of_copy = (own_labels(found.labels, found.label_places[some]) for some in (twins, copies))
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
