"""Headers that contradict their pixels, or say that these are not HU: the right values, or an error that says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from dicom_writer import TRANSFER_SYNTAXES, DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom.choice import inspect_dicom
from meddinov3_stroke.errors import CorruptInput, OutOfScope, UnsupportedInput

SHAPE = (10, 36, 32)
GEOMETRY = axial_geometry([5.0] * 9, SHAPE[1:])
HU = np.random.default_rng(0).integers(-1000, 2500, SHAPE)

OTHER_TYPES = ("MGML", "Z_EFF", "EDW", "HU_MOD", "PCT", "US", "mgml ", "UNSPECIFIED")


def written(folder: Path, hu: np.ndarray = HU, **options: Any) -> Path:
    write_dicom_series(folder, hu, GEOMETRY, DicomOptions(**options))
    return folder


def edited(folder: Path, change: Callable[[pydicom.Dataset], Any], every: int = 1) -> Path:
    for path in sorted(folder.iterdir())[::every]:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return folder


@pytest.mark.parametrize("value", OTHER_TYPES)
def test_images_that_are_not_in_hu_are_set_aside_by_name(tmp_path: Path, value: str) -> None:
    edited(written(tmp_path), lambda dataset: setattr(dataset, "RescaleType", value))
    reason = f"Rescale Type {value.strip().upper()}, not HU"
    with pytest.raises(OutOfScope, match=reason):
        read_volume(tmp_path)
    (one,) = inspect_dicom(tmp_path).series
    assert (one.verdict, one.reason, one.outcome.code) == ("set aside", reason, OutOfScope.code)


def test_the_images_in_hu_are_read_from_among_others(tmp_path: Path) -> None:
    written(tmp_path)
    edited(written(tmp_path / "z", seed=1, study_seed=0), lambda dataset: setattr(dataset, "RescaleType", "Z_EFF"))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert "10 other images were set aside: Rescale Type Z_EFF, not HU (10)" in volume.warnings


@pytest.mark.parametrize("value", ["HU", "hu", "", None, "Hounsfield"])
def test_hu_or_no_rescale_type_is_read(tmp_path: Path, value: str | None) -> None:
    edited(written(tmp_path), lambda dataset: setattr(dataset, "RescaleType", value))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.warnings == ()


@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_frames_that_are_not_in_hu_are_set_aside(tmp_path: Path, layout: Any) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        for groups in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
            for transformation in groups.get("PixelValueTransformationSequence", ()):
                transformation.RescaleType = "MGML"

    edited(written(tmp_path, layout=layout), change)
    with pytest.raises(OutOfScope, match="Rescale Type MGML, not HU"):
        read_volume(tmp_path)


def test_a_modality_lut_to_another_unit_is_set_aside(tmp_path: Path) -> None:
    written(tmp_path, pixels="unsigned12", rescale="lut")
    edited(tmp_path, lambda dataset: setattr(dataset.ModalityLUTSequence[0], "ModalityLUTType", "OD"))
    with pytest.raises(OutOfScope, match="Rescale Type OD, not HU"):
        read_volume(tmp_path)


def head_hu() -> np.ndarray:
    """Tissue and a little dense bone amid air, which is noisy."""
    random = np.random.default_rng(1)
    hu = random.integers(-1060, -960, SHAPE)
    hu[:, 4:-4, 4:-4] = random.integers(0, 90, (SHAPE[0], SHAPE[1] - 8, SHAPE[2] - 8))
    hu[:, 6:9, 6:9] = random.integers(900, 2000, (SHAPE[0], 3, 3))
    return hu


HEAD = head_hu()


def stored_in(folder: Path, stored: np.ndarray, intercept: float, **elements: Any) -> Path:
    """A series with these stored values, upwards, and elements that may contradict them."""
    written(folder, np.zeros(SHAPE))
    padding = elements.pop("padding", None)
    for path, image in zip(sorted(folder.iterdir()), stored, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.PixelData, dataset.RescaleIntercept = image.tobytes(), intercept
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        if padding is not None:
            dataset.add_new("PixelPaddingValue", "US", padding)
        dataset.save_as(path)
    return folder


@pytest.mark.parametrize("bits", [16, 15, 14, 13, 12])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_signed_values_declared_unsigned_are_read_as_signed(tmp_path: Path, intercept: int, bits: int) -> None:
    """At an intercept of -1024 only the noise below it is negative."""
    stored = (HEAD - intercept).astype(np.int16)
    stored_in(tmp_path, stored, intercept, PixelRepresentation=0, BitsStored=bits, HighBit=bits - 1)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, np.where(HEAD < -1024, -1000, HEAD))
    assert any(one.startswith("10 of 10 slices hold signed values") for one in volume.warnings)


@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_signed_values_of_another_slope_are_read_as_signed(tmp_path: Path, slope: float) -> None:
    hu = HEAD // 2 * 2
    stored_in(tmp_path, (hu / slope).astype(np.int16), 0, PixelRepresentation=0, RescaleSlope=slope)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, np.where(hu < -1024, -1000, hu))


def test_unsigned_values_that_fill_the_range_are_left_and_reported(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint16)
    stored_in(tmp_path, stored, 0, PixelRepresentation=0)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, stored)
    assert any("beyond the range of CT" in one for one in volume.warnings)


def test_padding_and_saturated_metal_are_no_sign(tmp_path: Path) -> None:
    air = np.maximum(HEAD, -1024)
    stored = (air + 1024).astype(np.uint16)
    stored[:, 0, 0] = 63536  # -2000, declared as such
    stored[:, 7, 7] = 65535
    stored_in(tmp_path, stored, -1024, PixelRepresentation=0, padding=63536)
    expected = air.copy()
    expected[:, 0, 0], expected[:, 7, 7] = -1000, 65535 - 1024
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, expected)
    assert any("beyond the range of CT that no wrong sign explains" in one for one in volume.warnings)


def test_undeclared_padding_in_twelve_bits_is_air(tmp_path: Path) -> None:
    """-2000 HU, sign-extended in values that are declared unsigned."""
    stored = (np.maximum(HEAD, -1024) + 1024).astype(np.int16)
    stored[:, 0] = -976
    stored_in(tmp_path, stored, -1024, PixelRepresentation=0, BitsStored=12, HighBit=11)
    volume = read_volume(tmp_path)
    assert (volume.hu[:, 0] == -1000).all()
    np.testing.assert_array_equal(volume.hu[:, 1:], np.maximum(HEAD, -1024)[:, 1:])


def test_unsigned_values_declared_signed_are_read_as_unsigned(tmp_path: Path) -> None:
    """12 bits from -1024 HU: bone above 1023 HU has the highest bit set."""
    air = np.maximum(HEAD, -1024)
    stored_in(tmp_path, (air + 1024).astype(np.uint16), -1024, PixelRepresentation=1, BitsStored=12, HighBit=11)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, air)
    assert any(one.startswith("10 of 10 slices hold unsigned values") for one in volume.warnings)


def test_negative_padding_in_twelve_signed_bits_is_not_bone(tmp_path: Path) -> None:
    air = np.clip(HEAD, -1024, 1000)
    stored = (air + 1024).astype(np.int16)
    stored[:, 0] = -976
    stored_in(tmp_path, stored & 0x0FFF, -1024, PixelRepresentation=1, BitsStored=12, HighBit=11)
    volume = read_volume(tmp_path)
    assert (volume.hu[:, 0] == -1000).all()
    np.testing.assert_array_equal(volume.hu[:, 1:], air[:, 1:])


@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (12, 12), (12, 10), (16, 11), (12, 13)])
@pytest.mark.parametrize("intercept", [-1024, -1000])
@pytest.mark.parametrize("is_signed", [False, True])
def test_values_in_the_low_bits_are_read_there(
    tmp_path: Path, bits: int, high_bit: int, intercept: int, is_signed: bool
) -> None:
    air = np.clip(HEAD, -1000, 1000)
    intercept = 0 if is_signed else intercept
    stored = (air - intercept).astype(np.int16)
    stored_in(tmp_path, stored, intercept, PixelRepresentation=int(is_signed), BitsStored=bits, HighBit=high_bit)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, air)
    assert "10 of 10 slices have a wrong High Bit; values are read from the low bits" in volume.warnings


@pytest.mark.parametrize("is_signed", [False, True])
def test_values_in_the_high_bits_are_read_there(tmp_path: Path, is_signed: bool) -> None:
    air, intercept = np.clip(HEAD, -1000, 1000), 0 if is_signed else -1024
    stored = (air - intercept).astype(np.int16) << 4
    stored_in(tmp_path, stored, intercept, PixelRepresentation=int(is_signed), BitsStored=12, HighBit=15)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, air)
    assert volume.warnings == ()


def test_a_slice_of_air_in_the_high_bits_is_read_there(tmp_path: Path) -> None:
    """Its values would fit into the low bits too."""
    air = np.full(SHAPE, -1000)
    stored_in(tmp_path, ((air + 1024) << 4).astype(np.uint16), -1024, PixelRepresentation=0, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, air)


@pytest.mark.parametrize("n_bytes", [2, 4, 100, 510, 512])
@pytest.mark.parametrize("fill", [b"\0", b"\7"])
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian", "deflated"])
def test_bytes_after_the_last_pixel_are_ignored(tmp_path: Path, n_bytes: int, fill: bytes, syntax: str) -> None:
    def lengthen(dataset: pydicom.Dataset) -> None:
        dataset.PixelData += fill * n_bytes

    edited(written(tmp_path, transfer_syntax=syntax), lengthen)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.warnings == ("10 of 10 slices have bytes after the last pixel; ignored",)


@pytest.mark.parametrize("excess", ["a column", "a row and more than a block", "cut"])
def test_pixels_of_another_size_are_refused(tmp_path: Path, excess: str) -> None:
    whole = 2 * SHAPE[1] * SHAPE[2]
    n_bytes = {"a column": 2 * SHAPE[1], "a row and more than a block": 514, "cut": -2}[excess]

    def change(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = (dataset.PixelData + b"\7" * 514)[: whole + n_bytes]

    edited(written(tmp_path), change)
    with pytest.raises(CorruptInput, match=rf"has {whole + n_bytes} bytes of pixel data; expected {whole}"):
        read_volume(tmp_path)


@pytest.mark.parametrize("n_bytes", [1, 2, 4, 8, 510, 512, 4096])
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian", "deflated", "jpeg_ls"])
def test_zeros_after_the_data_set_are_ignored(tmp_path: Path, n_bytes: int, syntax: str) -> None:
    written(tmp_path, transfer_syntax=syntax)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + bytes(n_bytes))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    if syntax != "deflated" or n_bytes > 2:  # a deflated data set has one zero or none for an even length
        assert volume.warnings == ("10 of 10 slices are in files with zero bytes after the data set; ignored",)


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian", "deflated", "jpeg_ls"])
@pytest.mark.parametrize("tail", [b"\7", bytes(8) + b"\7", b"\7" * 512])
def test_other_bytes_after_the_data_set_are_refused(tmp_path: Path, tail: bytes, syntax: str) -> None:
    written(tmp_path, transfer_syntax=syntax)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(CorruptInput):
        read_volume(tmp_path)


KINDS = {
    "jpeg_2000": "JPEG 2000",
    "jpeg_ls": "JPEG-LS",
    "rle": "RLE",
    "jpeg_lossless": "JPEG Lossless",
    "explicit": "not compressed",
}


@pytest.mark.parametrize("is_resaved", [False, True], ids=["relabelled", "resaved by pydicom with a length"])
@pytest.mark.parametrize("syntax", KINDS)
def test_a_wrong_transfer_syntax_is_named_and_correcting_it_works(
    tmp_path: Path, syntax: str, is_resaved: bool, relabelled: Callable[[bytes, str, str], bytes]
) -> None:
    """What the pixels are, what the header declares, and the right UID."""
    written(tmp_path, transfer_syntax=syntax)
    true = read_volume(tmp_path)
    stated = ExplicitVRLittleEndian if syntax != "explicit" else JPEG2000Lossless
    if is_resaved and syntax != "explicit":
        edited(tmp_path, lambda dataset: setattr(dataset.file_meta, "TransferSyntaxUID", stated))
    else:
        for path in tmp_path.iterdir():
            path.write_bytes(relabelled(path.read_bytes(), TRANSFER_SYNTAXES[syntax], stated))
    declares = f"declares the transfer syntax {re.escape(f'{stated} ({stated.name})')}"
    words = rf"{declares}, but its pixels are {KINDS[syntax]}; correct .* to (\S+), or"
    with pytest.raises(CorruptInput, match=words) as raised:
        read_volume(tmp_path)
    ((_, reason), *_) = inspect_dicom(tmp_path).damaged
    assert reason in str(raised.value)
    (right,) = re.search(words, reason).groups()
    edited(tmp_path, lambda dataset: setattr(dataset.file_meta, "TransferSyntaxUID", right))
    np.testing.assert_array_equal(read_volume(tmp_path).hu, true.hu)


@pytest.mark.parametrize("value", ["Hounsfield Unit", "H.U.", "CT", "CT NUMBER", "HU "])
def test_spellings_of_hounsfield_units_are_read(tmp_path: Path, value: str) -> None:
    edited(written(tmp_path), lambda dataset: setattr(dataset, "RescaleType", value))
    np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)


def test_an_image_of_another_width_than_declared_is_refused_though_its_last_row_is_zero(tmp_path: Path) -> None:
    """One column more than declared: read at the declared width, every row would be shifted."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2] + 1]
    wide = np.where(np.hypot(y - 18, x - 16) < 14, 40 + x, 0).astype("<i2")
    wide[-2:] = 0

    def widened(dataset: pydicom.Dataset) -> None:
        dataset.RescaleIntercept, dataset.PixelData = 0, wide.tobytes()

    edited(written(tmp_path), widened)
    with pytest.raises(CorruptInput, match="bytes of pixel data; expected"):
        read_volume(tmp_path)


def test_no_bits_allocated_is_an_error_of_the_input(tmp_path: Path) -> None:
    edited(written(tmp_path), lambda dataset: setattr(dataset, "BitsAllocated", 0))
    with pytest.raises((CorruptInput, OutOfScope, UnsupportedInput)):
        read_volume(tmp_path)


def test_a_ct_image_without_pixel_data_is_damaged(tmp_path: Path) -> None:
    edited(written(tmp_path), lambda dataset: delattr(dataset, "PixelData"), every=4)
    with pytest.raises(CorruptInput, match="CT image without pixel data"):
        read_volume(tmp_path)


def test_slices_that_contradict_each_other_on_their_sign_are_refused(tmp_path: Path) -> None:
    """Unsigned 12-bit values declared signed: bone wraps, on some slices at the border, where air would be."""
    stored = (np.maximum(head_hu(), -1000) + 1024).astype(np.uint16)
    stored[:, 10:14, 10:14] = 1400 + 1024
    stored[:3, :2] = 1400 + 1024
    images = iter(stored)

    def wrapped(dataset: pydicom.Dataset) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 1
        dataset.RescaleIntercept, dataset.PixelData = -1024, next(images).tobytes()

    edited(written(tmp_path), wrapped)
    with pytest.raises(CorruptInput, match="7 slices hold unsigned values and 3 signed ones"):
        read_volume(tmp_path)
