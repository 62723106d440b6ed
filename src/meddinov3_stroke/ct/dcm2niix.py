"""Conversion by the dcm2niix program of this machine, given the images of one series only."""

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
"""File name given to dcm2niix, which would replace %d, %p and the like in a name chosen by the user."""

TIMEOUT_S = 600
"""Seconds that dcm2niix may take for a series."""


def convert_with_dcm2niix(source: Path, series_uid: str | None, output: Path) -> list[Path]:
    """The files written: `output`, and further ones of dcm2niix (such as its `_Tilt_Eq`) under names that begin alike.

    Raises:
        UnsupportedInput: NIfTI, or a series for which dcm2niix writes nothing.
        InputError: no series that can be read.
        MachineError: dcm2niix is not installed, or it failed.
    """
    program = shutil.which("dcm2niix")
    if program is None:
        raise MachineError("no dcm2niix on this machine; install it (pip install dcm2niix), or omit --dcm2niix")
    if is_nifti_name(source):
        raise UnsupportedInput(f"{source} is NIfTI already; dcm2niix converts DICOM")
    with TemporaryDirectory(prefix="dcm2niix-") as folder:
        images, converted = Path(folder, "images"), Path(folder, "converted")
        images.mkdir()
        converted.mkdir()
        for k, content in enumerate(open_dicom(source, series_uid).image_files()):
            (images / f"{k:05d}.dcm").write_bytes(content)
        _run([program, "-z", "y", "-b", "n", "-f", PLAIN_NAME, "-o", str(converted), str(images)])
        written = []
        for path in sorted(converted.glob(f"{PLAIN_NAME}*{NIFTI_SUFFIX}"), key=lambda path: len(path.name)):
            ending = path.name.removeprefix(PLAIN_NAME)
            is_volume = ending == NIFTI_SUFFIX
            written.append(output if is_volume else output.with_name(output.name[: -len(NIFTI_SUFFIX)] + ending))
            write_bytes(written[-1], path.read_bytes())
    if not written:
        raise UnsupportedInput(f"dcm2niix wrote nothing for {source}; convert it without --dcm2niix")
    return written


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except OSError as error:
        raise MachineError(f"dcm2niix cannot be run ({error.strerror}); install it again") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"dcm2niix did not end within {TIMEOUT_S} s") from error
    if done.returncode:
        message = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise MachineError(f"dcm2niix failed with {done.returncode}: {message[0]}")
