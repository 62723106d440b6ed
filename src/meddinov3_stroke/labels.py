"""Label matrices: their values, the names of their columns, and the policy for `any` that contradicts the subtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int8

from meddinov3_stroke.errors import NAMED, LabelError, name_some
from meddinov3_stroke.types import LABELS

LabelPolicy = Literal["strict", "fix-any", "ignore"]
"""What to do where `any` is not the OR of the five subtypes: fail, set `any` to the OR, or keep it as it is."""


def label_matrix(values: np.ndarray, where: str) -> Int8[np.ndarray, "n label"]:
    """The labels as int8 [n, label]; a one-dimensional array is one label.

    Raises:
        LabelError: not numbers, more than two dimensions, empty, or a value other than 0 and 1 (with rows).
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise LabelError(f"{where}: labels of type {array.dtype}; expected numbers 0 and 1; save them as int8")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or 0 in array.shape:
        raise LabelError(f"{where}: labels of shape {array.shape}; expected [rows, labels] with at least one of each")
    bad = ~((array == 0) | (array == 1))
    if bad.any():
        found = ", ".join(sorted({f"{value:g}" for value in array[bad].tolist()})[:NAMED])
        raise LabelError(
            f"{where}: labels other than 0 and 1 in {name_rows(np.nonzero(bad.any(axis=1))[0])}; found {found}, "
            "expected 0 or 1; correct or remove these rows"
        )
    return array.astype(np.int8)


def label_names(n_labels: int) -> tuple[str, ...]:
    """The six names for six labels, `class_0`, `class_1`... for any other number."""
    return LABELS if n_labels == len(LABELS) else tuple(f"class_{index}" for index in range(n_labels))


def contradicts_any(labels: Int8[np.ndarray, "n label"], names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Rows whose `any` is not the OR of the subtypes; none where the columns are not the six labels."""
    if set(names) != set(LABELS):
        return np.zeros(len(labels), dtype=bool)
    column = list(names).index("any")
    return np.asarray(labels[:, column] != np.delete(labels, column, axis=1).max(axis=1))


def apply_label_policy(
    labels: Int8[np.ndarray, "n label"],
    names: Sequence[str],
    policy: LabelPolicy,
    where: str,
    row_names: Sequence[Any] | None = None,
) -> tuple[Int8[np.ndarray, "n label"], list[str]]:
    """(labels after `policy`, a warning if any row contradicts itself); the input is not modified.

    Raises:
        LabelError: policy strict, and `any` contradicts the subtypes (with rows, named by `row_names`).
    """
    rows = np.nonzero(contradicts_any(labels, names))[0]
    if not rows.size:
        return labels, []
    named = name_rows(rows) if row_names is None else name_rows([row_names[int(row)] for row in rows], counted=False)
    fault = f"{where}: `any` is not the OR of the five subtypes in {named}"
    if policy == "strict":
        raise LabelError(
            f"{fault}; correct them, or pass --label-policy fix-any (set `any` to the OR) or ignore (keep them)"
        )
    if policy == "ignore":
        return labels, [f"{fault}; kept as they are (--label-policy ignore)"]
    column = list(names).index("any")
    fixed = labels.copy()
    fixed[:, column] = np.delete(labels, column, axis=1).max(axis=1)
    return fixed, [f"{fault}; `any` set to the OR (--label-policy fix-any)"]


def name_rows(rows: Sequence[Any] | np.ndarray, counted: bool = True) -> str:
    """`row 3`, or `rows 3, 5, 8 (counted from 0)`; after the first few only how many more."""
    return f"row{'s' if len(rows) > 1 else ''} {name_some(rows)}{' (counted from 0)' if counted else ''}"
