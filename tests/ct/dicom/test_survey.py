"""Every file of an input is in a stack, told to be none, or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke.ct.dicom import survey as survey_module
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.survey import Survey, survey
from meddinov3_stroke.errors import CorruptInput

GEOMETRY = axial_geometry([5.0] * 7, (36, 40))
HU = np.random.default_rng(0).integers(-1000, 2500, (8, 36, 40))


def written(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, HU, GEOMETRY, DicomOptions(**options))


def surveyed(folder: Path) -> Survey:
    with open_files(folder) as files:
        return survey(files)


def edit(path: Path, **elements: Any) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        vr = "SS" if keyword == "PixelPaddingValue" else "DS"
        dataset.add_new(keyword, vr, value)
    dataset.save_as(path)


def test_every_file_is_told_once(tmp_path: Path) -> None:
    truth = written(tmp_path, companions=("localizer", "rgb_summary", "dose_report", "clutter"), copied_slices=(2,))
    (tmp_path / "IM0001.dcm").write_bytes((tmp_path / "IM0001.dcm").read_bytes()[:-7])
    found = surveyed(tmp_path)
    in_stacks = [image.file for stack in found.stacks for image in stack.images]
    copies = [image.file for stack in found.stacks for image, _ in stack.set_aside]
    told = [*in_stacks, *copies, *(name for name, _ in found.without_images), *(one.name for one in found.damaged)]
    assert sorted(told) == sorted(image.file for image in truth.images)
    assert copies == ["IM0004.dcm"]


def test_files_without_an_image_say_what_they_are(tmp_path: Path) -> None:
    written(tmp_path, companions=("clutter",))
    told = dict(surveyed(tmp_path).without_images)
    assert told.pop("DICOMDIR") == "DICOM without an image"
    assert set(told.values()) == {"not DICOM"}
    assert {"README.TXT", "VIEWER.EXE", ".DS_Store", "LOCKFILE"} <= set(told)


def test_a_damaged_file_is_named_with_its_error(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "IM0003.dcm").write_bytes((tmp_path / "IM0003.dcm").read_bytes()[:-100])
    (damaged,) = surveyed(tmp_path).damaged
    name, error = damaged.name, damaged.error
    assert name == "IM0003.dcm"
    assert isinstance(error, CorruptInput)
    assert "IM0003.dcm" in str(error)


@pytest.mark.parametrize("transfer_syntax", ["explicit", "jpeg_ls", "rle"])
def test_a_slice_sent_twice_is_a_copy(tmp_path: Path, transfer_syntax: str) -> None:
    written(tmp_path, repeated_slices=(3,), transfer_syntax=transfer_syntax)
    (stack,) = surveyed(tmp_path).stacks
    assert len(stack.images) == 8
    assert len(stack.set_aside) == 1


def test_a_copy_in_another_transfer_syntax_is_a_copy_by_its_pixels(tmp_path: Path) -> None:
    written(tmp_path, names="sop_uid")
    written(tmp_path / "again", names="sop_uid", transfer_syntax="jpeg_ls")
    (stack,) = surveyed(tmp_path).stacks
    assert (len(stack.images), len(stack.set_aside), stack.verdict) == (8, 8, "usable")


@pytest.mark.parametrize(
    "elements", [{"RescaleIntercept": "-1000"}, {"RescaleSlope": "2"}, {"PixelPaddingValue": -2000}], ids=str
)
def test_equal_pixels_that_are_read_in_another_way_are_no_copy(tmp_path: Path, elements: dict[str, Any]) -> None:
    written(tmp_path, repeated_slices=(3,))
    edit(tmp_path / "IM0005.dcm", **elements)
    (stack,) = surveyed(tmp_path).stacks
    assert stack.verdict == "refused"
    assert "different images at one position (once;" in stack.reason


def test_one_pixel_of_difference_is_no_copy(tmp_path: Path) -> None:
    written(tmp_path, repeated_slices=(3,))
    path = tmp_path / "IM0005.dcm"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (stack,) = surveyed(tmp_path).stacks
    assert stack.verdict == "refused"


def test_a_damaged_frame_at_the_place_of_another_is_told_and_ends_nothing(tmp_path: Path) -> None:
    written(tmp_path, repeated_slices=(3,), transfer_syntax="jpeg_ls")
    path = tmp_path / "IM0005.dcm"
    content = path.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[: start + 2] + bytes(40) + content[start + 42 :])
    (stack,) = surveyed(tmp_path).stacks
    assert stack.verdict == "refused"
    assert {"IM0004.dcm", "IM0005.dcm"} <= {image.file for image in stack.images}


def test_pixels_are_decoded_only_where_two_images_share_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def decode_frame(*args: Any) -> np.ndarray:
        decoded.append(args[-1])
        return HU[0]

    monkeypatch.setattr(survey_module, "decode_frame", decode_frame)
    written(tmp_path, repeated_slices=(3,))
    surveyed(tmp_path)
    assert sorted(decoded) == ["IM0004.dcm", "IM0005.dcm"]
