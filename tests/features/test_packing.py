"""Passes are full whatever the volumes' sizes, and every token comes back to its own slice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.ct import OpenedInput
from meddinov3_stroke.features import FeatureExtractor, extract
from meddinov3_stroke.types import Volume, VolumeSource

sizes = st.lists(st.integers(1, 23), min_size=1, max_size=12)
batches = st.integers(1, 9)


class Numbered(OpenedInput):
    """An opened input whose slices hold their index and the number of the volume."""

    path, files, digest = Path("a.nii"), (), "a"

    def __init__(self, number: int, n_slices: int) -> None:
        self.number, self.n_slices = number, n_slices

    def volume(self) -> Volume:
        stored = np.zeros((self.n_slices, 2, 2), np.int16)
        stored[:, 0, 0], stored[:, 0, 1] = np.arange(self.n_slices), 100 + self.number
        zeros, source = np.zeros((self.n_slices, 3)), VolumeSource(Path("a.nii"), "nifti", "a", "b")
        return Volume(stored, 1.0, 0.0, np.eye(4), zeros, np.zeros((self.n_slices, 3, 2)), (5.0, 1.0, 1.0), source)


def embedded(
    make_backbone: Any, n_slices: list[int], batch: int, independent: bool = True, device: str = "cpu"
) -> tuple[list[np.ndarray], list[int]]:
    """The class tokens of volumes of so many slices, and the slices of each pass."""
    backbone = make_backbone(device=device, independent_rows=independent)
    numbers = {Path(f"{number}.nii"): number for number in range(len(n_slices))}
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[extract.__module__]
        patch.setattr(module, "open_input", lambda path: Numbered(numbers[path], n_slices[numbers[path]]))
        found = list(extract(list(numbers), FeatureExtractor(backbone, batch=batch)))
    return [one.embeddings.cls for one in found if one.embeddings is not None], backbone.passes


@given(n_slices=sizes, batch=batches, independent=st.booleans())
def test_every_token_comes_back_to_its_slice(
    make_backbone: Any, n_slices: list[int], batch: int, independent: bool
) -> None:
    found, _ = embedded(make_backbone, n_slices, batch, independent)
    assert len(found) == len(n_slices)
    for number, (cls, n) in enumerate(zip(found, n_slices, strict=True)):
        np.testing.assert_array_equal(cls[:, 0], np.arange(n))
        np.testing.assert_array_equal(cls[:, 2], 100 + number)


@given(n_slices=sizes, batch=batches)
def test_all_passes_but_the_last_are_full(make_backbone: Any, n_slices: list[int], batch: int) -> None:
    _, passes = embedded(make_backbone, n_slices, batch)
    assert set(passes[:-1]) <= {batch}
    assert sum(passes) == sum(n_slices)


@pytest.mark.parametrize(
    ("device", "independent", "passes"),
    [("cpu", True, [4, 4, 2]), ("cpu", False, [4, 1, 4, 1]), ("cuda:0", False, [4, 4, 2])],
)
def test_a_cpu_engine_whose_rows_touch_gets_each_volume_by_itself(
    make_backbone: Any, device: str, independent: bool, passes: list[int]
) -> None:
    assert embedded(make_backbone, [5, 5], 4, independent, device)[1] == passes
