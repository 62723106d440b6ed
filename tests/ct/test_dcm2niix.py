"""dcm2niix, if it is installed, receives the images of one series and nothing else."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom_writer import DicomOptions, DicomSeriesTruth, axial_geometry, write_dicom_series
from meddinov3_stroke.commands.convert import main
from meddinov3_stroke.ct import writing
from meddinov3_stroke.ct.writing import dcm2niix_files
from meddinov3_stroke.errors import MachineError, UnsupportedInput

FAKE = """#!/bin/sh
# as dcm2niix is called: options, then the folder of images last
while [ $# -gt 1 ]; do
  case "$1" in -f) name=$2;; -o) out=$2;; esac
  shift
done
cp -r "$1" {seen}
printf base > "$out/$name.nii.gz"
printf tilt > "$out/${{name}}_Tilt_Eq.nii.gz"
printf text > "$out/$name.txt"
"""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script on the PATH as dcm2niix; returns the folder where it leaves the images it received."""

    def install(script: str = FAKE) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        program, seen = folder / "dcm2niix", tmp_path / "seen"
        program.write_text(script.format(seen=seen) if script is FAKE else script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return seen

    return install


@pytest.fixture
def study(tmp_path: Path) -> DicomSeriesTruth:
    """A series with a copy and a localizer, beside another series of its study."""
    hu = np.zeros((9, 4, 5))
    geometry = axial_geometry([5.0] * 8, (4, 5))
    write_dicom_series(tmp_path / "study" / "bone", hu, geometry, DicomOptions(seed=2, study_seed=0, kernel="H70h"))
    options = DicomOptions(companions=("localizer", "clutter"), copied_slices=(2,))
    return write_dicom_series(tmp_path / "study" / "soft", hu, geometry, options)


def test_it_is_given_the_images_of_the_chosen_series_alone(on_path, study: DicomSeriesTruth, tmp_path: Path) -> None:
    seen = on_path()
    dcm2niix_files(tmp_path / "study", None)
    received = [str(pydicom.dcmread(path).SOPInstanceUID) for path in sorted(seen.iterdir())]
    assert received == [image.sop_instance_uid for image in study.used]


def test_it_is_given_the_series_that_is_named(on_path, study: DicomSeriesTruth, tmp_path: Path) -> None:
    seen = on_path()
    bone = str(pydicom.dcmread(tmp_path / "study" / "bone" / "IM0001.dcm").SeriesInstanceUID)
    dcm2niix_files(tmp_path / "study", bone)
    assert {str(pydicom.dcmread(path).SeriesInstanceUID) for path in seen.iterdir()} == {bone}


@pytest.mark.parametrize("name", ["case", "case_%d_%p", "-x", "病例 1"])
def test_all_that_it_writes_lies_under_the_name_asked_for(
    on_path, study: DicomSeriesTruth, tmp_path: Path, name: str
) -> None:
    on_path()
    output = str(tmp_path / "out" / f"{name}.nii.gz")
    assert main(["-i", str(tmp_path / "study"), "--output", output, "--dcm2niix"]) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert json.loads(written.pop(f"{name}.json"))["disclaimer"] == "research use only, not for clinical diagnosis"
    assert written == {f"{name}.nii.gz": "base", f"{name}_Tilt_Eq.nii.gz": "tilt"}


def test_without_the_program_the_error_says_how_to_get_it(
    study: DicomSeriesTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = ["-i", str(tmp_path / "study"), "--output", str(tmp_path / "case.nii.gz"), "--dcm2niix"]
    assert main(flags) == 7
    assert "no dcm2niix on this machine; install it (pip install dcm2niix)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\necho 'a line'\necho 'Error: bad series' >&2\nexit 2\n", "failed with 2: Error: bad series"),
        ("#!/bin/sh\nprintf '\\377\\376 bytes' >&2\nexit 3\n", "failed with 3"),
        ("#!/bin/sh\nexit 4\n", "failed with 4: no message"),
        ("no program at all", "cannot be run"),
    ],
    ids=["a message", "bytes that are not text", "no message", "no program"],
)
def test_a_failure_is_reported_in_the_words_of_dcm2niix(
    on_path, study: DicomSeriesTruth, tmp_path: Path, script: str, message: str
) -> None:
    on_path(script)
    with pytest.raises(MachineError, match=message):
        dcm2niix_files(tmp_path / "study", None)
    assert not (tmp_path / "case.nii.gz").exists()


def test_a_dcm2niix_that_hangs_is_stopped(
    on_path, study: DicomSeriesTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "TIMEOUT_S", 0.2)
    on_path("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(MachineError, match=r"did not end within 0\.2 s"):
        dcm2niix_files(tmp_path / "study", None)


def test_a_dcm2niix_that_writes_nothing_is_reported(on_path, study: DicomSeriesTruth, tmp_path: Path) -> None:
    on_path("#!/bin/sh\nexit 0\n")
    with pytest.raises(UnsupportedInput, match="dcm2niix wrote nothing"):
        dcm2niix_files(tmp_path / "study", None)


def test_a_nifti_needs_no_dcm2niix(on_path, tmp_path: Path, head_nifti: Callable[..., Path]) -> None:
    on_path()
    with pytest.raises(UnsupportedInput, match="is NIfTI already"):
        dcm2niix_files(head_nifti(), None)
