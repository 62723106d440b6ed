"""Each piece of advice in an error about an input, followed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import read_volume
from meddinov3_stroke.ct.dicom.choice import inspect_dicom
from meddinov3_stroke.errors import AmbiguousInput, MedDINOError, MissingInput, UnsupportedInput, UsageError

HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))


def written(folder: Path, **options: Any) -> str:
    truth = write_dicom_series(folder, HU, axial_geometry([5.0] * 9, (9, 11)), DicomOptions(**options))
    return truth.identity.series_uid


def refused(match: str, error: type[MedDINOError], source: Any, **how: Any) -> None:
    with pytest.raises(error, match=match):
        read_volume(source, **how)


def test_name_its_folder_or_its_series(tmp_path: Path) -> None:
    uids = written(tmp_path / "a"), written(tmp_path / "b", seed=1)
    refused("name its folder, or the series with --series UID", AmbiguousInput, tmp_path)
    for folder, uid in zip("ab", uids, strict=True):
        assert read_volume(tmp_path / folder).source.series_instance_uid == uid
        assert read_volume(tmp_path, series=uid).source.series_instance_uid == uid


def test_list_them_with_inspect(tmp_path: Path) -> None:
    written(tmp_path)
    refused("list them with inspect", MissingInput, tmp_path, series="2.25.1")
    (one,) = inspect_dicom(tmp_path).series
    assert read_volume(tmp_path, series=one.name).n_slices == 10


def test_export_the_series_uncompressed(tmp_path: Path) -> None:
    written(tmp_path / "a", transfer_syntax="jpeg_ls")
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.51"))
    refused("export the series uncompressed", UnsupportedInput, tmp_path)
    written(tmp_path / "b")
    assert read_volume(tmp_path / "b").n_slices == 10


def test_raise_max_voxels(tmp_path: Path) -> None:
    written(tmp_path)
    refused("at most 989 voxels are read; raise max_voxels", UnsupportedInput, tmp_path, max_voxels=989)
    assert read_volume(tmp_path, max_voxels=990).n_slices == 10


def test_give_the_files_of_that_series_alone(tmp_path: Path) -> None:
    uid, files = written(tmp_path), sorted(tmp_path.iterdir())
    refused("give the files of that series alone", UsageError, files, series=uid)
    assert read_volume(files).n_slices == 10


def test_give_a_nifti_volume_by_its_own_path_and_omit_series(tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    path = head_nifti("folder/case.nii.gz")
    refused("give a NIfTI volume or an archive by its own path", MissingInput, path.parent)
    refused("omit --series", UsageError, path, series="1")
    refused("omit --join-series", UsageError, path, join_series=True)
    assert read_volume(path).n_slices == 8


@pytest.mark.parametrize("name", ["study.nii.gz", "study.nii"])
def test_rename_an_archive_to_end_in_zip(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for path in (tmp_path / "a").iterdir():
            archive.write(path, path.name)
    refused("rename it to end in .zip", UnsupportedInput, tmp_path / name)
    assert read_volume((tmp_path / name).rename(tmp_path / "study.zip")).n_slices == 10


def test_remove_the_ending_of_a_dicom_file_or_give_its_folder(tmp_path: Path) -> None:
    written(tmp_path, layout="enhanced")
    path = next(tmp_path.iterdir()).rename(tmp_path / "study.nii")
    refused("remove the ending .nii or .nii.gz, or give the folder of its series", UnsupportedInput, path)
    assert read_volume(tmp_path).n_slices == 10
    assert read_volume(path.rename(tmp_path / "study")).n_slices == 10


def test_rename_a_nifti_as_it_says(tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    path = head_nifti("a/case.nii.gz").rename(tmp_path / "case")
    refused(r"rename it to end in \.nii\.gz", UnsupportedInput, path)
    assert read_volume(path.rename(tmp_path / "case.nii.gz")).n_slices == 8


def test_export_again_what_has_no_number_for_an_intercept(tmp_path: Path) -> None:
    written(tmp_path)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.RescaleIntercept
        dataset.add_new("RescaleIntercept", "ST", "-1,024")
        dataset.save_as(path)
    refused("Rescale Intercept is '-1,024'; expected a number; export the series again", MedDINOError, tmp_path)
    (one,) = inspect_dicom(tmp_path).series
    assert (one.verdict, "'-1,024'" in one.reason) == ("refused", True)
