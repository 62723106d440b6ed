"""Whatever is done to a file of any transfer syntax, it gives a frame or an error of ours: soon, in little memory, and
without a warning. `tools/fuzz_dicom.py` runs longer, guided by coverage."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meddinov3_stroke.ct.dicom.container import read_structure
from meddinov3_stroke.ct.dicom.decoders import shared_codec
from meddinov3_stroke.ct.dicom.header import PixelFormat
from meddinov3_stroke.ct.dicom.pixels import MAX_EXCESS_BYTES, decode_frame
from meddinov3_stroke.ct.dicom.survey import headers_of
from meddinov3_stroke.errors import CorruptInput, InputError, UnsupportedInput

NATIVE = tuple(f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))
COMPRESSED = ("1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81, 90, 91)))

MAX_S = 2.0
"""The bar: no hang beyond it. Starting a child, once the last one died, is not counted."""

MAX_BYTES = 32 << 20
"""What a file of two kilobytes may make the parent allocate at any moment."""

EXTREMES = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Change = Callable[[bytearray], None]


def _flip(place: int, bit: int) -> Change:
    def change(content: bytearray) -> None:
        if content:
            content[place % len(content)] ^= 1 << bit

    return change


def _lie(place: int, value: int, n_bytes: int) -> Change:
    """Put a length, a count or a size that is none."""

    def change(content: bytearray) -> None:
        at = place % max(1, len(content))
        content[at : at + n_bytes] = (value % (1 << 8 * n_bytes)).to_bytes(n_bytes, "little")

    return change


def _cut(start: int, n_bytes: int) -> Change:
    def change(content: bytearray) -> None:
        at = start % max(1, len(content))
        del content[at : at + n_bytes]

    return change


def _insert(place: int, new: bytes) -> Change:
    def change(content: bytearray) -> None:
        at = place % max(1, len(content))
        content[at:at] = new

    return change


places = st.integers(0, 1 << 16)
marks = st.sampled_from(
    [b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0", b"SQ\0\0\xff\xff\xff\xff"]
)
changes = st.lists(
    st.one_of(
        st.builds(_flip, places, st.integers(0, 7)),
        st.builds(_lie, places, st.sampled_from(EXTREMES) | st.integers(0, 2**32 - 1), st.sampled_from([2, 4])),
        st.builds(_cut, places, st.integers(1, 64) | st.just(1 << 20)),
        st.builds(_insert, places, marks | st.binary(min_size=1, max_size=32)),
    ),
    min_size=1,
    max_size=6,
)


def _read(content: bytes, pixels: PixelFormat | None = None) -> np.ndarray | None:
    """The first and the last frame, as the header says or as `pixels`; None where the file is refused or holds none."""
    try:
        structure = read_structure(content, "case.dcm")
        if structure is None or not (images := headers_of(structure, "case.dcm")):
            return None
        found = pixels or images[0].pixels
        decode_frame(structure, found, found.n_frames - 1, "case.dcm")
        return decode_frame(structure, found, 0, "case.dcm")
    except (CorruptInput, UnsupportedInput):
        return None


def _seconds(content: bytes) -> float:
    shared_codec()._started()
    start = time.monotonic()
    _read(content)
    return time.monotonic() - start


def _faults(content: bytes, pixels: PixelFormat | None = None) -> list[str]:
    """What is wrong with how the file was read: memory, kind of values, time; another error than ours is raised."""
    tracemalloc.start()
    try:
        frame = _read(content, pixels)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    faults = [f"{peak_bytes} bytes"] if peak_bytes >= MAX_BYTES else []
    if frame is not None and frame.dtype.kind not in "iu":
        faults.append(f"values of {frame.dtype}")
    if _seconds(content) > MAX_S and (seconds := _seconds(content)) >= MAX_S:  # twice: the machine may have been busy
        faults.append(f"{seconds} s")
    return faults


def _changed(content: bytes, changes: list[Change], start: int) -> bytes:
    """The file with changes from byte `start` on."""
    changed = bytearray(content[start:])
    for change in changes:
        change(changed)
    return content[:start] + bytes(changed)


@pytest.fixture(scope="session")
def sound_file(dicom_bytes, ct_values) -> Callable[[str, bool], bytes]:
    """A file of a syntax, of one frame or of two."""
    files = {}
    for syntax in NATIVE + COMPRESSED:
        for is_multi_frame in (False, True):
            values = ct_values("i2", 12, shape=(2, 24, 20) if is_multi_frame else (24, 20))
            item = pydicom.Dataset()
            item.ReferencedSOPInstanceUID = "1.2.3"
            references = pydicom.Sequence([item, item])
            references.is_undefined_length = True
            files[syntax, is_multi_frame] = dicom_bytes(values, syntax, 12, ReferencedImageSequence=references)
    return lambda syntax, is_multi_frame: files[syntax, is_multi_frame]


few = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED)
@few
@given(changes=changes, is_multi_frame=st.booleans())
def test_a_file_with_changes_anywhere_gives_a_frame_or_an_error_of_ours(
    syntax, changes, is_multi_frame, sound_file
) -> None:
    assert _faults(_changed(sound_file(syntax, is_multi_frame), changes, 128)) == []


@pytest.mark.parametrize("syntax", [NATIVE[3], *COMPRESSED])
@few
@given(changes=changes)
def test_a_changed_codestream_gives_a_frame_or_an_error_of_ours(
    syntax, changes, sound_file, pixel_format, ct_values
) -> None:
    content = sound_file(syntax, False)
    structure = read_structure(content, "case.dcm")
    start = 330 if syntax == NATIVE[3] else structure.pixel_data.offset + 16
    assert _faults(_changed(content, changes, start), pixel_format(ct_values("i2", 12), bits_stored=12)) == []


@few
@given(
    content=st.binary(max_size=400),
    start=st.sampled_from([b"", bytes(128) + b"DICM", b"\x08\0\x05\0", b"\x02\0\0\0UL\4\0"]),
)
def test_arbitrary_bytes_are_no_dicom_or_an_error_of_ours(content, start) -> None:
    assert _faults(start + content) == []


@few
@given(
    rows=st.integers(0, 65535),
    columns=st.integers(0, 65535),
    n_frames=st.integers(1, 10**6),
    bits=st.sampled_from([8, 16, 32]),
)
@example(rows=1, columns=1, n_frames=112, bits=32)  # 512 bytes fewer than there are
@pytest.mark.parametrize("syntax", NATIVE[1:2] + COMPRESSED)
def test_lying_sizes_allocate_nothing(
    syntax, rows, columns, n_frames, bits, sound_file, pixel_format, ct_values
) -> None:
    structure = read_structure(sound_file(syntax, False), "case.dcm")
    pixels = pixel_format(
        ct_values(), rows=rows, columns=columns, n_frames=n_frames, bits_allocated=bits, bits_stored=bits
    )
    stored, declared = 24 * 20 * 2, rows * columns * n_frames * bits // 8
    is_read = syntax in NATIVE and stored - MAX_EXCESS_BYTES <= declared <= stored  # a few bytes after the last frame
    tracemalloc.start()
    try:
        if (rows, columns, n_frames, bits) != (24, 20, 1, 16):
            with suppress(InputError) if is_read else pytest.raises(InputError):
                decode_frame(structure, pixels, 0, "case.dcm")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
