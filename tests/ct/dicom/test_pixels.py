"""Stored values of a frame, in every transfer syntax, against what went in and against pydicom and gdcm."""

from __future__ import annotations

import io
import re
import tracemalloc
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder

from meddinov3_stroke.ct.dicom.container import read_structure
from meddinov3_stroke.ct.dicom.pixels import decode_frame
from meddinov3_stroke.errors import CorruptInput, UnsupportedInput

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))
RLE = "1.2.840.10008.1.2.5"
JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81, 90, 91))
NATIVE, COMPRESSED = (IMPLICIT, EXPLICIT, BIG, DEFLATED), (RLE, *JPEG)
KINDS = (("u2", 12), ("i2", 16), ("i2", 12), ("u2", 16), ("u1", 8), ("i1", 8))


def _decoded(content: bytes, pixels, frame: int = 0) -> np.ndarray:
    structure = read_structure(content, "case.dcm")
    assert structure is not None
    return decode_frame(structure, pixels, frame, "case.dcm")


@pytest.mark.parametrize(("dtype", "bits_stored"), KINDS)
@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED)
def test_every_syntax_gives_the_values_that_went_in(
    syntax, dtype, bits_stored, dicom_bytes, pixel_format, ct_values
) -> None:
    values = ct_values(dtype, bits_stored)
    content = dicom_bytes(values, syntax, bits_stored)

    decoded = _decoded(content, pixel_format(values, bits_stored=bits_stored))

    assert decoded.dtype == values.dtype
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(decoded, pydicom.dcmread(io.BytesIO(content)).pixel_array)


@pytest.mark.parametrize("dtype", ["u4", "i4"])
@pytest.mark.parametrize("syntax", [*NATIVE, RLE])
def test_32_bits_are_read(syntax, dtype, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values(dtype)
    np.testing.assert_array_equal(_decoded(dicom_bytes(values, syntax), pixel_format(values)), values)


@pytest.mark.parametrize("dtype", ["i2", "u1"])
@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
def test_each_frame_of_several_is_the_one_asked_for(syntax, dtype, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values(dtype, shape=(3, 33, 38))
    content = dicom_bytes(values, syntax)
    for frame in (2, 0, 1):
        np.testing.assert_array_equal(_decoded(content, pixel_format(values), frame), values[frame])


@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5), (2, 4, 6)])
def test_8_bits_in_big_endian_words_are_taken_apart(shape, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values("u1", shape=shape)
    stored = values.tobytes() + bytes(values.size % 2)
    content = dicom_bytes(values, BIG, pixel_bytes=np.frombuffer(stored, "<u2").byteswap().tobytes(), pixel_vr="OW")

    frames = values.reshape(-1, *shape[-2:])
    for frame, expected in enumerate(frames):
        np.testing.assert_array_equal(_decoded(content, pixel_format(values), frame), expected)
    np.testing.assert_array_equal(pydicom.dcmread(io.BytesIO(content)).pixel_array, values)


def _encoded_by_pydicom(values: np.ndarray, syntax: str, bits_stored: int = 16, **options: Any) -> bytes:
    """The codestream as the encoders of pydicom make it (pylibjpeg and pyjpegls; gdcm takes no part)."""
    return get_encoder(syntax).encode(
        values,
        rows=values.shape[0],
        columns=values.shape[1],
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8 * values.itemsize,
        bits_stored=bits_stored,
        pixel_representation=int(values.dtype.kind == "i"),
        encoding_plugin="pyjpegls" if syntax in JPEG[2:4] else "pylibjpeg",
        **options,
    )


@pytest.mark.parametrize(("dtype", "bits_stored"), [("u2", 12), ("i2", 12), ("i2", 16)])
@pytest.mark.parametrize("syntax", [RLE, JPEG[2], JPEG[4]])
def test_files_of_another_encoder_give_the_values_that_went_in(
    syntax, dtype, bits_stored, dicom_bytes, pixel_format, ct_values
) -> None:
    values = ct_values(dtype, bits_stored, shape=(64, 70))
    streams = [_encoded_by_pydicom(values, syntax, bits_stored)]
    content = dicom_bytes(values, syntax, bits_stored, codestreams=streams)
    np.testing.assert_array_equal(_decoded(content, pixel_format(values, bits_stored=bits_stored)), values)


@pytest.mark.parametrize(("syntax", "loss"), [(JPEG[3], {"jls_error": 3}), (JPEG[5], {"j2k_psnr": [60]})])
def test_lossy_frames_give_what_pydicom_gives(syntax, loss, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values("u2", 12, shape=(64, 64))
    content = dicom_bytes(values, syntax, 12, codestreams=[_encoded_by_pydicom(values, syntax, 12, **loss)])

    decoded = _decoded(content, pixel_format(values, bits_stored=12))

    np.testing.assert_array_equal(decoded, pydicom.dcmread(io.BytesIO(content)).pixel_array)
    assert 0 < np.abs(decoded.astype(int) - values).max() < 40


def test_a_precision_of_fewer_bytes_than_are_allocated_is_widened(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values("u1")
    streams = [_frames_of(dicom_bytes(values, JPEG[4]))[0]]
    wide = values.astype("u2")
    content = dicom_bytes(wide, JPEG[4], 8, codestreams=streams)

    decoded = _decoded(content, pixel_format(wide, bits_stored=8))

    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, wide)


def _by_simpleitk(content: bytes, tmp_path) -> np.ndarray:
    path = tmp_path / "case.dcm"
    path.write_bytes(content)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG, RLE])
def test_overlay_bits_above_the_stored_ones_are_cut_off(
    syntax, is_signed, dicom_bytes, pixel_format, ct_values, tmp_path
) -> None:
    dtype = "i2" if is_signed else "u2"
    values = ct_values(dtype, 12)
    overlay = np.random.default_rng(0).integers(0, 16, values.shape, dtype=np.uint16) << 12
    dirty = ((values.view("u2") & 0x0FFF) | overlay).view(dtype)
    streams = [_encoded_by_pydicom(dirty, RLE)] if syntax == RLE else None
    content = dicom_bytes(dirty, syntax, 12, codestreams=streams)

    decoded = _decoded(content, pixel_format(dirty, bits_stored=12))

    assert decoded.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(decoded, _by_simpleitk(content, tmp_path))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_values_at_the_high_bits_are_shifted_down(syntax, dtype, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values(dtype, 12)
    raised = (values.view("u2") << 4).view(dtype)
    streams = [_encoded_by_pydicom(raised, RLE)] if syntax == RLE else None
    content = dicom_bytes(raised, syntax, bits_stored=12, high_bit=15, codestreams=streams)

    decoded = _decoded(content, pixel_format(values, bits_stored=12, high_bit=15))

    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("change", [-480, -2])
def test_short_pixel_data_is_corrupt_and_says_both_lengths(change, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values()
    content = dicom_bytes(values, pixel_bytes=values.tobytes()[:change])
    with pytest.raises(CorruptInput, match=rf"has {960 + change} bytes of pixel data; expected 960"):
        _decoded(content, pixel_format(values))


def test_padding_after_the_pixels_is_taken_up_to_a_block(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values("u1", shape=(5, 5))
    for n_bytes in (1, 3, 511):
        padded = dicom_bytes(values, pixel_bytes=values.tobytes() + bytes(n_bytes))
        np.testing.assert_array_equal(_decoded(padded, pixel_format(values)), values)
    with pytest.raises(CorruptInput, match="has 538 bytes of pixel data; expected 25"):
        _decoded(dicom_bytes(values, pixel_bytes=values.tobytes() + bytes(513)), pixel_format(values))


def test_65535_rows_and_columns_allocate_nothing(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values()
    contents = [dicom_bytes(values, syntax) for syntax in (EXPLICIT, RLE, JPEG[-1])]
    for rows, error in ((65535, UnsupportedInput), (1000, CorruptInput)):
        for content in contents:
            tracemalloc.start()
            try:
                with pytest.raises(error):
                    _decoded(content, pixel_format(values, rows=rows, columns=rows))
                assert tracemalloc.get_traced_memory()[1] < 4 << 20
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"samples_per_pixel": 3}, UnsupportedInput, "3 samples a pixel"),
        ({"bits_allocated": 12}, UnsupportedInput, "12 bits allocated"),
        ({"bits_stored": 0, "high_bit": 11}, CorruptInput, "0 bits stored"),
        ({"bits_stored": 17}, CorruptInput, "17 bits stored"),
        ({"bits_stored": 12, "high_bit": 16}, CorruptInput, "high bit 16"),
        ({"rows": 0}, CorruptInput, "0 x 20 pixels"),
        ({"rows": 8192, "columns": 8193}, UnsupportedInput, "8192 x 8193"),
        ({"rows": 8192, "columns": 8192, "n_frames": 5}, UnsupportedInput, "5 frame"),
    ],
)
def test_a_format_that_is_not_read_is_named(changes, error, words, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values()
    with pytest.raises(error, match=words):
        _decoded(dicom_bytes(values), pixel_format(values, **changes))


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("1.2.840.10008.1.2.4.51", r"1\.2\.840\.10008\.1\.2\.4\.51 \(JPEG Extended.*GPL"),
        ("1.2.840.10008.1.2.4.50", r"JPEG Baseline"),
        ("1.2.840.10008.1.2.4.100", r"MPEG2"),
        ("1.2.3.4.5", r"'1\.2\.3\.4\.5'"),
        ("\0no\nuid", r"'\\x00no\\nuid'"),
    ],
)
def test_an_undecodable_syntax_is_named(syntax, words, dicom_bytes, pixel_format, ct_values, relabelled) -> None:
    values = ct_values()
    content = relabelled(dicom_bytes(values, JPEG[1]), JPEG[1], syntax)
    with pytest.raises(UnsupportedInput, match=words):
        _decoded(content, pixel_format(values))


def test_a_file_without_pixel_data_is_corrupt(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values()
    content = dicom_bytes(values)
    header_only = content[: content.rindex(b"\xe0\x7f\x10\x00")]
    with pytest.raises(CorruptInput, match="has no pixel data"):
        _decoded(header_only, pixel_format(values))


@pytest.mark.parametrize("claimed", [EXPLICIT, IMPLICIT, RLE, JPEG[1], JPEG[3], JPEG[4]])
@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG[0], JPEG[2], JPEG[4]])
def test_pixel_data_of_the_other_kind_than_the_syntax_is_corrupt(
    syntax, claimed, dicom_bytes, pixel_format, ct_values, relabelled
) -> None:
    values = ct_values()
    content = relabelled(dicom_bytes(values, syntax), syntax, claimed)
    if {syntax, claimed} in (
        {EXPLICIT},
        {EXPLICIT, IMPLICIT},
        {RLE},
        {JPEG[0], JPEG[1]},
        {JPEG[2], JPEG[3]},
        {JPEG[4]},
    ):
        return
    kinds = {EXPLICIT: "not compressed", RLE: "RLE", JPEG[0]: "JPEG Lossless", JPEG[2]: "JPEG-LS", JPEG[4]: "JPEG 2000"}
    words = (
        rf"declares the transfer syntax {claimed} \(.*\), but its pixels are {kinds[syntax]}; correct .* to (\S+), or"
    )
    with pytest.raises(CorruptInput, match=words) as raised:
        _decoded(content, pixel_format(values))
    right = re.search(words, str(raised.value))[1]
    np.testing.assert_array_equal(_decoded(relabelled(content, claimed, right), pixel_format(values)), values)


def test_fragments_of_frames_are_joined_as_the_table_of_offsets_says(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values(shape=(3, 24, 20))
    streams = [_frames_of(dicom_bytes(frame, JPEG[4]))[0] for frame in values]
    pixel_bytes = encapsulate(streams, fragments_per_frame=2)
    content = dicom_bytes(values, JPEG[4], pixel_bytes=pixel_bytes)
    for frame in range(3):
        np.testing.assert_array_equal(_decoded(content, pixel_format(values), frame), values[frame])
    without_table = dicom_bytes(values, JPEG[4], pixel_bytes=encapsulate(streams, fragments_per_frame=2, has_bot=False))
    with pytest.raises(UnsupportedInput, match="6 fragments for 3 frames"):
        _decoded(without_table, pixel_format(values), 1)


def _frames_of(content: bytes) -> list[bytes]:
    return list(generate_frames(pydicom.dcmread(io.BytesIO(content)).PixelData, number_of_frames=1))


def test_fewer_fragments_than_frames_are_corrupt(dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values(shape=(2, 24, 20))
    content = dicom_bytes(values, JPEG[4])
    with pytest.raises(CorruptInput, match="2 fragments of pixel data; expected one or more for each of 3"):
        _decoded(content, pixel_format(values, n_frames=3), 1)


@pytest.mark.parametrize("syntax", JPEG)
def test_a_codestream_of_another_size_than_the_header_never_reaches_a_decoder(
    syntax, dicom_bytes, pixel_format, ct_values, monkeypatch
) -> None:
    values = ct_values()
    content = dicom_bytes(values, syntax)
    monkeypatch.setattr("meddinov3_stroke.ct.dicom.pixels.shared_codec", lambda: pytest.fail("reached"))
    with pytest.raises(CorruptInput, match=r"declares 24 x 20 pixels; expected 24 x 21"):
        _decoded(content, pixel_format(values, columns=21))


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("kept", [0.3, 0.9, -12, -6, -4])
def test_a_cut_codestream_never_gives_other_values(syntax, kept, dicom_bytes, pixel_format, ct_values) -> None:
    values = ct_values()
    stream = _frames_of(dicom_bytes(values, syntax))[0]
    cut = stream[: int(len(stream) * kept) // 2 * 2] if kept > 0 else stream[:kept]
    content = dicom_bytes(values, syntax, codestreams=[cut])
    try:
        decoded = _decoded(content, pixel_format(values))
    except CorruptInput:
        return
    np.testing.assert_array_equal(decoded, values)  # only the end marker was lost
