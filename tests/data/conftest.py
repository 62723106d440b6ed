"""Hand-written series CSVs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = "nifti_path,study_uid,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural"


@pytest.fixture
def series_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows under a header, in an encoding."""

    def write(*rows: str, header: str = HEADER, encoding: str = "utf-8", newline: str = "\n") -> Path:
        path = tmp_path / "series.csv"
        path.write_bytes((newline.join((header, *rows)) + newline).encode(encoding))
        return path

    return write
