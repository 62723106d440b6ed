"""A row that cannot be read, for whatever reason of its own, ends alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meddinov3_stroke.features import EmbeddingStore, extract
from meddinov3_stroke.types import VolumeInput


@pytest.mark.parametrize(
    ("files", "series_uid", "code"),
    [
        (pa.array([5]), "s", "E-INPUT-CORRUPT"),
        (pa.array([b"\xff"]), "s", "E-INPUT-CORRUPT"),
        (pa.array(["a"]), None, "E-INPUT-UNSUPPORTED"),
    ],
    ids=["numbers", "bytes", "no series"],
)
def test_a_header_index_that_is_none_ends_one_row_and_not_the_run(
    head_nifti: Callable[..., Path],
    extractor: Any,
    store: EmbeddingStore,
    tmp_path: Path,
    files: pa.Array,
    series_uid: str | None,
    code: str,
) -> None:
    index = tmp_path / "index.parquet"
    pq.write_table(pa.table({"series_uid": ["s"], "file": files}), index)

    inputs = [VolumeInput(index, series_uid), VolumeInput(head_nifti())]
    bad, good = extract(inputs, extractor, store)
    assert (bad.outcome.status, bad.outcome.code, good.outcome.status) == ("rejected", code, "done")
