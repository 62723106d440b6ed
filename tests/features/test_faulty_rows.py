"""A row that cannot be read, for whatever reason of its own, ends alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meddinov3_stroke.ct import input_digest
from meddinov3_stroke.features import EmbeddingStore, extract_series
from meddinov3_stroke.types import VolumeInput

Scan = Callable[[str, str], Path]


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
    scan: Scan,
    extractor: Any,
    reader: Any,
    store: EmbeddingStore,
    tmp_path: Path,
    files: pa.Array,
    series_uid: str | None,
    code: str,
) -> None:
    index = tmp_path / "index.parquet"
    pq.write_table(pa.table({"series_uid": ["s"], "file": files}), index)

    def digest(source: VolumeInput) -> str:
        return input_digest(source) if source.path == index else reader.digest(source)

    inputs = [VolumeInput(index, series_uid), VolumeInput(scan("a.nii", "3"))]
    bad, good = extract_series(inputs, extractor, store, reader, digest)
    assert (bad.status, bad.code, good.status) == ("rejected", code, "done")
