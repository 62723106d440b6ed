"""What a header says of an image, and what a damaged or bare one does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from dicom_writer.reading import read_headers
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.errors import CorruptInput

VALUES = np.arange(12, dtype=np.int16).reshape(3, 4)
PLACED: dict[str, Any] = {
    "ImagePositionPatient": [-10.5, 20.25, 3],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.75],
}


@pytest.fixture
def header(dicom_bytes: Callable[..., bytes]) -> Callable[..., ImageHeader]:
    """The header of one placed image with further elements; None leaves an element out."""

    def read(values: np.ndarray = VALUES, *, bits_stored: int | None = None, **elements: Any) -> ImageHeader:
        wanted = {name: value for name, value in (PLACED | elements).items() if value is not None}
        headers = read_headers(dicom_bytes(values, bits_stored=bits_stored, **wanted), "IM1")
        assert headers is not None
        (one,) = headers
        return one

    return read


def test_position_directions_and_spacing_are_those_written(header) -> None:
    found = header()
    np.testing.assert_array_equal(found.position_mm, [-10.5, 20.25, 3])
    np.testing.assert_array_equal(found.directions, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found.normal, [0, 0, 1])
    assert found.pixel_spacing_mm == (0.5, 0.75)
    assert (found.pixels.rows, found.pixels.columns) == (3, 4)
    assert found.is_placed


def test_directions_are_made_unit_vectors(header) -> None:
    found = header(ImageOrientationPatient=[1.0005, 0, 0, 0, 0.9996, 0])
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, atol=1e-15)


@pytest.mark.parametrize(
    ("elements", "fault"),
    [
        ({"ImagePositionPatient": None}, "no position in the header"),
        ({"ImageOrientationPatient": None, "PixelSpacing": None}, "no orientation, pixel spacing in the header"),
        ({"ImagePositionPatient": ""}, "no position in the header"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, r"orientation is '1.0\0.0\0.0\0.0\1.0', which cannot be read"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "not a pair of perpendicular unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "not a pair of perpendicular unit vectors"),
        ({"ImagePositionPatient": [0, 0, 1e7]}, "a position of 1e"),
        ({"PixelSpacing": [0, 0.5]}, "a pixel spacing of 0 x 0.5 mm"),
        ({"PixelSpacing": [0.5, 1e5]}, "a pixel spacing of 0.5 x 100000 mm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_without_a_sound_place_says_why_and_has_none(header, elements: dict[str, Any], fault: str) -> None:
    found = header(**elements)
    assert fault in found.geometry_fault
    assert not found.is_placed
    assert found.position_mm is None


def test_slope_and_intercept_that_are_not_stated_are_one_and_zero_and_known_as_such(header) -> None:
    rescale = header().rescale
    assert (rescale.slope, rescale.intercept, rescale.is_stated) == (1, 0, False)
    assert header(RescaleSlope="2", RescaleIntercept="-1024").rescale.is_stated


@pytest.mark.parametrize(
    ("dtype", "bits_stored", "intercept", "is_wrapped"),
    [
        ("u2", 12, "0", True),
        ("u2", 12, "-99", True),
        ("u2", 12, "-1024", False),
        ("u2", 16, "0", False),
        ("i2", 12, "0", False),
        ("u2", 12, None, False),
    ],
)
def test_wrapped_values_are_told_by_12_unsigned_bits_and_an_intercept_that_is_not_theirs(
    header, dtype: str, bits_stored: int, intercept: str | None, is_wrapped: bool
) -> None:
    slope = None if intercept is None else "1"
    found = header(VALUES.astype(dtype), bits_stored=bits_stored, RescaleSlope=slope, RescaleIntercept=intercept)
    assert found.rescale.is_wrapped is is_wrapped


@pytest.mark.parametrize(
    ("dtype", "vr", "value", "limit", "expected"),
    [
        ("i2", "SS", -2000, None, (-2000, -2000)),
        ("i2", "US", 63536, None, (-2000, -2000)),
        ("u2", "US", 63536, None, (63536, 63536)),
        ("u2", "SS", -2000, None, (63536, 63536)),
        ("i2", "SS", -1500, -2000, (-2000, -1500)),
        ("i2", "US", 63536, 64036, (-2000, -1500)),
    ],
    ids=["signed", "unsigned of signed", "unsigned", "signed of unsigned", "a range", "a range of the wrong sign"],
)
def test_padding_is_read_with_the_sign_of_the_pixels(
    dicom_bytes, dtype: str, vr: str, value: int, limit: int | None, expected: tuple[int, int]
) -> None:
    content = pydicom.dcmread(pydicom.filebase.DicomBytesIO(dicom_bytes(VALUES.astype(dtype), **PLACED)))
    content.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        content.add_new("PixelPaddingRangeLimit", vr, limit)
    buffer = pydicom.filebase.DicomBytesIO()
    content.save_as(buffer)
    headers = read_headers(buffer.getvalue(), "IM1")
    assert headers is not None
    assert headers[0].padding == expected


def stored_as(content: bytes, keyword: str, vr: str, text: str) -> bytes:
    """The file with a text in place of the element's value, under another VR."""
    tag = pydicom.tag.Tag(keyword)
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
    written = {"DS": "LO", "UN": "OB"}.get(vr, vr)  # of the same layout; pydicom would convert
    value = text.encode() if written == "OB" else text
    dataset[tag] = pydicom.DataElement(tag, written, value, validation_mode=0)
    buffer = pydicom.filebase.DicomBytesIO()
    dataset.save_as(buffer)
    head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    return buffer.getvalue().replace(head + written.encode(), head + vr.encode())


@pytest.mark.parametrize("vr", ["UT", "LT", "ST", "UN", "OB", "DS", "LO", "SH"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.45\\0.75", (0.45, 0.75)),
        (" 0,45\\0,75 ", (0.45, 0.75)),
        ("0,450\\1,250", (0.45, 1.25)),
        ("4,5e-1\\0.75", (0.45, 0.75)),
    ],
)
def test_numbers_stored_as_text_are_read_and_noted(
    dicom_bytes, vr: str, text: str, expected: tuple[float, float]
) -> None:
    headers = read_headers(stored_as(dicom_bytes(VALUES, **PLACED), "PixelSpacing", vr, text), "IM1")
    assert headers is not None
    assert headers[0].pixel_spacing_mm == expected
    is_plain = "," not in text and vr in ("UN", "DS", "LO", "SH")  # pydicom's numbers
    assert headers[0].numbers_as_text == (() if is_plain else ("PixelSpacing",))


@pytest.mark.parametrize("vr", ["UT", "ST", "OB", "DS", "LO"])
@pytest.mark.parametrize("text", ["0.45mm\\0.45mm", "0.45", "1,024\\1,024", "0,4,5\\0,5", "nan\\1"])
def test_what_is_no_number_is_quoted_and_never_called_absent(dicom_bytes, vr: str, text: str) -> None:
    headers = read_headers(stored_as(dicom_bytes(VALUES, **PLACED), "PixelSpacing", vr, text), "IM1")
    assert headers is not None
    assert headers[0].geometry_fault == f"pixel spacing is '{text}', which cannot be read"


@pytest.mark.parametrize(
    ("text", "expected"), [("-1024,0", -1024), ("-1000,5", -1000.5), ("-1,024", None), ("abc", None)]
)
def test_an_intercept_is_read_or_its_text_refuses_the_series(tmp_path: Path, text: str, expected: float | None) -> None:
    hu = np.stack([VALUES] * 3)
    write_dicom_series(tmp_path, hu, axial_geometry([5, 5], (3, 4)), DicomOptions(intercept=0.0))
    for path in tmp_path.iterdir():
        path.write_bytes(stored_as(path.read_bytes(), "RescaleIntercept", "ST", text))
    if expected is None:
        with pytest.raises(CorruptInput, match=rf"Rescale Intercept is '{text}'; expected a number"):
            read_volume(tmp_path)
    else:
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.hu, hu + expected)
        assert "RescaleIntercept stored as text or with a decimal comma; read as numbers" in volume.warnings


def test_texts_are_cleaned_of_what_does_not_print(header) -> None:
    assert header(SeriesDescription=" Head\x1b[2J 5.0\x07 ").series_description == "Head[2J 5.0"


def test_kernels_are_joined(header) -> None:
    assert header(ConvolutionKernel=["J30s", "2"]).kernel == "J30S\\2"


def test_counts_that_only_describe_may_be_nonsense(header) -> None:
    assert header(SeriesNumber=None, AcquisitionNumber="", InstanceNumber="7").series_number is None


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated"])
def test_an_image_whose_size_is_not_stated_is_damaged(dicom_bytes, keyword: str) -> None:
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(dicom_bytes(VALUES, **PLACED)))
    delattr(dataset, keyword)
    buffer = pydicom.filebase.DicomBytesIO()
    dataset.save_as(buffer)
    with pytest.raises(CorruptInput, match=f"IM1: {keyword} is missing; expected a whole number"):
        read_headers(buffer.getvalue(), "IM1")


@pytest.mark.parametrize("n_frames", [-1, 4097])
def test_an_impossible_number_of_frames_is_damage(header, n_frames: int) -> None:
    with pytest.raises(CorruptInput, match=f"{n_frames} frames of 3 x 4 pixels; expected 1 to 4096"):
        header(NumberOfFrames=n_frames)


def test_bytes_that_are_no_dicom_have_no_header() -> None:
    assert read_headers(b"This disc holds images.\r\n" * 20, "README.TXT") is None


def test_a_media_directory_holds_no_image(tmp_path: Path) -> None:
    write_dicom_series(tmp_path, VALUES[None], axial_geometry([], (3, 4)), DicomOptions(companions=("clutter",)))
    assert read_headers((tmp_path / "DICOMDIR").read_bytes(), "DICOMDIR") == ()


def test_an_object_without_pixels_is_read_and_says_so(tmp_path: Path) -> None:
    options = DicomOptions(companions=("dose_report",))
    write_dicom_series(tmp_path, VALUES[None], axial_geometry([], (3, 4)), options)
    headers = read_headers((tmp_path / "DOSE_REPORT.dcm").read_bytes(), "DOSE_REPORT")
    assert headers is not None
    assert (headers[0].has_pixel_data, headers[0].modality) == (False, "SR")


@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_each_frame_of_a_multi_frame_object_has_its_own_header(tmp_path: Path, layout: Any) -> None:
    geometry = axial_geometry([5, 2.5], (3, 4))
    hu = np.stack([VALUES, VALUES + 1, VALUES + 2])
    truth = write_dicom_series(tmp_path, hu, geometry, DicomOptions(layout=layout, rescale="per_slice", kernel="H30s"))
    headers = read_headers((tmp_path / truth.images[0].file).read_bytes(), "FRAMES")
    assert headers is not None
    assert [header.frame for header in headers] == [0, 1, 2]
    for header, position_mm in zip(headers, geometry.positions_mm, strict=True):
        assert header.position_mm is not None
        np.testing.assert_allclose(header.position_mm, position_mm, atol=1e-9)
    assert {header.kernel for header in headers} == {"H30S"}
    assert {header.sop_instance_uid for header in headers} == {truth.images[0].sop_instance_uid}
    assert {header.slice_thickness_mm for header in headers} == {2.5}


def test_frames_and_their_functional_groups_must_agree_in_number(tmp_path: Path) -> None:
    geometry = axial_geometry([5, 5], (3, 4))
    write_dicom_series(tmp_path, np.stack([VALUES] * 3), geometry, DicomOptions(layout="enhanced"))
    dataset = pydicom.dcmread(tmp_path / "FRAMES.dcm")
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[:2]
    dataset.save_as(tmp_path / "FRAMES.dcm")
    with pytest.raises(CorruptInput, match="3 frames but functional groups for 2"):
        read_headers((tmp_path / "FRAMES.dcm").read_bytes(), "FRAMES")


def test_nothing_of_the_patient_but_the_id_is_kept(header) -> None:
    canary = "CANARY"
    found = header(PatientName=canary, PatientBirthDate="19000101", ReferringPhysicianName=canary, PatientID="P1")
    assert canary not in repr(found)
    assert "19000101" not in repr(found)
    assert found.patient_id == "P1"
