"""Passes are full whatever the volumes' sizes, and every token comes back to its own slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddinov3_stroke.features.packing import Packer
from meddinov3_stroke.features.reading import OpenVolume, Window
from meddinov3_stroke.types import SliceSelection, VolumeInput

sizes = st.lists(st.integers(1, 23), min_size=1, max_size=12)
batches = st.integers(1, 9)


class Echo:
    """A backbone whose token of a slice is the slice's first value; keeps a diary of passes."""

    device = "cpu"

    def __init__(self, independent_rows: bool = True, device: str = "cpu") -> None:
        self.independent_rows, self.device = independent_rows, device
        self.passes: list[int] = []

    identity = None

    def refuse_non_finite(self, cls: np.ndarray, *, first: int = 0) -> None:
        raise AssertionError("the packer judges nothing")

    def class_tokens(self, pixels: np.ndarray) -> np.ndarray:
        self.passes.append(len(pixels))
        return pixels[:, 0, 0]


def finish(*args: Any) -> Any:
    raise AssertionError("the packer neither opens nor finishes volumes")


class Batched:
    def __init__(self, backbone: Echo, batch: int) -> None:
        self.backbone, self.batch = backbone, batch

    resize, selection = 224, SliceSelection()
    chosen = windows = finisher = finish


def pack(n_slices: list[int], batch: int, backbone: Echo) -> tuple[list[OpenVolume], list[str]]:
    """The volumes with their tokens, and which volume was told of tokens, in order."""
    told: list[str] = []
    packer = Packer(Batched(backbone, batch), lambda volume: told.append(volume.key))
    volumes = []
    for number, n in enumerate(n_slices):
        volume = OpenVolume(VolumeInput(Path(f"{number}.nii")), str(number), n, finish)
        values = (1000 * number + np.arange(n, dtype=np.float32))[:, None, None, None]
        for start in range(0, n, batch):
            packer.add(Window(volume, values[start : start + batch]))
        volumes.append(volume)
    packer.flush()
    return volumes, told


@given(sizes, batches, st.booleans())
def test_every_token_comes_back_to_its_slice(n_slices: list[int], batch: int, independent: bool) -> None:
    volumes, _ = pack(n_slices, batch, Echo(independent))
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(np.concatenate(volume.cls)[:, 0], 1000 * number + np.arange(n_slices[number]))
        assert volume.n_done == volume.n_chosen


@given(sizes, batches)
def test_all_passes_but_the_last_are_full(n_slices: list[int], batch: int) -> None:
    backbone = Echo()
    pack(n_slices, batch, backbone)
    assert set(backbone.passes[:-1]) <= {batch}
    assert sum(backbone.passes) == sum(n_slices)


@given(sizes, batches)
def test_volumes_are_told_of_in_their_order(n_slices: list[int], batch: int) -> None:
    _, told = pack(n_slices, batch, Echo())
    assert told == sorted(told, key=int)


@pytest.mark.parametrize(
    ("device", "independent", "passes"),
    [("cpu", True, [4, 4, 2]), ("cpu", False, [4, 1, 4, 1]), ("cuda:0", False, [4, 4, 2])],
)
def test_a_cpu_engine_whose_rows_touch_gets_each_volume_by_itself(
    device: str, independent: bool, passes: list[int]
) -> None:
    backbone = Echo(independent, device)
    pack([5, 5], 4, backbone)
    assert backbone.passes == passes
