"""Tables of labels and scores to evaluate: one row a series, or one row a slice (with a column `slice_index`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Int8, Int64

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.data.csv_file import CsvFile, read_csv_file
from meddinov3_stroke.data.table import VOLUME_COLUMNS, volume_inputs
from meddinov3_stroke.errors import DatasetError, SeriesTableError, UsageError, name_some
from meddinov3_stroke.heads.data import read_array
from meddinov3_stroke.labels import name_rows
from meddinov3_stroke.types import VolumeInput

SCORE = "p_"
"""Begins the name of a column of scores: `p_any` beside the label `any`, as in `results.csv` of `predict`."""

_OF_VOLUME = ("series_uid", "study_uid", *VOLUME_COLUMNS, "case_id", "patient_id")
"""Columns that tell volumes apart; the first that the table has is used."""

_BRAIN_HU = (0.0, 100.0)
_PATCH_MM = 7.0  # side of the patches that the brightness rule looks at
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """The rows of a table: labels, scores if it has any, patients if it names them, and of slices their place."""

    csv: CsvFile
    names: tuple[str, ...]
    labels: Int8[np.ndarray, "n label"]
    probabilities: Float64[np.ndarray, "n label"] | None
    groups: tuple[str, ...] | None
    slice_indices: Int64[np.ndarray, " n"] | None
    n_slices: Int64[np.ndarray, " n"] | None  # of the volume of each slice
    warnings: tuple[str, ...]
    pixels: tuple[str, ...] | None = None  # digests of the pixels behind the rows, where cases state them
    heads: tuple[str, ...] = ()  # digests of the heads behind the scores, where cases state them
    datasets_dir: Path | None = None  # where relative paths of volumes are looked for first

    @property
    def heights(self) -> Float64[np.ndarray, " n"]:
        """Where in its volume each slice lies: 0 is the inferior end, 1 the superior."""
        assert self.slice_indices is not None
        assert self.n_slices is not None
        return np.asarray((self.slice_indices + 0.5) / self.n_slices)

    @cached_property
    def inputs(self) -> tuple[VolumeInput | None, ...]:
        """The volume of each row, where one is named; paths are relative to `datasets_dir` or the table's folder."""
        cells = self.csv.cells
        lower = {str(name).casefold(): str(name) for name in cells.columns}
        names = [*VOLUME_COLUMNS, "series_uid"]
        frame = pd.DataFrame({name: cells[lower[name]] if name in lower else "" for name in names}, index=cells.index)
        return volume_inputs(frame, self.csv.path.parent, self.datasets_dir, self.csv.path.name)

    def take(self, rows: Int64[np.ndarray, " kept"]) -> PredictionTable:
        """The table of the rows at these positions, in that order."""
        return replace(
            self,
            csv=replace(self.csv, cells=self.csv.cells.iloc[rows]),
            labels=self.labels[rows],
            groups=None if self.groups is None else tuple(self.groups[k] for k in rows),
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            slice_indices=None if self.slice_indices is None else self.slice_indices[rows],
            n_slices=None if self.n_slices is None else self.n_slices[rows],
        )

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        return [str(cell) for cell in self.csv.column(name)]

    def calibrated(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """The columns `p_calibrated_NAME` of `predict`, of the labels for which every row has one."""
        names = {str(name).casefold() for name in self.csv.cells.columns}
        columns = {name: f"{SCORE}calibrated_{name}" for name in self.names}
        known = {k: v for k, v in columns.items() if v.casefold() in names and "" not in self.column(v)}
        return {name: _numbers(self.csv, column) for name, column in known.items()}

    def require_same_rows(self, other: PredictionTable) -> None:
        """Raise DatasetError unless another table has the same labels of the same patients, row for row."""
        if self.names != other.names or len(self.labels) != len(other.labels):
            found, expected = (f"{len(one.labels)} rows of {', '.join(one.names)}" for one in (other, self))
            raise DatasetError(f"{other.csv.path}: found {found}; expected the {expected} of {self.csv.path}")
        other_groups = self.groups if other.groups is None else other.groups
        differ = (self.labels != other.labels).any(axis=1)
        if self.groups is not None and other_groups is not None:
            differ |= np.array([a != b for a, b in zip(self.groups, other_groups, strict=True)])
        if differ.any():
            rows = name_rows([int(row) for row in other.csv.cells.index[differ]], counted=False)
            raise DatasetError(
                f"{other.csv.path}: labels or patients differ from {self.csv.path} in {rows}; expected the same rows "
                "in the same order"
            )


def read_predictions(path: Path, labels: Sequence[str] = (), cases: Path | None = None) -> PredictionTable:
    """The labels and scores of a table.

    `labels` names the labels, or `NAME=COLUMN` where the score is `p_NAME` and the label stands in COLUMN; by default
    every column that has a column of scores. `cases` is a folder of case folders whose `slice_probs.npy` are the scores
    of the slices that the table lists.

    Raises:
        SeriesTableError: no such table, or no labels with scores in it.
        LabelError: labels other than 0 and 1.
        DatasetError: scores or indices that are not numbers; a slice beyond its volume; a slice or series listed twice.
    """
    csv = read_csv_file(path, "table of predictions")
    header = [str(name) for name in csv.cells.columns]
    lower = {name.casefold() for name in header}
    wanted = [one.partition("=")[::2] for one in labels]
    pairs = [(name, column or name) for name, column in wanted]
    pairs = pairs or [(name, name) for name in header if f"{SCORE}{name}".casefold() in lower]
    if not pairs:
        raise SeriesTableError(
            f"{path.name}: no label with scores, such as any and {SCORE}any; found {', '.join(header)}; name the "
            "labels with --labels NAME or NAME=COLUMN"
        )
    truth = np.stack([csv.binary(column) for _, column in pairs], axis=1)
    names = tuple(name for name, _ in pairs)
    groups, warnings = _patients(csv, lower)
    indices, n_slices, more = _places(csv, lower) if "slice_index" in lower else (None, None, ())
    more = more if cases is None else ()  # cases state their number of slices
    _require_once(csv, lower)
    table = PredictionTable(csv, names, truth, None, groups, indices, n_slices, (*csv.warnings, *warnings, *more))
    if cases is not None:
        return _with_cases(table, cases)
    scored = [f"{SCORE}{name}".casefold() in lower for name in names]
    if any(scored) and not all(scored):
        lacking = [f"{SCORE}{name}" for name, has in zip(names, scored, strict=True) if not has]
        raise SeriesTableError(f"{path.name} lacks the scores {', '.join(lacking)}; add them, or name fewer --labels")
    if not any(scored):
        return table
    return replace(table, probabilities=np.stack([_numbers(csv, f"{SCORE}{name}") for name in names], axis=1))


def read_row_table(path: Path, embeddings: Path, n_rows: int) -> PredictionTable:
    """The rows of a table that belong to the rows of some embeddings, for their patients and subgroups; it may lack
    labels and scores.

    `X_source_rows.npy` beside `X_embeddings.npy`, as train-rsna and extract write it, says which rows of the series CSV
    they are (or of a split's CSV, by its column source_row); otherwise the table has a row for each, in order.
    Raises DatasetError where the counts differ, or a row is not in the table.
    """
    csv = read_csv_file(path, "table of rows")
    lower = {str(name).casefold() for name in csv.cells.columns}
    groups, warnings = _patients(csv, lower)
    empty = np.zeros((len(csv.cells), 0))
    indices, n_slices, more = _places(csv, lower) if "slice_index" in lower else (None, None, ())
    about = (*csv.warnings, *warnings, *more)
    table = PredictionTable(csv, (), empty.astype(np.int8), None, groups, indices, n_slices, about)
    source = embeddings.with_name(embeddings.name.replace("_embeddings.npy", "_source_rows.npy"))
    if source != embeddings and source.is_file():
        rows = [int(row) for row in (csv.column("source_row") if "source_row" in lower else csv.cells.index)]
        places = pd.Series(range(len(rows)), rows).reindex(read_array(source))
        if places.isna().any():
            missing = name_rows([int(row) for row in places.index[places.isna()]], counted=False)
            raise DatasetError(f"{path} lacks {missing}, which {source} names; pass the table they were extracted from")
        table = table.take(places.to_numpy(dtype=np.int64))
    if len(table.csv.cells) != n_rows:
        raise DatasetError(
            f"{path} has {len(table.csv.cells)} rows and {embeddings} has {n_rows}; expected a row for each, in order, "
            f"or {source.name} beside it"
        )
    return table


def _integers(csv: CsvFile, name: str) -> Int64[np.ndarray, " row"]:
    return _numbers(csv, name, r"\d+(\.0*)?", "a whole number from 0").astype(np.int64)


def _numbers(
    csv: CsvFile, name: str, pattern: str = _NUMBER, expected: str = "a number"
) -> Float64[np.ndarray, " row"]:
    column = csv.column(name)
    bad = column[~column.str.fullmatch(pattern)]
    if len(bad):
        rows = name_rows([int(row) for row in bad.index], counted=False)
        raise DatasetError(f"{csv.path}: {column.name} is {bad.iloc[0]!r:.40} in {rows}; expected {expected}")
    return column.to_numpy(dtype=np.float64)


def _patients(csv: CsvFile, lower: set[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    # patients, else studies; a row with neither is a patient of its own
    known = [name for name in ("patient_id", "study_uid") if name in lower]
    if not known:
        return None, ()
    groups = pd.Series("", csv.cells.index)
    for name in known:
        cells = csv.column(name)
        groups = groups.where((groups != "") | (cells == ""), f"{name}:" + cells)
    rows = pd.Series([f"row:{row}" for row in csv.cells.index], csv.cells.index)
    groups = groups.where(groups != "", rows)
    warnings = [
        f"{csv.path.name}: {n} rows name no patient; {instead}"
        for kind, instead in (("row:", "each counts as its own"), ("study_uid:", "their studies count as patients"))
        if (n := int(groups.str.startswith(kind).sum()))
    ]
    return tuple(groups), tuple(warnings)


def _require_once(csv: CsvFile, lower: set[str]) -> None:
    # a row counted twice narrows every interval; a patient may have several series, but not a series twice
    is_of_slices = "slice_index" in lower
    named = [name for name in _OF_VOLUME if name in lower and (is_of_slices or name not in ("study_uid", "patient_id"))]
    key = [*named, *(name for name in ("slice_index", "n_slices") if name in lower)]
    cells = pd.DataFrame({name: csv.column(name) for name in key}, index=csv.cells.index)
    cells = cells[(cells[named] != "").any(axis=1)]
    if named and (twice := cells.duplicated(keep=False)).any():
        rows = name_rows([int(row) for row in cells.index[twice]], counted=False)
        what = "slice" if is_of_slices else "series"
        raise DatasetError(
            f"{csv.path.name}: the same {what} ({', '.join(key)}) is listed more than once, in {rows}; keep one row of "
            "each, or tell the volumes apart by series_uid"
        )


def _places(csv: CsvFile, lower: set[str]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], tuple[str, ...]]:
    indices = _integers(csv, "slice_index")
    warnings: tuple[str, ...] = ()
    if "n_slices" in lower:
        n_slices = _integers(csv, "n_slices")
    else:
        volume = csv.column(next(name for name in (*_OF_VOLUME, "slice_index") if name in lower))
        n_slices = pd.Series(indices, csv.cells.index).groupby(volume).transform("max").to_numpy() + 1
        warnings = (
            f"{csv.path.name} has no column n_slices: a volume is taken to end at the last slice of it that is listed",
        )
    bad = (indices < 0) | (indices >= n_slices)
    if bad.any():
        rows = name_rows([int(row) for row in csv.cells.index[bad]], counted=False)
        raise DatasetError(f"{csv.path}: slice_index outside 0 to n_slices - 1 in {rows}; expected 0-based indices")
    return indices, n_slices.astype(np.int64), warnings


def has_volumes(table: PredictionTable) -> bool:
    """Whether every row of a table names its volume."""
    return bool(set(VOLUME_COLUMNS) & {str(name).casefold() for name in table.csv.cells.columns}) and all(
        source is not None for source in table.inputs
    )


def slice_brightness(table: PredictionTable) -> Float64[np.ndarray, " n"]:
    """The mean HU of the brightest patch of brain in each slice, of volumes read again; errors as for `read_volume`.

    Patches are squares of 7 mm side by side whose every pixel has 0 to 100 HU, so that no bone or air is in them; 0
    where a slice has none. Raises DatasetError where the table lists a slice that its volume does not have.
    """
    assert table.slice_indices is not None
    brightness = np.zeros(len(table.labels))
    for source, rows in _by_volume(table.inputs):
        volume, indices = read_volume(source), table.slice_indices[rows]
        if indices.max() >= volume.n_slices:
            raise DatasetError(
                f"{source.path} has {volume.n_slices} slices; {table.csv.path.name} lists slice {indices.max()} of it"
            )
        sides = [max(1, round(_PATCH_MM / spacing)) for spacing in volume.spacing_mm[1:]]
        for row, index in zip(rows, indices.tolist(), strict=True):
            brightness[row] = _brightest_patch(volume.hu_slices([index])[0], sides)
    return brightness


def _brightest_patch(hu: Float32[np.ndarray, "row col"], sides: Sequence[int]) -> float:
    n_rows, n_columns = (length // side for length, side in zip(hu.shape, sides, strict=True))
    whole = hu[: n_rows * sides[0], : n_columns * sides[1]].reshape(n_rows, sides[0], n_columns, sides[1])
    inside = (whole.min(axis=(1, 3)) >= _BRAIN_HU[0]) & (whole.max(axis=(1, 3)) <= _BRAIN_HU[1])
    return float(whole.mean(axis=(1, 3))[inside].max(initial=0.0))


def _by_volume(inputs: Sequence[VolumeInput | None]) -> Iterator[tuple[VolumeInput, list[int]]]:
    rows = sorted(range(len(inputs)), key=lambda row: str(inputs[row]))
    for _, same in groupby(rows, key=lambda row: str(inputs[row])):
        chosen = list(same)
        source = inputs[chosen[0]]
        assert source is not None
        yield source, chosen


def _with_cases(table: PredictionTable, folder: Path) -> PredictionTable:
    # the scores of each slice from the case folder of its volume; slices that were not scored are left out and counted
    if table.slice_indices is None:
        raise UsageError(f"--cases gives scores of slices, and {table.csv.path.name} has no column slice_index")
    found = _read_cases(folder)
    keys = _case_keys(table)
    scores = np.full(table.labels.shape, np.nan)
    sizes, used = np.ones(len(keys), dtype=np.int64), dict[str, str]()
    for row, (key, index) in enumerate(zip(keys, table.slice_indices.tolist(), strict=True)):
        case = found.get(key)
        if case is None or index not in case["rows"]:
            continue
        lacking = [name for name in table.names if name not in case["labels"]]
        if lacking:
            found_labels = name_some(case["labels"])
            raise DatasetError(f"{case['folder']} has no scores of {', '.join(lacking)}; found {found_labels}")
        scores[row] = case["scores"][case["rows"][index]][[case["labels"].index(name) for name in table.names]]
        sizes[row] = case["n_slices"]
        used[case["pixels_sha256"]] = case["head_sha256"]
    kept = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if not len(kept):
        raise DatasetError(f"no slice of {table.csv.path.name} has a score in {folder}; expected cases of its volumes")
    warnings = table.warnings
    if n_without := len(keys) - len(kept):
        warnings += (f"{n_without} of {len(keys)} slices have no score in {folder} and are left out",)
    pixels, heads = tuple(used), tuple(sorted(set(used.values())))
    return replace(table, probabilities=scores, n_slices=sizes, warnings=warnings, pixels=pixels, heads=heads).take(
        kept
    )


def _case_keys(table: PredictionTable) -> list[str]:
    if "case_id" in {str(name).casefold() for name in table.csv.cells.columns}:
        return table.column("case_id")
    return ["" if source is None else str(source.path.resolve()) for source in table.inputs]


def _read_cases(folder: Path) -> dict[str, dict[str, Any]]:
    # {case folder's name, and path of the volume: scores, their slices and labels}
    found: dict[str, dict[str, Any]] = {}
    for summary in sorted([*folder.glob("summary.json"), *folder.glob("*/summary.json")]):
        try:
            document = json.loads(summary.read_text(encoding="utf-8"))
            labels, indices = (document["slice_probs"][name] for name in ("labels", "slice_indices"))
            if document["slice_probs"]["file"] is None:
                continue
            scores = read_array(summary.with_name(document["slice_probs"]["file"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{summary.parent} is not a case of predict with slice_probs.npy ({error})") from error
        rows = {index: row for row, index in enumerate(indices)}
        case = {"folder": summary.parent, "labels": labels, "rows": rows, "scores": scores}
        case["n_slices"] = document["n_slices"]
        case |= {name: document.get(name, "") for name in ("pixels_sha256", "head_sha256")}
        found[summary.parent.name] = found[str(Path(document["input"]).resolve())] = case
    if not found:
        raise DatasetError(f"no case with slice_probs.npy in {folder}; expected the --output-dir of predict")
    return found
