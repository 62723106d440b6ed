"""Whatever is done to a file, it is refused by name or read with the voxels it declares."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import InputError, OutOfScope
from meddinov3_stroke.types import Volume

VOXELS = np.random.default_rng(11).integers(-1000, 2000, (6, 5, 4), dtype=np.int16)
AFFINE = np.diag([-0.5, -0.5, 5.0, 1.0])
PLAIN = {1: nib.Nifti1Image(VOXELS, AFFINE).to_bytes(), 2: nib.Nifti2Image(VOXELS, AFFINE).to_bytes()}
PACKED = gzip.compress(PLAIN[1], mtime=0)

patches = st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


def _read(content: bytes, name: str) -> Volume:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return read_volume(path, max_voxels=10**6)


def _declared_voxels(content: bytes, n_voxels: int) -> np.ndarray:
    """The values after the voxel offset, in the type that nibabel reads in the header."""
    image_type = (
        nib.Nifti1Image
        if 348 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        else nib.Nifti2Image
    )
    header = image_type.header_class(content[: image_type.header_class.sizeof_hdr], check=False)
    return np.frombuffer(content[int(header["vox_offset"]) :], header.get_data_dtype(), count=n_voxels)


def _patched(content: bytes, changes: list[tuple[int, bytes]], limit: int | None = None) -> bytes:
    changed = bytearray(content)
    for place, new in changes:
        place %= min(limit or len(content), len(content))
        changed[place : place + len(new)] = new
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(version=st.sampled_from([1, 2]), changes=patches, pack=st.booleans())
def test_a_header_of_any_bytes_is_refused_or_gives_what_it_declares(version, changes, pack) -> None:
    content = _patched(PLAIN[version], changes, limit=348)
    try:
        volume = _read(gzip.compress(content) if pack else content, "case.nii.gz" if pack else "case.nii")
    except (InputError, OutOfScope):
        return
    assert sorted(volume.stored.ravel()) == sorted(_declared_voxels(content, math.prod(volume.stored.shape)))
    assert np.isfinite(volume.hu).all()
    assert np.isfinite(volume.affine).all()
    assert volume.slice_positions_mm.shape == (volume.n_slices, 3)


@settings(max_examples=300, deadline=None)
@given(changes=patches)
def test_changed_gzip_bytes_are_refused_or_give_the_same_voxels(changes) -> None:
    try:
        volume = _read(_patched(PACKED, changes), "case.nii.gz")
    except InputError:
        return
    np.testing.assert_array_equal(volume.stored, VOXELS.transpose(2, 1, 0))


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=700), name=st.sampled_from(["case.nii", "case.nii.gz", "case.img"]))
def test_arbitrary_bytes_are_refused_with_an_input_error(content, name) -> None:
    with pytest.raises(InputError):
        _read(content, name)


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, len(PLAIN[1])), max_size=5), padding=st.integers(0, 70000), level=st.integers(0, 9))
def test_any_division_into_members_reads_alike(cuts, padding, level) -> None:
    edges = [0, *sorted(cuts), len(PLAIN[1])]
    members = [gzip.compress(PLAIN[1][a:b], compresslevel=level) for a, b in itertools.pairwise(edges)]
    volume = _read(b"".join(members) + bytes(padding), "case.nii.gz")
    np.testing.assert_array_equal(volume.stored, VOXELS.transpose(2, 1, 0))
