from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dicom_writer import DicomOptions, axial_geometry, write_dicom_series
from meddinov3_stroke import cli, read_volume
from meddinov3_stroke.commands.convert import main
from meddinov3_stroke.ct.writing import METHOD

HU = np.random.default_rng(0).integers(-1000, 2500, (10, 9, 11))
EVEN, UNEVEN = [5.0] * 9, [2.5] * 5 + [5.0] * 4


def series(folder: Path, spacings_mm: list[float] = EVEN, **options: Any) -> Path:
    write_dicom_series(folder, HU, axial_geometry(spacings_mm, (9, 11)), DicomOptions(**options))
    return folder


def document(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_verb_writes_volume_slices_and_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = series(tmp_path / "in"), tmp_path / "out" / "case.nii.gz"
    assert cli.main(["convert", "-i", str(source), "--output", str(output)]) == 0
    assert {path.name for path in output.parent.iterdir()} == {"case.nii.gz", "case.slices.json", "case.json"}
    text = capsys.readouterr().out
    assert "11x9x10 voxels as acquired, axes LAS" in text
    for path in output.parent.iterdir():
        assert f"wrote {path}" in text
    assert text.endswith(f"not for clinical diagnosis\n3 files written · {output}\n")
    np.testing.assert_array_equal(read_volume(output).hu, read_volume(source).hu)


def test_the_document_says_where_it_came_from(tmp_path: Path) -> None:
    source, output = series(tmp_path / "in", companions=("localizer",)), tmp_path / "case.nii.gz"
    assert main(["-i", str(source), "--output", str(output)]) == 0
    volume, found = read_volume(source), document(tmp_path / "case.json")
    assert (found["input"], found["input_format"]) == (str(source), "dicom")
    assert found["input_sha256"] == volume.source.sha256
    assert found["dicom"]["series_instance_uid"] == volume.source.series_instance_uid
    assert found["warnings"] == list(volume.warnings)
    assert found["resampled"] is None


def test_uneven_slices_that_nifti_cannot_hold_are_reported_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = series(tmp_path / "in", UNEVEN), tmp_path / "case.nii.gz"
    assert main(["-i", str(source), "--output", str(output)]) == 0
    assert "its affine is off by up to 5.56 mm; the true positions are in case.slices.json" in capsys.readouterr().err
    positions_mm = np.array(document(tmp_path / "case.slices.json")["slice_positions_mm"])
    np.testing.assert_allclose(np.diff(positions_mm[:, 2]), UNEVEN, atol=1e-6)


def test_of_even_slices_nothing_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", str(series(tmp_path / "in")), "--output", str(tmp_path / "case.nii.gz")]) == 0
    assert "evenly" not in capsys.readouterr().err


def test_a_spacing_is_along_x_y_and_z_and_its_method_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "case.nii.gz"
    flags = ["-i", str(series(tmp_path / "in", UNEVEN)), "--output", str(output), "--spacing", "1", "2", "3"]
    assert main(flags) == 0
    assert nib.load(output).header.get_zooms() == pytest.approx((1, 2, 3))
    found = document(tmp_path / "case.json")
    assert found["resampled"] == {"spacing_mm": [1, 2, 3], "method": METHOD}
    assert METHOD in capsys.readouterr().out
    assert not (tmp_path / "case.slices.json").exists()


@pytest.mark.parametrize("codes", ["RAS", "lps", "SAL"])
def test_the_axes_are_those_asked_for(tmp_path: Path, codes: str) -> None:
    output = tmp_path / "case.nii.gz"
    assert main(["-i", str(series(tmp_path / "in")), "--output", str(output), "--orientation", codes]) == 0
    assert "".join(nib.aff2axcodes(nib.load(output).affine)) == codes.upper()


def test_the_series_named_is_converted(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a")
    other = write_dicom_series(
        tmp_path / "in" / "b", HU + 1, axial_geometry(EVEN, (9, 11)), DicomOptions(seed=1, study_seed=0, kernel="H70h")
    )
    output = tmp_path / "case.nii.gz"
    assert main(["-i", str(tmp_path / "in"), "--output", str(output), "--series", other.identity.series_uid]) == 0
    np.testing.assert_array_equal(read_volume(output).hu, HU + 1)


def test_a_nifti_is_reoriented_and_names_no_images(tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    path, output = head_nifti(), tmp_path / "out" / "case.nii.gz"
    assert main(["-i", str(path), "--output", str(output), "--orientation", "RAS"]) == 0
    assert document(tmp_path / "out" / "case.json")["dicom"] is None
    np.testing.assert_array_equal(read_volume(output).hu, read_volume(path).hu)


@pytest.mark.parametrize(
    "flags",
    [
        ["--output", "case.nii"],
        ["--orientation", "LAA"],
        ["--orientation", "LASR"],
        ["--orientation", "XYZ"],
        ["--spacing", "0", "1", "1"],
        ["--dcm2niix", "--spacing", "1", "1", "1"],
        ["--dcm2niix", "--orientation", "RAS"],
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_honoured_exit_with_2_and_nothing_is_written(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = series(tmp_path / "in")
    flags = [str(tmp_path / word) if word == "case.nii" else word for word in flags]
    output = [] if "--output" in flags else ["--output", str(tmp_path / "out.nii.gz")]
    assert main(["-i", str(source), *output, *flags]) == 2
    assert "E-USAGE" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_input_that_cannot_be_read_exits_with_3_and_nothing_is_written(tmp_path: Path) -> None:
    source = series(tmp_path / "in")
    (source / "IM0001.dcm").write_bytes((source / "IM0001.dcm").read_bytes()[:-9])
    assert main(["-i", str(source), "--output", str(tmp_path / "case.nii.gz")]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
