"""From the images and labels of RSNA to one row a series, and the ledger of every image, series and label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int8, Int64

from meddinov3_stroke.data.csv_file import IdList
from meddinov3_stroke.data.rsna_series import AssembledImages
from meddinov3_stroke.data.slice_labels import SliceLabels, slice_label_table
from meddinov3_stroke.data.table import IDENTITY_COLUMNS, Exclusion, exclude
from meddinov3_stroke.errors import STATUSES
from meddinov3_stroke.types import LABELS

EXAMPLES = 20  # faults listed of each kind; all are counted

IMAGE_KINDS = ("slice", "set aside", "refused", "rejected", "failed")
SERIES_KINDS = ("usable", "set aside", "refused", "unlabelled", "excluded", "rejected", "failed")
"""What an image or a series is, in the order in which the ledger counts them."""


@dataclass(eq=False)
class LabelledSeries:
    """Every series of the folder with its outcome, and the labels of its images (rows of the header pass).

    `series` is as `AssembledImages.series`; the kind may also be `unlabelled` or `excluded`, or another outcome's
    status. The label of a slice is the maximum over it and its duplicates, whose pixels are the same.
    """

    images: AssembledImages
    series: pd.DataFrame
    slices: Int64[np.ndarray, " slice"]  # rows that are slices of a volume: series by series, inferior to superior
    labels: SliceLabels
    label_places: Int64[np.ndarray, " row"]  # place in `labels`, -1 where it has none
    image_labels: Int8[np.ndarray, "row 6"]  # -1 where unknown
    exclusion: Exclusion | None = None

    @property
    def usable(self) -> pd.DataFrame:
        """The series in the table."""
        return self.series[self.series["status"] == "done"]

    @property
    def table_rows(self) -> Int64[np.ndarray, " slice"]:
        """The rows of `slices` whose series is in the table."""
        is_usable = np.repeat(np.asarray(self.series["status"] == "done"), self.series["n_slices"].to_numpy(dtype=int))
        return np.asarray(self.slices[is_usable])

    @property
    def frame(self) -> pd.DataFrame:
        """Identities, n_slices and the six labels (maximum over its slices) of each series in the table."""
        frame = self.usable[[*IDENTITY_COLUMNS, "n_slices"]].reset_index(drop=True)
        labels = pd.DataFrame(self.image_labels[self.table_rows], columns=list(LABELS))
        return frame.join(labels.groupby(np.repeat(frame.index, frame["n_slices"])).max())

    def end(self, uids: Sequence[str], kind: str, status: str, reasons: str | Sequence[str]) -> None:
        """Give these series another kind and outcome."""
        is_meant = self.series["series_uid"].isin(uids) & (self.series["status"] == "done")
        self.series.loc[is_meant, ["kind", "status"]] = kind, status
        self.series.loc[is_meant, "reason"] = reasons

    @property
    def slice_labels(self) -> pa.Table:
        """The content of `slice_labels.parquet`."""
        images, places = self.images, self.table_rows
        uids = images.rows.select(["series_instance_uid", "sop_instance_uid"]).take(pa.array(places)).columns
        indices, positions_mm = images.slice_index[places], images.slice_positions_mm[places]
        return slice_label_table(uids[0], indices, uids[1], positions_mm, self.image_labels[places])


def label_series(images: AssembledImages, labels: SliceLabels, exclude_ids: IdList | None) -> LabelledSeries:
    """The series with their labels; those with an unlabelled slice or an excluded patient are not usable."""
    places = labels.places_of(images.rows["sop_instance_uid"].combine_chunks())
    image_labels = _labels_at(labels, places)
    copies = np.flatnonzero(images.copy_of >= 0)
    np.maximum.at(image_labels, images.copy_of[copies], image_labels[copies])
    slices = images.order[images.slice_index[images.order] >= 0]
    found = LabelledSeries(images, images.series, slices, labels, places, image_labels)
    frame = found.frame
    is_unlabelled = pd.Series(image_labels[slices, 0] < 0)
    n_unlabelled = is_unlabelled.groupby(np.repeat(frame.index, frame["n_slices"])).sum()
    remains = np.ones(len(frame), dtype=bool)
    if exclude_ids is not None:
        remains, found.exclusion = exclude(frame, exclude_ids, _owners(images.rows, exclude_ids))
    lacking = frame[remains & (n_unlabelled > 0)]
    reasons = [f"{n_unlabelled[k]} of {lacking.loc[k, 'n_slices']} slices have no label" for k in lacking.index]
    found.end(lacking["series_uid"].tolist(), "unlabelled", "rejected", reasons)
    found.end(frame["series_uid"][~remains].tolist(), "excluded", "refused", "excluded by --exclude-ids")
    return found


def _labels_at(labels: SliceLabels, places: Int64[np.ndarray, " some"]) -> Int8[np.ndarray, "some 6"]:
    return np.where((places >= 0)[:, None], labels.labels[places], np.int8(-1))


def _owners(rows: pa.Table, ids: IdList) -> dict[str, str]:
    """The patient, or the study if the patient is unknown, of each image that is named by its SOP UID."""
    sop_uids = pc.utf8_lower(rows["sop_instance_uid"].combine_chunks())
    wanted = pa.array([one.lower() for one in ids.ids], pa.string())
    some = rows.append_column("sop", sop_uids).filter(pc.is_in(sop_uids, value_set=wanted))
    columns = (some[name].to_pylist() for name in ("sop", "patient_id", "study_instance_uid"))
    return {sop: patient or study for sop, patient, study in zip(*columns, strict=True) if patient or study}


def ledger_document(found: LabelledSeries) -> dict[str, Any]:
    """Counts of images, series and labels, each of which adds up, and the first faults of each kind."""
    images, series, files = found.images, found.series, found.images.rows["file"]
    of_images = list(zip(images.status.tolist(), images.reason.tolist(), strict=True))
    of_series = list(zip(series["kind"], series["reason"], strict=True))
    outcomes, uids = Counter(series["status"]), series["series_uid"]
    return {
        "images": _counts("images", IMAGE_KINDS, of_images, lambda k: {"file": files[k].as_py()}),
        "series": _counts("series", SERIES_KINDS, of_series, lambda k: {"series_uid": uids[k]})
        | {"by_outcome": {status: outcomes[status] for status in STATUSES}},
        "labels": found.labels.document | _labels_document(found),
        "hu": _hu_document(found),
    }


def _counts(
    what: str, kinds: Sequence[str], found: Sequence[tuple[str, str]], examples: Callable[[int], dict[str, str]]
) -> dict[str, Any]:
    """Counts by kind and reason of (kind, reason) pairs, and the first pairs that are faults."""
    n_of_kind = Counter(kind for kind, _ in found)
    faulty = [k for k, (kind, _) in enumerate(found) if kind not in ("slice", "usable", "excluded")]
    return {
        f"n_{what}": len(found),
        **{kind: n_of_kind[kind] for kind in kinds},
        "by_reason": dict(Counter(found[k][1] for k in faulty).most_common(EXAMPLES)),
        "examples": [examples(k) | dict(zip(("status", "reason"), found[k], strict=True)) for k in faulty[:EXAMPLES]],
    }


def _labels_document(found: LabelledSeries) -> dict[str, dict[str, int]]:
    """`ends`, where each labelled image went (sums to n_images, but for what begins with `positive`), and `copies`,
    the duplicates of slices in the table and the slices whose labels differ from those of a duplicate."""
    images, places = found.images, found.label_places

    def reached(is_chosen: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " image"]:
        reached = np.zeros(len(found.labels.labels), dtype=bool)
        reached[places[is_chosen & (places >= 0)]] = True
        return reached

    row_in_table = np.zeros(len(places), dtype=bool)
    row_in_table[found.table_rows] = True
    row_is_copy = (images.copy_of >= 0) & row_in_table[images.copy_of]
    in_table, is_slice = reached(row_in_table), reached(images.slice_index >= 0)
    is_copy = reached(row_is_copy) & ~in_table
    has_file = reached(~np.isin(images.status.astype(str), ("rejected", "failed")))
    # a damaged file counts for the series that it names
    uids = images.rows["series_instance_uid"].to_pandas()
    of_series = reached(uids.isin(found.series["series_uid"]).to_numpy())
    of_table = reached(uids.isin(found.usable["series_uid"]).to_numpy())
    is_lost = (found.labels.labels[:, 0] > 0) & ~in_table & ~is_copy
    ends = {
        "of_slices_in_the_table": in_table,
        "of_copies_of_slices_in_the_table": is_copy,
        "of_slices_of_other_series": is_slice & ~in_table & ~is_copy,
        "of_images_that_are_no_slice": has_file & ~is_slice & ~is_copy,
        "without_a_readable_file": ~has_file,
        "positive_any_outside_the_table": is_lost,
        "positive_any_beside_the_slices_read": is_lost & of_table,
        "positive_any_in_no_series": (found.labels.labels[:, 0] > 0) & ~of_series,
    }
    copies = np.flatnonzero(row_is_copy)
    twins = images.copy_of[copies]
    own, of_copy = (_labels_at(found.labels, places[some]) for some in (twins, copies))
    differ = (own != of_copy).any(axis=1) & (own[:, 0] >= 0) & (of_copy[:, 0] >= 0)
    return {
        "ends": {name: int(which.sum()) for name, which in ends.items()},
        "copies": {"n_copies": len(copies), "n_slices_with_other_labels": len(np.unique(twins[differ]))},
    }


def _hu_document(found: LabelledSeries) -> dict[str, Any]:
    """How stored values become HU, over the slices in the table."""
    names = ["slope", "intercept", "is_wrapped", "is_stated", "series_instance_uid"]
    slices = found.images.rows.select(names).take(pa.array(found.table_rows)).to_pandas()
    wrapped = slices["is_wrapped"].astype(bool)
    pairs = slices.groupby(["slope", "intercept"], sort=False).size().sort_values(ascending=False, kind="stable")
    return {
        "n_slices": len(slices),
        "n_slices_repaired": int(wrapped.sum()),
        "n_series_repaired": int(slices.loc[wrapped, "series_instance_uid"].nunique()),
        "n_slices_without_rescale": int((~slices["is_stated"].astype(bool)).sum()),
        "slope_and_intercept": [
            {"slope": slope, "intercept": intercept, "n_slices": int(count)}
            for (slope, intercept), count in pairs.head(EXAMPLES).items()
        ],
    }


def ledger_warnings(ledger: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the images, series and labels that are not in the table."""
    images, series, ends, hu = ledger["images"], ledger["series"], ledger["labels"]["ends"], ledger["hu"]
    n_images, n_series = images["n_images"], series["n_series"]
    n_out, n_left = n_images - images["slice"], n_series - series["usable"] - series["excluded"]
    counted = [
        (n_out, f"of {n_images} images are not slices of a volume: {_reasons(images)}"),
        (n_left, f"of {n_series} series are not in the table: {_reasons(series)}"),
        (
            ends["positive_any_in_no_series"],
            "images with a positive label are in no series: their files are missing, or too damaged to name one; a "
            "series that lacks one may be labelled negative by mistake",
        ),
        (
            ends["positive_any_beside_the_slices_read"],
            "images with a positive label are of series in the table but not among the slices that are read",
        ),
        (
            ledger["labels"]["copies"]["n_slices_with_other_labels"],
            "slices have duplicates with other labels; each is positive for every label that one of them has",
        ),
        (ends["without_a_readable_file"], "labelled images have no file that can be read"),
        (
            hu["n_slices_repaired"],
            f"slices of {hu['n_series_repaired']} series have values that wrapped; reading repairs them",
        ),
    ]
    return [f"{count} {text}" for count, text in counted if count]


def _reasons(document: Mapping[str, Any]) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in list(document["by_reason"].items())[:3])
