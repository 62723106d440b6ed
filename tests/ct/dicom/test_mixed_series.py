"""Images under one series UID that are not of one volume, and objects that only lie beside it."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom.files import MAX_FILE_BYTES, open_files
from meddinov3_stroke.ct.dicom.series import MAX_PLANES, assemble
from meddinov3_stroke.ct.dicom.survey import survey
from meddinov3_stroke.ct.scope import judge
from meddinov3_stroke.errors import AmbiguousInput, CorruptInput, UnsupportedInput

HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))


def written(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, HU, axial_geometry([5.0] * 9, (9, 11)), DicomOptions(**options))


def change_every_second(folder: Path, change: Callable[[pydicom.Dataset], Any]) -> None:
    for path in sorted(folder.glob("*.dcm"))[1::2]:
        change_one(path, change)


def change_one(path: Path, change: Callable[[pydicom.Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def test_two_patients_under_one_series_are_never_one_volume(tmp_path: Path) -> None:
    written(tmp_path)
    change_every_second(tmp_path, lambda dataset: setattr(dataset, "PatientID", "another"))
    with pytest.raises(AmbiguousInput, match="2 patients"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("FrameOfReferenceUID", "2.25.1"),
        ("ContrastBolusAgent", "OMNIPAQUE"),
        ("ImageType", ["DERIVED", "SECONDARY", "MPR"]),
        ("ConvolutionKernel", "H60s"),
    ],
)
def test_images_of_another_kind_in_between_are_not_stacked(tmp_path: Path, keyword: str, value: Any) -> None:
    written(tmp_path)
    change_every_second(tmp_path, lambda dataset: setattr(dataset, keyword, value))
    volume = read_volume(tmp_path)
    assert volume.n_slices == 5
    assert any(one.startswith("only 5 of the 10 slices of this series are read") for one in volume.warnings)


def test_what_is_stacked_does_not_hang_on_the_order_of_files(tmp_path: Path) -> None:
    """Directions that drift by as much as the tolerance: which images go together is decided by what they hold."""
    written(tmp_path)
    for k, path in enumerate(sorted(tmp_path.glob("*.dcm"))):
        turn = 0.0009 * np.sin(k)
        cosines = [float(np.cos(turn)), float(np.sin(turn)), 0.0, float(-np.sin(turn)), float(np.cos(turn)), 0.0]
        change_one(path, lambda dataset, cosines=cosines: setattr(dataset, "ImageOrientationPatient", cosines))
    with open_files(tmp_path) as files:
        headers = [image for stack in survey(files).stacks for image in stack.images]
    draws = [np.random.default_rng(seed).permutation(len(headers)) for seed in range(5)]
    grouped = {
        tuple(tuple(image.sop_instance_uid for image in stack.images) for stack in assemble([headers[k] for k in draw]))
        for draw in draws
    }
    assert len(grouped) == 1


def test_one_sop_uid_on_different_images_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        change_one(path, lambda dataset: setattr(dataset, "SOPInstanceUID", "2.25.7"))
    with pytest.raises(UnsupportedInput, match="have the same SOP Instance UID"):
        read_volume(tmp_path)


def test_a_multi_frame_file_that_does_not_place_its_frames_is_set_aside(tmp_path: Path) -> None:
    written(tmp_path)

    def triple(dataset: pydicom.Dataset) -> None:
        dataset.NumberOfFrames, dataset.PixelData = 3, dataset.PixelData * 3

    for path in tmp_path.glob("*.dcm"):
        change_one(path, triple)
    with pytest.raises(UnsupportedInput, match="does not say where its frames lie"):
        read_volume(tmp_path)


def test_thousands_of_orientations_are_refused_in_linear_time(tmp_path: Path) -> None:
    written(tmp_path)
    with open_files(tmp_path) as files:
        (header, *_) = [image for stack in survey(files).stacks for image in stack.images]
    from dataclasses import replace

    def seconds(count: int) -> float:
        turned = [
            replace(
                header,
                sop_instance_uid=str(k),
                row_direction=np.array([np.cos(turn), np.sin(turn), 0.0]),
                column_direction=np.array([-np.sin(turn), np.cos(turn), 0.0]),
            )
            for k, turn in enumerate(np.linspace(0, 0.7, 2048)[:: 2048 // count])
        ]
        start = time.process_time()
        stacks = assemble(turned)
        assert any(stack.reason == f"more than {MAX_PLANES} orientations" for stack in stacks)
        return time.process_time() - start

    assert seconds(2048) < 4 * 8 * seconds(256)  # in quadratic time it would be 64 times as long


@pytest.mark.parametrize("what", ["a picture in another colour space", "a segmentation of single bits", "a cine"])
def test_an_object_beside_the_series_never_refuses_it(tmp_path: Path, what: str) -> None:
    written(tmp_path)
    beside = tmp_path / "beside.dcm"
    beside.write_bytes(sorted(tmp_path.glob("IM*.dcm"))[0].read_bytes())

    def picture(dataset: pydicom.Dataset) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "YBR_FULL_422"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelData = 7, bytes(9 * 11 * 2)

    def segmentation(dataset: pydicom.Dataset) -> None:
        dataset.Modality, dataset.SOPClassUID = "SEG", "1.2.840.10008.5.1.4.1.1.66.4"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
        dataset.PixelData = bytes(14)

    def cine(dataset: pydicom.Dataset) -> None:
        dataset.Modality, dataset.NumberOfFrames = "US", 5000

    kinds = {
        "a picture in another colour space": picture,
        "a segmentation of single bits": segmentation,
        "a cine": cine,
    }
    change_one(beside, kinds[what])
    assert read_volume(tmp_path).n_slices == 10


def test_a_large_file_of_another_kind_is_only_looked_at(tmp_path: Path) -> None:
    written(tmp_path)
    with (tmp_path / "movie.mp4").open("wb") as handle:
        handle.write(b"\0\0\0\x18ftypmp42")
        handle.truncate(MAX_FILE_BYTES + 1)  # sparse
    assert "1 file is not DICOM and was set aside (inspect lists them)" in read_volume(tmp_path).warnings


def test_a_damaged_member_of_an_archive_is_corrupt_input(tmp_path: Path) -> None:
    written(tmp_path / "series")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted((tmp_path / "series").glob("*.dcm")):
            out.write(path, path.name)
    content = bytearray(archive.read_bytes())
    content[200:260] = bytes(60)
    archive.write_bytes(content)
    with pytest.raises(CorruptInput):
        read_volume(archive)


def test_free_text_and_file_names_of_the_input_stay_out_of_warnings(tmp_path: Path) -> None:
    folder = tmp_path / "DOE^CANARY"
    written(folder, description="CTA CANARY", contrast_agent="CANARY OMNI", copied_slices=(0,))
    (folder / "CANARY.txt").write_text("CANARY")
    volume = read_volume(folder)
    assert (len(volume.warnings), len(judge(volume).findings)) == (2, 1)
    assert "CANARY" not in json.dumps([volume.warnings, judge(volume).document()])


def test_a_list_may_name_files_with_a_hash_and_dicom_may_be_called_txt(tmp_path: Path) -> None:
    written(tmp_path / "series")
    for path in (tmp_path / "series").glob("*.dcm"):
        path.rename(path.with_name(f"{path.stem}#1.txt"))
    names = [f"series/{path.name} # a slice" for path in (tmp_path / "series").iterdir()]
    (tmp_path / "list.txt").write_text("\n".join(["# all", *names]))
    assert read_volume(tmp_path / "list.txt").n_slices == 10
    one = next((tmp_path / "series").iterdir())
    assert read_volume(one, allow_single_slice=True).n_slices == 1
