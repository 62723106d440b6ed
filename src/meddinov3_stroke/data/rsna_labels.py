"""Kaggle's `stage_2_train.csv`: `ID,Label` rows, `ID_<sop>_<label>`, six for each slice, some of them twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from jaxtyping import Bool, Int8, Int32, Int64

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.errors import LabelError
from meddinov3_stroke.labels import LabelPolicy, settle_any
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import LABELS

ConflictPolicy = Literal["stop", "positive"]
"""What to do where an ID stands twice with different labels: stop and name the IDs, or take it as positive."""

CONFLICT_POLICIES: tuple[str, ...] = get_args(ConflictPolicy)

ID_PATTERN = rf"^(?P<sop>.+)_(?P<label>{'|'.join(LABELS)})$"

NAMED = 5
"""IDs that an error names before it only counts the rest."""

_BLOCK_BYTES = 1 << 23
"""Bytes of the CSV that are held as text at a time."""


@dataclass(frozen=True, eq=False)
class SliceLabels:
    """The six labels of every image that the CSV names, and what it took to get them."""

    sop_uids: pa.Array
    """Strings, each once, in the order of the CSV."""
    labels: Int8[np.ndarray, "image 6"]
    """In the order of `LABELS`."""
    n_rows: int
    n_repeated: int
    """Rows dropped because an identical one came before."""
    n_conflicting: int
    """IDs with different labels, taken as positive; 0 unless that was asked for."""
    sha256: str
    """Digest of the CSV's bytes."""
    warnings: tuple[str, ...] = ()

    def places_of(self, sop_uids: pa.Array) -> Int64[np.ndarray, " asked"]:
        """Row of `labels` of each SOP UID asked for, -1 where the CSV does not name it."""
        places = pc.fill_null(pc.index_in(sop_uids, value_set=self.sop_uids), -1)
        return np.asarray(places).astype(np.int64)

    @property
    def document(self) -> dict[str, Any]:
        """For JSON; n_rows = 6 * n_images + n_repeated + n_conflicting_rows."""
        return {
            "sha256": self.sha256,
            "n_rows": self.n_rows,
            "n_images": len(self.labels),
            "n_repeated": self.n_repeated,
            "n_conflicting_ids": self.n_conflicting,
            "n_conflicting_rows": self.n_rows - 6 * len(self.labels) - self.n_repeated,
            "n_positive": {label: int(self.labels[:, k].sum()) for k, label in enumerate(LABELS)},
        }


def read_slice_labels(path: Path, *, conflicts: ConflictPolicy, policy: LabelPolicy) -> SliceLabels:
    """The labels of every image in Kaggle's CSV at `path`.

    Raises:
        LabelError: no such file or other columns, an ID of another form, a label other than 0 and 1, an image without
            all six, an ID with two different labels (unless `conflicts` says what to take), or `any` that is not the OR
            of the types (unless `policy` does).
        MachineError: the file cannot be read.
    """
    sops, codes, values = _columns(path)
    image, sop_uids = _numbered(sops)
    key = image * len(LABELS) + codes
    n_images = len(sop_uids)
    counts, ones = (np.bincount(some, minlength=n_images * len(LABELS)) for some in (key, key[values == 1]))
    _require_all_six(counts.reshape(n_images, -1), sop_uids, path)
    disagree = (ones > 0) & (ones < counts)
    if disagree.any() and conflicts == "stop":
        raise _conflict(np.flatnonzero(disagree), sop_uids, path)
    given = (ones > 0).astype(np.int8).reshape(n_images, -1)
    labels, warnings = _settled(given, sop_uids, policy, path)
    if disagree.any():
        warnings.append(f"{path.name}: {int(disagree.sum())} IDs have both labels and were taken as positive")
    with machine_errors(path):
        sha256 = sha256_of_file(path)
    n_repeated = int((counts[~disagree] - 1).sum())
    return SliceLabels(sop_uids, labels, len(values), n_repeated, int(disagree.sum()), sha256, tuple(warnings))


def _columns(path: Path) -> tuple[pa.ChunkedArray, Int8[np.ndarray, " row"], Int8[np.ndarray, " row"]]:
    """(SOP UID as a dictionary, place in `LABELS`, value) of each row of the CSV."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise LabelError(
            f"no labels at {path}; found {found}, expected Kaggle's stage_2_train.csv; --root names its folder"
        )
    pieces = list(_pieces(path))
    if not pieces:
        raise LabelError(f"{path} has no rows; expected six for each image")
    sops, codes, values = zip(*pieces, strict=True)
    return pa.chunked_array(sops), np.concatenate(codes), np.concatenate(values)


def _pieces(path: Path) -> Iterator[tuple[pa.Array, Int8[np.ndarray, " row"], Int8[np.ndarray, " row"]]]:
    names = pa.array(LABELS)
    for batch in _batches(path):
        parts = pc.extract_regex(batch["ID"], pattern=ID_PATTERN)
        unlike = pc.invert(pc.is_valid(parts))
        if pc.any(unlike).as_py():
            raise LabelError(
                f"{path}: an ID is {batch['ID'].filter(unlike)[0].as_py()!r}; expected ID_<sop>_<label>, the label one "
                f"of {', '.join(LABELS)}; is this stage_2_train.csv?"
            )
        values = batch["Label"]
        bad = pc.fill_null(pc.invert(pc.is_in(values, value_set=pa.array([0, 1], pa.int8()))), True)
        if pc.any(bad).as_py():
            raise LabelError(
                f"{path}: {batch['ID'].filter(bad)[0].as_py()} has the label {values.filter(bad)[0].as_py()}; expected "
                "0 or 1; fetch the file again"
            )
        codes = pc.index_in(pc.struct_field(parts, "label"), value_set=names)
        sops = pc.struct_field(parts, "sop").dictionary_encode()  # six rows of an image follow one another
        yield sops, np.asarray(codes).astype(np.int8), np.asarray(values)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    wanted = {"ID": pa.string(), "Label": pa.int8()}
    convert = pcsv.ConvertOptions(column_types=wanted, include_columns=list(wanted), strings_can_be_null=False)
    try:
        with (
            machine_errors(path),
            pcsv.open_csv(path, pcsv.ReadOptions(block_size=_BLOCK_BYTES), convert_options=convert) as rows,
        ):
            yield from rows
    except (pa.ArrowException, KeyError) as error:
        raise LabelError(
            f"{path} cannot be read as labels: {' '.join(str(error).split())}; expected the columns ID and Label, "
            "with 0 or 1 in the second"
        ) from error


def _numbered(sops: pa.ChunkedArray) -> tuple[Int32[np.ndarray, " row"], pa.Array]:
    """(number of each row's image, SOP UIDs by number)."""
    unified = sops.unify_dictionaries()
    indices = [np.asarray(chunk.indices) for chunk in unified.chunks]
    return np.concatenate(indices).astype(np.int32), unified.chunk(0).dictionary


def _require_all_six(counts: Int64[np.ndarray, "image 6"], sop_uids: pa.Array, path: Path) -> None:
    lacking = np.flatnonzero((counts == 0).any(axis=1))
    if lacking.size:
        first = lacking[0]
        absent = ", ".join(label for label, count in zip(LABELS, counts[first], strict=True) if count == 0)
        raise LabelError(
            f"{path}: {lacking.size} image(s) lack some of their six rows, first {sop_uids[int(first)].as_py()} (no "
            f"{absent}); the file is cut; fetch it again"
        )


def _conflict(keys: Int64[np.ndarray, " key"], sop_uids: pa.Array, path: Path) -> LabelError:
    ids = [f"{sop_uids[int(key) // len(LABELS)].as_py()}_{LABELS[int(key) % len(LABELS)]}" for key in keys[:NAMED]]
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return LabelError(
        f"{path}: {len(keys)} ID(s) stand there with both 0 and 1: {', '.join(ids)}{more}; correct them, or pass "
        "--conflicting-labels positive"
    )


def _settled(
    given: Int8[np.ndarray, "image 6"], sop_uids: pa.Array, policy: LabelPolicy, path: Path
) -> tuple[Int8[np.ndarray, "image 6"], list[str]]:
    is_wrong: Bool[np.ndarray, " image"] = given[:, 0] != given[:, 1:].max(axis=1)
    if not is_wrong.any():
        return given, []  # spares the names of 752,803 images
    settled, warnings = settle_any(
        given[is_wrong], LABELS, policy, path.name, sop_uids.filter(pa.array(is_wrong)).to_pylist()
    )
    labels = given.copy()
    labels[is_wrong] = settled
    return labels, warnings
