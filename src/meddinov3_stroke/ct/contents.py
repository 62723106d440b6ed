"""An input on disk: what it offers once opened, and the error for each kind of file that is not a head CT."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from meddinov3_stroke.errors import CorruptInput, MachineError, MissingInput, StorageError, UnsupportedInput
from meddinov3_stroke.system.digest import describe_impostor, sha256_of_document
from meddinov3_stroke.types import Volume

HEAD_BYTES = 544
"""Bytes from the start of a file that identify every kind below; a NIfTI-2 header has 540."""

PACKED_HEAD_BYTES = 1 << 12
"""Bytes read of a file that may be gzip: enough for `HEAD_BYTES` of its content after a long name in its header."""

MAX_DEFLATE_RATIO = 1032
"""Deflate gives at most 258 bytes for 2 bits (zlib, "Maximum Compression Factor"); more is a bomb, or damage."""


class OpenedInput(ABC):
    """An input whose files have been found. Each is read once, even if both digest and volume are wanted."""

    path: Path
    """The path that represents the input in messages and names."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files on disk whose stat identifies the input; found without reading their contents."""

    def state(self) -> tuple[str, float] | None:
        """(digest of what identifies the files, latest mtime or ctime in s); None where one cannot be examined."""
        try:
            stats = [(str(path.absolute()), path.stat()) for path in sorted(self.files)]
        except OSError:
            return None
        facts = [(path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats]
        latest_s = max((max(s.st_mtime, s.st_ctime) for _, s in stats), default=0.0)
        return (sha256_of_document(facts), latest_s) if facts else None

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hex sha256 of the content, that of `Volume.source`; known before a voxel is decoded."""

    @abstractmethod
    def volume(self) -> Volume:
        """The volume in canonical orientation; errors as `ct.read_volume` lists them."""


class Content(NamedTuple):
    """What a file is, what to do if it was not wanted, and which reader accepts it."""

    name: str
    remedy: str
    kind: Literal["nifti", "gzip", "dicom", "zip", "other"] = "other"
    """`dicom`, a file or a tar archive of some, is read through gzip too."""


_EXPORT, _RECOMPRESS = "export the volume as .nii.gz", "unpack it and compress with gzip instead"
_FETCH = "fetch the file itself again"
_JOIN_PAIR = "save the pair as one .nii.gz file (for example with nibabel)"
_UNPACK = "unpack it (gunzip) and give what it holds"
_CT_ITSELF = "give the CT volume, not a picture of it"
_RENAME_DICOM = "it is not NIfTI: remove the ending .nii or .nii.gz, or give the folder of its series"
_RENAME_TAR = "if it holds a DICOM series, remove the ending .nii or .nii.gz; else unpack it"
_RENAME_ZIP = "if it holds a DICOM series, rename it to end in .zip; else unpack it"

TAR = Content("a tar archive", _RENAME_TAR, "dicom")
GZIP = b"\x1f\x8b"

_SIGNATURES: tuple[tuple[int, bytes, Content], ...] = (
    (128, b"DICM", Content("a DICOM file", _RENAME_DICOM, "dicom")),
    (0, GZIP, Content("a gzip stream", "rename it to end in .nii.gz", "gzip")),
    (0, b"PK\x03\x04", Content("a zip archive", _RENAME_ZIP, "zip")),
    (0, b"PK\x05\x06", Content("an empty zip archive", _FETCH)),
    (0, b"NRRD", Content("an NRRD file", _EXPORT)),
    (0, b"\x89HDF\r\n", Content("an HDF5 file", _EXPORT)),
    (0, b"\x93NUMPY", Content("a NumPy array", _EXPORT)),
    (0, b"ObjectType", Content("a MetaImage header", _EXPORT)),
    (0, b"NDims", Content("a MetaImage header", _EXPORT)),
    (0, b"\x89PNG", Content("a PNG picture", _CT_ITSELF)),
    (0, b"\xff\xd8\xff", Content("a JPEG picture", _CT_ITSELF)),
    (0, b"%PDF", Content("a PDF document", _CT_ITSELF)),
    (0, b"BZh", Content("a bzip2 stream", _RECOMPRESS)),
    (0, b"\xfd7zXZ", Content("an xz stream", _RECOMPRESS)),
    (0, b"\x28\xb5\x2f\xfd", Content("a Zstandard stream", _RECOMPRESS)),
    (0, b"7z\xbc\xaf", Content("a 7-Zip archive", "unpack it")),
    (257, b"ustar", TAR),
)
"""Offset and bytes that identify a kind of file."""


def recognise(head: bytes) -> Content | None:
    """What a file that begins with `head` (up to `HEAD_BYTES` bytes) is; None if its kind is unknown."""
    found = [_nifti_content(head), *(content for at, magic, content in _SIGNATURES if head[at:].startswith(magic))]
    if impostor := describe_impostor(head):
        found.append(Content(impostor, _FETCH))
    return next(filter(None, found), None)


def _nifti_content(head: bytes) -> Content | None:
    """NIfTI-1, NIfTI-2 or Analyze, by `sizeof_hdr` in either byte order and the magic."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    magic1, magic2 = head[344:348] if 348 in sizes else b"?", head[4:7] if 540 in sizes else b"?"
    if magic2 == b"n+2" or magic1 == b"n+1\0":
        version = 2 if magic2 == b"n+2" else 1
        return Content(f"an uncompressed NIfTI-{version} file", "rename it to end in .nii", "nifti")
    if magic1[:3] == b"ni1" or magic2 == b"ni2":
        return Content("the header of a NIfTI .hdr/.img pair", _JOIN_PAIR)
    if magic1 in (b"\0\0\0\0", b"    "):
        return Content("an Analyze 7.5 header, which does not record left and right", _EXPORT)
    return None


def is_nifti_name(path: Path) -> bool:
    """Whether the name ends in .nii or .nii.gz; a folder of that name is none, since it may hold a DICOM series."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where the parent may not be searched
    return path.name.lower().endswith((".nii", ".nii.gz")) and not is_folder


def require_nifti_content(path: Path, head: bytes) -> None:
    """Raise unless `head`, the first bytes of a file named .nii or .nii.gz, is NIfTI or gzip, as the name says."""
    if not head:
        raise MissingInput(f"{path} is empty (0 bytes); expected a NIfTI volume; {_FETCH}")
    found, is_packed = recognise(head[:HEAD_BYTES]), path.name.lower().endswith(".gz")
    if found is None:
        raise CorruptInput(f"{path} begins with {head[:4].hex(' ')}, neither gzip nor a NIfTI header; {_FETCH}")
    if found.kind != ("gzip" if is_packed else "nifti"):
        expected = "gzip-compressed NIfTI" if is_packed else "an uncompressed NIfTI"
        raise UnsupportedInput(f"{path} is {found.name}; expected {expected}; {found.remedy}")


def require_dicom_input(path: Path) -> None:
    """Raise unless `path` is a folder, DICOM, an archive, either within gzip, or of unknown bytes, such as a list."""
    from meddinov3_stroke.ct.dicom.container import begins_as_dicom  # pydicom is loaded for DICOM alone

    if stat.S_ISDIR(stat_of(path).st_mode):
        return
    require_regular_file(path)
    with path.open("rb") as handle:
        head = handle.read(PACKED_HEAD_BYTES)
    if not head:
        raise MissingInput(f"{path} is empty (0 bytes); expected a head CT; {_FETCH}")
    found, inside = recognise(head[:HEAD_BYTES]), unpacked_head(head)
    if begins_as_dicom(inside):
        return
    if found is not None and found.kind == "gzip":
        packed = recognise(inside)
        found = _half_of_a_pair(path) or found if packed is None or packed.kind == "nifti" else within_gzip(packed)
    elif found is None:
        found = _half_of_a_pair(path)
    if found is not None and found.kind not in ("dicom", "zip"):
        raise UnsupportedInput(f"{path} is {found.name}; expected .nii, .nii.gz or DICOM; {found.remedy}")


def unpacked_head(head: bytes) -> bytes:
    """The first `HEAD_BYTES` of what a file holds that begins with `head`: within gzip, if it is that."""
    if not head.startswith(GZIP):
        return head[:HEAD_BYTES]
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def within_gzip(found: Content) -> Content:
    """What a gzip stream around `found`, which is not NIfTI, is."""
    is_read = found.kind == "dicom"
    return Content(f"gzip around {found.name}", found.remedy if is_read else _UNPACK, "dicom" if is_read else "other")


def _half_of_a_pair(path: Path) -> Content | None:
    """The voxels of a NIfTI or Analyze pair, by the name, which is all that tells them."""
    name, ending, _ = path.name.lower().rpartition(".img")
    if not ending:
        return None
    headers = [other.name for other in path.parent.iterdir() if other.name.lower() in (f"{name}.hdr", f"{name}.hdr.gz")]
    beside = f"the header {headers[0]} is beside it" if headers else f"no header {path.name[: len(name)]}.hdr beside it"
    what = f"the voxel half of a .hdr/.img pair ({beside})"
    return Content(what, f"{'' if headers else 'fetch the header too, then '}{_JOIN_PAIR}")


def require_regular_file(path: Path) -> None:
    """Raise `MissingInput` for a directory, `UnsupportedInput` for a pipe, socket or device; nothing is opened."""
    mode = stat_of(path).st_mode
    if stat.S_ISDIR(mode):
        raise MissingInput(f"{path} is a directory; expected a .nii or .nii.gz file; name the file inside it")
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UnsupportedInput(f"{path} is {kind}; expected a regular file; save the volume to a file")


def stat_of(path: Path) -> os.stat_result:
    """The stat of the file at `path`, links followed; `MissingInput` for a name that is not a path."""
    try:
        return path.stat()
    except ValueError as error:  # a NUL byte in the name
        raise MissingInput(f"{str(path)!r} cannot be a path: {error}; check the path") from error


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors inside the block into `MissingInput` (no such file) or `MachineError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise MissingInput(f"{path} does not exist ({error.strerror}); check the path") from error
        reason = error.strerror or error
        raise StorageError(f"{path} cannot be read ({reason}); check permissions and the disk") from error
    except MemoryError as error:
        raise MachineError(f"{path} does not fit into memory; free some, or use a larger machine") from error
