"""A changed, cut or lengthened container never gives voxels; content after the last voxel does not change them."""

from __future__ import annotations

import gzip
import math
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.ct.nifti import MAX_TRAILING_BYTES
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput
from meddinov3_stroke.types import Volume

GZIP_HEADER_BYTES = 10
"""Of a member without a name; its mtime, XFL, OS and FTEXT say nothing of the content."""


@pytest.fixture
def packed(make_nifti_bytes: Callable[..., bytes]) -> bytes:
    voxels = np.random.default_rng(5).integers(-1000, 2000, (6, 5, 4), dtype=np.int16)
    return gzip.compress(make_nifti_bytes(voxels), mtime=0)


def _read_or_none(path: Path) -> Volume | None:
    try:
        return read_volume(path)
    except InputError:
        return None


def test_no_single_flipped_bit_gives_other_voxels(packed, write) -> None:
    sound = read_volume(write(packed, pack=False))
    accepted_payload_bits = 0
    n_bits = 8 * len(packed)
    for bit in {*range(8 * GZIP_HEADER_BYTES), *range(0, n_bits, 3), *range(n_bits - 64, n_bits)}:
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        volume = _read_or_none(write(bytes(flipped), pack=False))
        if volume is not None:
            np.testing.assert_array_equal(volume.stored, sound.stored)
            np.testing.assert_array_equal(volume.affine, sound.affine)
            accepted_payload_bits += bit // 8 >= GZIP_HEADER_BYTES
    # what is left are bits without meaning in deflate (padding, lengths of codes that are never used): same content
    assert accepted_payload_bits < 0.01 * n_bits


def test_every_truncation_is_corrupt(packed, write) -> None:
    for n_bytes in range(1, len(packed)):
        with pytest.raises(InputError):
            read_volume(write(packed[:n_bytes], pack=False))


def test_a_lost_trailer_is_corrupt(packed, write) -> None:
    with pytest.raises(CorruptInput, match="truncated"):
        read_volume(write(packed[:-8], pack=False))


def test_a_wrong_crc_is_corrupt(packed, write) -> None:
    wrong = packed[:-8] + bytes(byte ^ 0xFF for byte in packed[-8:-4]) + packed[-4:]
    with pytest.raises(CorruptInput, match="incorrect data check"):
        read_volume(write(wrong, pack=False))


def test_a_wrong_length_is_corrupt(packed, write) -> None:
    with pytest.raises(CorruptInput, match="incorrect length check"):
        read_volume(write(packed[:-4] + b"\1\0\0\0", pack=False))


@pytest.mark.parametrize("garbage", [b"x", b"\0\0x", b"\x1f", b"\x1f\x8b", b"\0" * 70000 + b"\x01", zlib.compress(b"")])
def test_trailing_garbage_after_the_gzip_stream_is_corrupt(packed, write, garbage) -> None:
    with pytest.raises(CorruptInput):
        read_volume(write(packed + garbage, pack=False))


@pytest.mark.parametrize("n_bytes", [1, 4, 16, 240, 70_000, MAX_TRAILING_BYTES])
def test_content_after_the_last_voxel_is_ignored_and_reported(make_nifti_bytes, write, head, n_bytes) -> None:
    content = make_nifti_bytes(head) + b"\x07" * n_bytes
    for path in (write(content, "case.nii"), write(content, "case.nii.gz")):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.hu, np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0))
        np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))
        assert volume.warnings == (f"the file continues for {n_bytes} bytes after its last voxel; they are ignored",)


def test_a_further_member_with_content_is_content_after_the_last_voxel(packed, write) -> None:
    volume = read_volume(write(packed + gzip.compress(b"\0\0"), pack=False))
    np.testing.assert_array_equal(volume.stored, read_volume(write(packed, "sound.nii.gz", pack=False)).stored)
    assert volume.warnings == ("the file continues for 2 bytes after its last voxel; they are ignored",)


def test_damage_behind_the_last_voxel_is_corrupt(make_nifti_bytes, write, head) -> None:
    content = gzip.compress(make_nifti_bytes(head) + b"\x07" * 1000, mtime=0)
    with pytest.raises(CorruptInput, match="incorrect data check"):
        read_volume(write(content[:-8] + b"\0\0\0\0" + content[-4:], pack=False))


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_more_content_than_can_be_meant_is_corrupt(make_nifti_bytes, write, head, name) -> None:
    with pytest.raises(CorruptInput, match=f"more than {MAX_TRAILING_BYTES} bytes follow the last voxel"):
        read_volume(write(make_nifti_bytes(head) + bytes(MAX_TRAILING_BYTES + 1), name))


def test_a_plain_file_that_is_too_short_is_corrupt(make_nifti_bytes, write, head) -> None:
    with pytest.raises(CorruptInput, match="declares 592 bytes, the file has 591"):
        read_volume(write(make_nifti_bytes(head)[:-1], "case.nii"))


@pytest.mark.parametrize("n_bytes", [1, 347, 348, 352, 591])
def test_content_cut_before_it_was_compressed_is_corrupt(make_nifti_bytes, write, head, n_bytes) -> None:
    with pytest.raises(CorruptInput, match=r"truncated|no NIfTI header"):
        read_volume(write(make_nifti_bytes(head)[:n_bytes]))


def test_gzip_around_nothing_is_named(write) -> None:
    with pytest.raises(MissingInput, match="is empty once inflated"):
        read_volume(write(b""))


def _peak_bytes_of_refusal(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_volume(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_stops_at_the_size_that_the_header_declares(make_nifti_bytes, write, head) -> None:
    path = write(make_nifti_bytes(head) + bytes(128 << 20))

    assert _peak_bytes_of_refusal(path) < 4 << 20


def test_a_gzip_bomb_before_the_header_is_over_is_bounded(write) -> None:
    path = write(bytes(128 << 20))

    assert _peak_bytes_of_refusal(path) < 4 << 20


def test_a_header_that_declares_what_the_file_cannot_hold_allocates_nothing(make_nifti_bytes, write, head) -> None:
    dims = [3, 512, 512, 1024, 1, 1, 1, 1]  # within the voxel cap
    assert math.prod(dims[1:4]) == 2**28
    for name in ("case.nii", "case.nii.gz"):
        path = write(make_nifti_bytes(head, dim=dims), name)
        assert _peak_bytes_of_refusal(path) < 1 << 20


def test_a_stream_of_many_empty_members_ends_in_time(packed, write) -> None:
    path = write(packed + 50_000 * gzip.compress(b""), pack=False)
    start = time.process_time()
    assert read_volume(path).n_slices == 4
    assert time.process_time() - start < 20
