"""Transfer syntaxes, containers and multi-frame objects, decoded by pydicom, SimpleITK and highdicom."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

from dicom_writer import (
    TRANSFER_SYNTAXES,
    DicomOptions,
    DicomSeriesTruth,
    axial_geometry,
    write_dicom_phantom,
    write_dicom_series,
)
from meddinov3_stroke.phantom import draw_spec, make_phantom

GEOMETRY = axial_geometry([5.0, 2.5, 2.5, 5.0], (40, 48), tilt_degrees=-18)
SMOOTH_HU = np.fromfunction(lambda s, r, c: 90 * s + 800 * np.sin(r / 5) * np.cos(c / 7) - 60, (5, 40, 48))
"""Smooth, for the lossy ones."""


def series(folder: Path, **options: Any) -> DicomSeriesTruth:
    return write_dicom_series(folder, SMOOTH_HU, GEOMETRY, DicomOptions(**options))


def groups_of(dataset: pydicom.Dataset, frame_number: int, keyword: str) -> pydicom.Dataset:
    frame = dataset.PerFrameFunctionalGroupsSequence[frame_number - 1]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    return (frame if keyword in frame else shared)[keyword].value[0]


@pytest.mark.parametrize("pixels", ["signed16", "unsigned12"])
@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
def test_pydicom_decodes_the_truth(tmp_path: Path, transfer_syntax: str, pixels: str) -> None:
    truth = series(tmp_path, transfer_syntax=transfer_syntax, pixels=pixels)
    for image in truth.images:
        dataset = pydicom.dcmread(tmp_path / image.file)
        assert dataset.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[transfer_syntax]
        off = np.abs(dataset.pixel_array - 1024.0 - image.hu).max()
        assert off <= truth.tolerance_hu
        assert off > 0 or truth.tolerance_hu == 0


@pytest.mark.parametrize("pixels", ["signed16", "unsigned12"])
@pytest.mark.parametrize("transfer_syntax", [name for name in TRANSFER_SYNTAXES if name != "jpeg_ls_near"])
def test_simpleitk_decodes_the_truth(tmp_path: Path, transfer_syntax: str, pixels: str) -> None:
    truth = series(tmp_path, transfer_syntax=transfer_syntax, pixels=pixels)
    for image in truth.images:
        read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / image.file)))[0]
        assert np.abs(read - image.hu).max() <= truth.tolerance_hu


@pytest.mark.parametrize("transfer_syntax", ["jpeg_2000", "jpeg_ls_near"])
def test_a_head_stays_within_the_tolerance_of_lossy_transfer_syntaxes(tmp_path: Path, transfer_syntax: str) -> None:
    phantom = make_phantom(draw_spec(3, [], shape=(3, 64, 64)))
    truth = write_dicom_phantom(tmp_path, phantom, DicomOptions(transfer_syntax=transfer_syntax))
    for image in truth.images:
        decoded = pydicom.dcmread(tmp_path / image.file).pixel_array - 1024.0
        assert 0 < np.abs(decoded - image.hu).max() <= truth.tolerance_hu


def test_file_without_its_preamble_starts_with_the_file_meta_group(tmp_path: Path) -> None:
    truth = series(tmp_path, container="no_preamble")
    content = (tmp_path / truth.images[0].file).read_bytes()
    assert content[:4] == b"\2\0\0\0"
    assert pydicom.dcmread(io.BytesIO(bytes(128) + b"DICM" + content)).pixel_array.shape == (40, 48)


@pytest.mark.parametrize("transfer_syntax", ["implicit", "explicit"])
def test_bare_data_set_has_no_file_meta_group(tmp_path: Path, transfer_syntax: str) -> None:
    truth = series(tmp_path, container="bare", transfer_syntax=transfer_syntax)
    for image in truth.images:
        dataset = pydicom.dcmread(tmp_path / image.file, force=True)
        assert not dataset.file_meta
        assert dataset.original_encoding == (transfer_syntax == "implicit", True)
        assert dataset.SOPInstanceUID == image.sop_instance_uid
        assert len(dataset.PixelData) == 2 * 40 * 48


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_frames_of_a_multi_frame_object_are_the_slices(tmp_path: Path, layout: str, transfer_syntax: str) -> None:
    truth = series(tmp_path, layout=layout, transfer_syntax=transfer_syntax, names="shuffled", rescale="per_slice")
    dataset = pydicom.dcmread(tmp_path / "FRAMES.dcm")
    assert [image.slice_index for image in truth.used] == [0, 1, 2, 3, 4]
    for image in truth.images:
        transformation = groups_of(dataset, image.frame_number, "PixelValueTransformationSequence")
        hu = dataset.pixel_array[image.frame_number - 1] * float(transformation.RescaleSlope)
        hu += float(transformation.RescaleIntercept)
        assert np.abs(hu - image.hu).max() <= 2 * truth.tolerance_hu
        position = groups_of(dataset, image.frame_number, "PlanePositionSequence")
        np.testing.assert_array_equal(np.array(position.ImagePositionPatient, float), image.plane.position_mm)


@pytest.mark.parametrize("layout", ["enhanced", "legacy"])
def test_highdicom_reads_the_frames_of_an_even_stack_as_one_volume(tmp_path: Path, layout: str) -> None:
    phantom = make_phantom(draw_spec(3, [], shape=(6, 24, 28), tilt_degrees=9))
    truth = write_dicom_phantom(tmp_path, phantom, DicomOptions(layout=layout, names="shuffled"))
    volume = highdicom.imread(tmp_path / "FRAMES.dcm").get_volume(apply_real_world_transform=False)
    upwards = volume.array if volume.affine[2, 0] > 0 else volume.array[::-1]
    np.testing.assert_array_equal(upwards, truth.hu)


def test_copy_of_a_multi_frame_object_is_the_whole_file(tmp_path: Path) -> None:
    truth = series(tmp_path, layout="enhanced", copied_slices=(1,))
    assert (tmp_path / "FRAMES.dcm").read_bytes() == (tmp_path / "FRAMES_COPY.dcm").read_bytes()
    assert [image.role for image in truth.images] == ["used"] * 5 + ["duplicate"] * 5


def test_no_file_says_when_or_by_which_library_it_was_written(tmp_path: Path) -> None:
    for layout in ("single", "enhanced", "legacy"):
        truth = series(tmp_path / layout, layout=layout)
        dataset = pydicom.dcmread(tmp_path / layout / truth.images[0].file)
        assert dataset.file_meta.ImplementationVersionName == "PHANTOM"
        assert {str(dataset.get(name, "20000101")) for name in ("ContentDate", "InstanceCreationDate")} == {"20000101"}
