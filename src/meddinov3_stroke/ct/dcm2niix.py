"""The dcm2niix program of this machine, run on the images of one series alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from meddinov3_stroke.ct.contents import is_nifti_name
from meddinov3_stroke.ct.dicom.read import open_dicom
from meddinov3_stroke.errors import MachineError, UnsupportedInput
from meddinov3_stroke.system.atomic import write_bytes

NIFTI_SUFFIX = ".nii.gz"

PLAIN_NAME = "volume"
"""What dcm2niix is told to call its files: of a name given by a user it would replace %d, %p and their like."""

TIMEOUT_S = 600
"""Seconds that dcm2niix may take for a series."""


def convert_with_dcm2niix(source: Path, series_uid: str | None, output: Path) -> list[Path]:
    """The files written: `output`, and what else dcm2niix gave (such as its `_Tilt_Eq`) under names that begin alike.

    Raises:
        UnsupportedInput: NIfTI, or a series that dcm2niix gives nothing for.
        InputError: no series that can be read.
        MachineError: no dcm2niix on this machine, or it failed.
    """
    program = shutil.which("dcm2niix")
    if program is None:
        raise MachineError("no dcm2niix on this machine; install it (pip install dcm2niix), or leave --dcm2niix out")
    if is_nifti_name(source):
        raise UnsupportedInput(f"{source} is NIfTI already; dcm2niix takes DICOM")
    stem = output.name[: -len(NIFTI_SUFFIX)]
    with TemporaryDirectory(prefix="dcm2niix-") as folder:
        images, given = Path(folder, "images"), Path(folder, "given")
        images.mkdir()
        given.mkdir()
        _lay_out(source, series_uid, images)
        _run([program, "-z", "y", "-b", "n", "-f", PLAIN_NAME, "-o", str(given), str(images)])
        written = []
        for path in sorted(given.glob(f"{PLAIN_NAME}*{NIFTI_SUFFIX}"), key=lambda path: len(path.name)):
            beside = output.with_name(stem + path.name.removeprefix(PLAIN_NAME))
            written.append(output if path.name == PLAIN_NAME + NIFTI_SUFFIX else beside)
            write_bytes(written[-1], path.read_bytes())
    if not written:
        raise UnsupportedInput(f"dcm2niix wrote nothing for {source}; convert it without --dcm2niix")
    return written


def _lay_out(source: Path, series_uid: str | None, folder: Path) -> None:
    """Copies of the images of the chosen series, under plain names."""
    for k, content in enumerate(open_dicom(source, series_uid).image_files()):
        (folder / f"{k:05d}.dcm").write_bytes(content)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except OSError as error:
        raise MachineError(f"dcm2niix cannot be run ({error.strerror}); install it again") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"dcm2niix did not end within {TIMEOUT_S} s") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise MachineError(f"dcm2niix failed with {done.returncode}: {told[0]}")
