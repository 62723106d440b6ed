"""Facts and calibrations as they would be after reading weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meddinov3_stroke.models import Calibration, WeightsFacts
from meddinov3_stroke.types import Preprocessing

WEIGHTS = "ab" * 32


@pytest.fixture
def facts() -> WeightsFacts:
    """Facts of some weights."""
    return WeightsFacts(WEIGHTS, 64, 16, "bf16", Preprocessing(-1000.0, 1000.0, 65.1084213256836, 178.01663, "v-1"))


@pytest.fixture
def calibration_with() -> Callable[..., Calibration]:
    """Makes a faithful calibration of the same weights; keywords replace its fields."""

    def make(**changes: Any) -> Calibration:
        fields: dict[str, Any] = {
            "weights_sha256": WEIGHTS,
            "resize": 64,
            "graph_sha256": "cd" * 32,
            "cls_cosine_min": 0.9992,
            "cls_cosine_mean": 0.9996,
            "n_calibration_volumes": 4,
            "n_calibration_slices": 32,
            "n_check_volumes": 2,
            "n_check_slices": 16,
            "calibration_inputs_sha256": ("11" * 32, "22" * 32),
            "check_inputs_sha256": ("33" * 32,),
            "settings": {"nncf": "3.4"},
        }
        return Calibration(**(fields | changes))

    return make


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A file that stands for weights where no tensor is read."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    return path
