"""What a path really is, told from its first bytes; what is neither NIfTI under its own name nor DICOM is refused."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meddinov3_stroke.errors import CorruptInput, MachineError, MissingInput, StorageError, UnsupportedInput

HEAD_BYTES = 544
"""Enough of a file to tell every kind below: a NIfTI-2 header is 540 bytes."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Endings that make a path NIfTI; anything else is looked at for DICOM."""

DICOM_KINDS = ("a DICOM file", "a zip archive")
"""What a file that is read for DICOM may be known as; one of no known kind may be DICOM without its preamble."""

_RENAME_DICOM = "it is no NIfTI: give it without the ending .nii or .nii.gz, or give the folder of its series"
_EXPORT = "export the volume as .nii.gz"
_FETCH = "fetch the file itself again"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (128, b"DICM", "a DICOM file", _RENAME_DICOM),
    (0, b"\x1f\x8b", "a gzip stream", "rename it to end in .nii.gz"),
    (0, b"PK\x03\x04", "a zip archive", "if it holds a DICOM series, rename it to end in .zip; else unpack it"),
    (0, b"PK\x05\x06", "an empty zip archive", _FETCH),
    (0, b"version https://git-lfs", "a Git-LFS pointer", "run git lfs pull, or download the file itself"),
    (0, b"NRRD", "an NRRD file", _EXPORT),
    (0, b"\x89HDF\r\n", "an HDF5 file", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array", _EXPORT),
    (0, b"\x89PNG", "a PNG picture", "give the CT volume, not a picture of it"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "give the CT volume, not a picture of it"),
    (0, b"%PDF", "a PDF document", "give the CT volume"),
    (0, b"BZh", "a bzip2 stream", "unpack it and compress with gzip instead"),
    (0, b"\xfd7zXZ", "an xz stream", "unpack it and compress with gzip instead"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard stream", "unpack it and compress with gzip instead"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (257, b"ustar", "a tar archive", "unpack it"),
)
"""Offset, bytes, what they say, and what to do about it."""

_TEXT_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype html", "an HTML page", f"a login or quota page was saved instead; {_FETCH}"),
    (b"<html", "an HTML page", f"a login or quota page was saved instead; {_FETCH}"),
    (b"<head", "an HTML page", f"a login or quota page was saved instead; {_FETCH}"),
    (b"<?xml", "an XML document", _FETCH),
    (b"objecttype", "a MetaImage header", _EXPORT),
    (b"ndims", "a MetaImage header", _EXPORT),
)
"""Beginnings of text files, lower case and after blanks."""


@dataclass(frozen=True)
class Content:
    """What some bytes are, in words, and what to do when they are not what was needed."""

    name: str
    remedy: str
    is_nifti: bool = False
    is_gzip: bool = False


def recognise(head: bytes) -> Content | None:
    """What a file that begins with `head` (up to `HEAD_BYTES` bytes) is; None for bytes of no known kind."""
    if nifti := _recognise_nifti(head):
        return nifti
    for offset, magic, name, remedy in _SIGNATURES:
        if head[offset:].startswith(magic):
            return Content(name, remedy, is_gzip=magic == b"\x1f\x8b")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, name, remedy in _TEXT_SIGNATURES:
        if text.startswith(magic):
            return Content(name, remedy)
    return None


def _recognise_nifti(head: bytes) -> Content | None:
    """NIfTI-1, NIfTI-2 and their older relatives, told by `sizeof_hdr` in either byte order and the magic."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if 540 in sizes and head[4:7] == b"n+2":
        return Content("an uncompressed NIfTI-2 file", "rename it to end in .nii", is_nifti=True)
    if 348 in sizes and head[344:348] == b"n+1\0":
        return Content("an uncompressed NIfTI-1 file", "rename it to end in .nii", is_nifti=True)
    if (348 in sizes and head[344:347] == b"ni1") or (540 in sizes and head[4:7] == b"ni2"):
        return Content("the header of a NIfTI .hdr/.img pair", "save the volume as one .nii.gz file")
    if 348 in sizes and head[344:348] in (b"\0\0\0\0", b"    "):
        return Content("an Analyze 7.5 header, which says nothing of left and right", _EXPORT)
    return None


def is_nifti_name(path: Path) -> bool:
    """Whether the name says NIfTI."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def require_dicom_input(path: Path) -> None:
    """Nothing, where `path` is a folder or a regular file that may hold DICOM: by its first bytes, a DICOM file, a zip
    archive, or of no kind known here (a list, a header index, a data set without preamble).

    Raises:
        MissingInput: no such file, or an empty one.
        UnsupportedInput: something else, named for what was found.
    """
    if stat.S_ISDIR(_mode(path)):
        return
    _require_regular_file(path)
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    if not head:
        raise MissingInput(f"{path} is empty (0 bytes); expected a head CT; {_FETCH}")
    found = recognise(head)
    if found is not None and found.name not in DICOM_KINDS:
        raise UnsupportedInput(f"{path} is {found.name}; expected .nii, .nii.gz or DICOM; {found.remedy}")


def require_nifti(path: Path) -> None:
    """Nothing, where `path`, whose name says NIfTI, is a regular file whose first bytes say so too.

    Raises:
        MissingInput: no such file, an empty one, or a directory.
        CorruptInput: of no known content.
        UnsupportedInput: something else, named for what was found.
    """
    _require_regular_file(path)
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    if not head:
        raise MissingInput(f"{path} is empty (0 bytes); expected a NIfTI volume; {_FETCH}")
    found, is_packed = recognise(head), path.name.lower().endswith(".gz")
    if found is None:
        raise _unknown_content(path, head)
    if not (found.is_gzip if is_packed else found.is_nifti):
        expected = "gzip-compressed NIfTI" if is_packed else "an uncompressed NIfTI"
        raise UnsupportedInput(f"{path} is {found.name}; expected {expected}; {found.remedy}")


def _unknown_content(path: Path, head: bytes) -> CorruptInput:
    start = head[:4].hex(" ")
    return CorruptInput(
        f"{path} begins with {start}, neither gzip nor a NIfTI header; it is damaged or misnamed; {_FETCH}"
    )


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except ValueError as error:  # a NUL byte in the name
        raise MissingInput(f"{str(path)!r} cannot be a path: {error}; check the path") from error


def _require_regular_file(path: Path) -> None:
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise MissingInput(f"{path} is a directory; expected a .nii or .nii.gz file; name the file inside it")
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
        raise UnsupportedInput(f"{path} is {kind}; expected a regular file; save the volume to a file")


_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals inside the block into `MissingInput` (no such file) or `MachineError` (all else)."""
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise MissingInput(f"{path} does not exist ({error.strerror}); check the path") from error
        raise StorageError(
            f"{path} cannot be read ({error.strerror or error}); check permissions and the disk"
        ) from error
    except MemoryError as error:
        raise MachineError(f"{path} does not fit into memory; free some, or read it on a larger machine") from error
