"""Voxels go slab by slab from the file to their canonical place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from meddinov3_stroke.ct import nifti, read_volume
from meddinov3_stroke.ct.nifti import ByteStream
from meddinov3_stroke.errors import CorruptInput

CANONICAL_AFFINE = np.array([[0, 0, -0.5, 60.0], [0, -0.5, 0, 80.0], [0.7, 0, 0, -30.0], [0, 0, 0, 1]])
FILE_ORDERS = [
    pytest.param(np.array([[2, 1], [1, 1], [0, 1]]), id="slices last"),
    pytest.param(np.array([[2, -1], [1, 1], [0, -1]]), id="slices last, flipped"),
    pytest.param(np.array([[1, 1], [2, -1], [0, 1]]), id="slices in the middle"),
    pytest.param(np.array([[0, -1], [1, -1], [2, 1]]), id="slices first"),
]


@pytest.fixture
def write_in_order(write_nifti: Callable[..., Path]) -> Callable[..., Path]:
    """A function that writes canonical voxels with the file's axes in an order of nibabel's making."""

    def write(canonical: np.ndarray, axes: np.ndarray, **options: object) -> Path:
        affine = CANONICAL_AFFINE @ inv_ornt_aff(axes, canonical.shape)
        return write_nifti(apply_orientation(canonical, axes), affine, **options)

    return write


@pytest.mark.parametrize("axes", FILE_ORDERS)
@pytest.mark.parametrize("slab_bytes", [1, 70, 200, 10**6])
def test_slabs_of_any_size_give_the_same_voxels(write_in_order, monkeypatch, axes, slab_bytes) -> None:
    canonical = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    path = write_in_order(canonical, axes, name="case.nii", order=">")
    monkeypatch.setattr(nifti, "SLAB_BYTES", slab_bytes)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 250, dtype))  # no luck with old memory

    np.testing.assert_array_equal(read_volume(path).stored, canonical)


@pytest.mark.parametrize("axes", FILE_ORDERS)
def test_one_copy_of_the_voxels_is_held_while_they_are_read(write_in_order, axes) -> None:
    canonical = np.zeros((64, 512, 512), dtype=np.int16)
    path = write_in_order(canonical, axes, name="case.nii", order=">")
    tracemalloc.start()
    try:
        read_volume(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak_bytes < canonical.nbytes + nifti.SLAB_BYTES + (2 << 20) < 1.25 * canonical.nbytes


@pytest.mark.parametrize("n_lost", [1, 40, 41, 239])
def test_a_file_cut_in_any_slab_is_reported_with_its_length(make_nifti_bytes, write, head, monkeypatch, n_lost) -> None:
    monkeypatch.setattr(nifti, "SLAB_BYTES", 1)
    content = make_nifti_bytes(head)

    with pytest.raises(CorruptInput, match=f"ends after {592 - n_lost} bytes of content; its header declares 592"):
        read_volume(write(content[:-n_lost]))


def test_a_stream_that_has_ended_is_not_read_further(make_nifti_bytes, write, head, monkeypatch) -> None:
    monkeypatch.setattr(nifti, "SLAB_BYTES", 1)
    path, fill, filled = write(make_nifti_bytes(head)[:-150]), ByteStream.fill, []  # one and a half of four planes

    def noted(stream: ByteStream, target: memoryview) -> int:
        filled.append(fill(stream, target))
        return filled[-1]

    monkeypatch.setattr(ByteStream, "fill", noted)
    with pytest.raises(CorruptInput):
        read_volume(path)
    assert filled[-2:] == [60, 30]


def test_the_smallest_files_need_no_whole_slab(write_nifti, head) -> None:
    path = write_nifti(head)
    tracemalloc.start()
    try:
        read_volume(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak_bytes < nifti.SLAB_BYTES / 4
