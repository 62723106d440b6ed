"""From the images and labels of RSNA to one row a series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int8, Int64

from meddinov3_stroke.data.exclusion import Exclusion, IdList, exclude
from meddinov3_stroke.data.rsna_labels import SliceLabels
from meddinov3_stroke.data.series_assembly import AssembledImages, AssembledSeries
from meddinov3_stroke.data.slice_labels import slice_label_table
from meddinov3_stroke.data.statuses import EXCLUDED, UNLABELLED, USABLE
from meddinov3_stroke.types import LABELS


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


def own_labels(labels: SliceLabels, places: Int64[np.ndarray, " some"]) -> Int8[np.ndarray, "some 6"]:
    """The labels at these places, -1 where a place is."""
    return np.where((places >= 0)[:, None], labels.labels[places], np.int8(-1))


def _image_labels(
    images: AssembledImages, labels: SliceLabels, places: Int64[np.ndarray, " row"]
) -> Int8[np.ndarray, "row 6"]:
    found = own_labels(labels, places)
    copies = np.flatnonzero(images.copy_of >= 0)
    np.maximum.at(found, images.copy_of[copies], own_labels(labels, places[copies]))
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
