"""An opened input gives its digest and its volume from one reading."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke.ct import nifti, open_input, read_volume
from meddinov3_stroke.errors import CorruptInput, InputError, MissingInput, UnsupportedInput
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.types import Volume, VolumeInput


@pytest.fixture
def n_opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """A function that says how often a path has been opened to be read."""
    opened: list[str] = []
    open_file = io.open

    def noted(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "r" in mode:
            opened.append(str(file))
        return open_file(file, mode, *args, **options)

    monkeypatch.setattr(io, "open", noted)
    monkeypatch.setattr(builtins, "open", noted)
    return lambda path: opened.count(str(path))


def assert_equal(found: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(found.stored, expected.stored)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert vars(found.source) == vars(expected.source)
    assert found.warnings == expected.warnings


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_a_nifti_whose_digest_and_volume_are_wanted_is_opened_once(write_nifti, head, name, n_opened) -> None:
    path = write_nifti(head, name=name)
    opened = open_input(path)
    digest, volume = opened.digest, opened.volume()
    assert n_opened(path) == 1
    assert digest == opened.digest == volume.source.sha256 == sha256_of_file(path)
    assert_equal(volume, read_volume(path))


def test_the_volume_first_and_the_digest_after_it_is_one_opening(write_nifti, head, n_opened) -> None:
    path = write_nifti(head)
    opened = open_input(path)
    volume = opened.volume()
    assert opened.digest == volume.source.sha256
    assert n_opened(path) == 1


def test_the_volume_is_that_of_the_digest_even_if_the_file_changes_between(write_nifti, head) -> None:
    path = write_nifti(head)
    expected, opened = read_volume(path), open_input(path)
    digest = opened.digest
    path.write_bytes(b"changed")
    assert_equal(opened.volume(), expected)
    assert digest == expected.source.sha256


def test_a_second_volume_is_the_same(write_nifti, head) -> None:
    path = write_nifti(head)
    opened = open_input(path)
    assert opened.digest
    assert_equal(opened.volume(), opened.volume())


def test_a_file_too_large_to_keep_is_read_twice(write_nifti, head, monkeypatch, n_opened) -> None:
    monkeypatch.setattr(nifti, "KEPT_BYTES", 100)
    path = write_nifti(head)
    opened = open_input(path)
    assert opened.digest == opened.volume().source.sha256
    assert n_opened(path) == 2


def test_the_files_of_a_nifti_are_known_unopened(write_nifti, head, n_opened) -> None:
    path = write_nifti(head)
    opened = open_input(path)
    assert (opened.path, opened.files) == (path, (path,))
    assert n_opened(path) == 0


def test_a_damaged_nifti_has_a_digest_and_no_volume(make_nifti_bytes, write, head) -> None:
    path = write(make_nifti_bytes(head)[:-9])
    opened = open_input(path)
    assert opened.digest == sha256_of_file(path)
    with pytest.raises(CorruptInput, match="truncated"):
        opened.volume()


def test_a_dicom_input_has_path_files_digest_and_volume(tmp_path: Path) -> None:
    truth = write_dicom_series(tmp_path, np.zeros((4, 9, 11)), axial_geometry([5.0] * 3, (9, 11)), DicomOptions())
    opened = open_input(tmp_path)
    assert opened.path == tmp_path
    assert {path.name for path in opened.files} == {image.file for image in truth.images}
    assert opened.digest == opened.volume().source.sha256


def test_an_absent_file_is_missing_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        open_input(tmp_path / "case.nii.gz")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("folder", MissingInput, "is a directory; expected a .nii or .nii.gz file; a DICOM folder belongs under dicom"),
        ("gone.nii.gz", MissingInput, "no such file; expected a .nii or .nii.gz file"),
        ("a\0b.nii", MissingInput, "no such file; expected a .nii or .nii.gz file"),
        ("case.dcm", UnsupportedInput, "is not a .nii or .nii.gz file; DICOM belongs under dicom_path"),
    ],
    ids=["folder", "absent", "no path", "DICOM"],
)
def test_an_input_that_must_be_nifti_is_nothing_else(tmp_path: Path, name: str, error: type, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "case.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(error, match=message):
        open_input(VolumeInput(tmp_path / name, format="nifti"))


def test_an_input_that_must_be_nifti_is_read(write_nifti, head) -> None:
    path = write_nifti(head)
    assert_equal(read_volume(VolumeInput(path, format="nifti")), read_volume(path))


def test_an_input_that_must_be_dicom_is_no_nifti(write_nifti, head) -> None:
    with pytest.raises(InputError):
        read_volume(VolumeInput(write_nifti(head), format="dicom"))


def test_a_nifti_is_read_without_nibabel_or_pydicom(write_nifti, head) -> None:
    script = (
        "import sys; from meddinov3_stroke.ct import read_volume; read_volume(sys.argv[1]); "
        "print(sorted({'nibabel', 'pydicom', 'scipy', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(write_nifti(head))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
