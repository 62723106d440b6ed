"""The files of an input: a folder, a zip archive, a list or a single file, none of them unpacked to disk."""

from __future__ import annotations

import lzma
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from meddinov3_stroke.ct.contents import machine_errors
from meddinov3_stroke.ct.dicom.structure import MAGIC, PREAMBLE_BYTES
from meddinov3_stroke.errors import CorruptInput, MissingInput, UnsupportedInput

MAX_FILES = 50_000
"""Files looked through for one volume; a study has a few thousand. A flat Kaggle folder is for `prepare-rsna`."""

MAX_FILE_BYTES = 1 << 30
"""Bytes of one DICOM file that are read; an enhanced CT of 1,000 frames of 512 x 512 has half of that."""

MAX_ARCHIVE_RATIO = 1032
"""Deflate gives at most 258 bytes for 2 bits; an archive that declares more is a bomb or damaged."""

LIST_SUFFIX = ".txt"
"""Ending of a list of files: one path a line, relative to the list's folder; `#` at the start of a line or after a
blank begins a comment."""

_COMMENT = re.compile(r"(?:^|\s)#")


_UNPACKING_FAULTS = (zlib.error, lzma.LZMAError, OSError)
"""What the unpackers raise on damaged members; bz2's is a plain OSError. The archive itself was opened before."""


@dataclass(frozen=True, eq=False)
class InputFile:
    """One file of an input."""

    name: str
    """Within the input, for messages; a full path where there is no folder around it."""
    path: Path
    """On disk; the archive for a member of it."""
    n_bytes: int
    archive: zipfile.ZipFile | None = None
    member: str = ""
    """Its name in the archive, which no other member has."""

    def read(self) -> bytes:
        """All its bytes.

        Raises:
            CorruptInput: longer than it says, or its checksum in the archive does not hold.
            UnsupportedInput: above `MAX_FILE_BYTES`, or an encrypted member.
        """
        self.require_readable_size()
        return self.head(self.n_bytes + 1)

    def require_readable_size(self) -> None:
        """Nothing, where the file may be read whole.

        Raises:
            UnsupportedInput: above `MAX_FILE_BYTES`.
        """
        if self.n_bytes > MAX_FILE_BYTES:
            raise UnsupportedInput(
                f"{self.name} has {self.n_bytes} bytes; at most {MAX_FILE_BYTES} are read of one DICOM file"
            )

    def head(self, n_bytes: int) -> bytes:
        """Its first `n_bytes` bytes, of a file of any size; else as `read`."""
        content = self._head(n_bytes)
        if len(content) > self.n_bytes:
            raise CorruptInput(f"{self.name} has more than the {self.n_bytes} bytes it had before; read it again")
        return content

    def _head(self, n_bytes: int) -> bytes:
        with machine_errors(self.path):
            if self.archive is None:
                with self.path.open("rb", buffering=0) as handle:
                    return handle.read(n_bytes) or b""
            return self._member_head(self.archive, n_bytes)

    def _member_head(self, archive: zipfile.ZipFile, n_bytes: int) -> bytes:
        try:
            with archive.open(self.member) as member:
                return member.read(n_bytes)
        except RuntimeError as error:  # zipfile's word for a password
            raise UnsupportedInput(f"{self.name} is encrypted; unpack the archive with its password") from error
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, *_UNPACKING_FAULTS) as error:
            raise CorruptInput(f"{self.name} cannot be unpacked ({error}); fetch the archive again") from error


@contextmanager
def open_files(source: Path | Sequence[Path]) -> Iterator[tuple[InputFile, ...]]:
    """The files of a folder (with its subfolders), zip archive, list (.txt) or file, or those named, in order of names.

    Raises:
        MissingInput: nothing there, or an empty folder, archive or list; a link or list that names no file.
        CorruptInput: an archive that is damaged, declares what cannot be, or has two files of one name.
        UnsupportedInput: more than `MAX_FILES` files, or one that is no regular file.
        MachineError: the machine refuses to give them.
    """
    with ExitStack() as stack:
        files = tuple(_files_of(source, stack))
        if not files:
            raise MissingInput(f"{source} holds no files; expected a DICOM series; check the path")
        yield files


def _files_of(source: Path | Sequence[Path], stack: ExitStack) -> Iterator[InputFile]:
    if not isinstance(source, Path):
        yield from (_on_disk(path, str(path)) for path in source)
        return
    with machine_errors(source):
        if source.is_dir():
            yield from _in_folder(source)
        elif _is_archive(source):
            yield from _in_archive(source, stack)
        elif source.name.lower().endswith(LIST_SUFFIX) and not _begins_as_dicom(source):
            yield from _in_list(source)
        else:
            yield _on_disk(source, str(source))


def _is_archive(path: Path) -> bool:
    """Whether it ends as a zip archive does, or begins as one that was cut."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(PREAMBLE_BYTES + len(MAGIC)).endswith(MAGIC)


def _on_disk(path: Path, name: str) -> InputFile:
    with machine_errors(path):
        try:
            found = path.stat()
        except ValueError as error:  # a NUL byte in the name
            raise MissingInput(f"{name!r} cannot be a path: {error}; check the path") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise UnsupportedInput(f"{name} is {what}; expected a DICOM file; name the files themselves")
    return InputFile(name, path, found.st_size)


def _in_folder(folder: Path) -> Iterator[InputFile]:
    """Its files and those of its subfolders, through links too; each folder once."""
    n_files, walked = 0, {folder.resolve()}
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _is_walked(Path(parent, name), walked)]
        for name in sorted(names):
            n_files += 1
            _require_few(n_files, folder)
            path = Path(parent, name)
            yield _on_disk(path, path.relative_to(folder).as_posix())


def _is_walked(folder: Path, walked: set[Path]) -> bool:
    """Whether the folder, under whatever name, is among those walked; it is from now on."""
    resolved = folder.resolve()
    if resolved in walked:
        return True
    walked.add(resolved)
    return False


def _raise(error: OSError) -> None:
    raise error


def _require_few(n_files: int, source: Path) -> None:
    if n_files > MAX_FILES:
        raise UnsupportedInput(
            f"{source} holds more than {MAX_FILES} files; expected one study; name the study's own folder, or use "
            "prepare-rsna for a data set"
        )


def _in_archive(path: Path, stack: ExitStack) -> Iterator[InputFile]:
    _require_few(_declared_members(path), path)  # before zipfile builds an object for each
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CorruptInput(f"{path} is a damaged zip archive ({error}); fetch it again") from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    _require_few(len(members), path)
    names = Counter(member.filename for member in members)
    for member in sorted(members, key=lambda member: member.filename):
        if names[member.filename] > 1:
            raise CorruptInput(
                f"{path} holds {names[member.filename]} files named {member.filename}; expected one of each name; "
                "pack it again"
            )
        if member.file_size > MAX_ARCHIVE_RATIO * max(member.compress_size, 1):
            raise CorruptInput(
                f"{path}: {member.filename} declares {member.file_size} bytes from {member.compress_size}; no sound "
                "archive holds that; fetch it again"
            )
        yield InputFile(f"{path.name}:{member.filename}", path, member.file_size, archive, member.filename)


def _declared_members(path: Path) -> int:
    """How many members the archive's end record speaks of; 0 where it has none (APPNOTE.TXT 4.3.14 and 4.3.16)."""
    with path.open("rb") as handle:
        handle.seek(-min(path.stat().st_size, _END_BYTES), os.SEEK_END)
        end = handle.read()
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) < at + 12:
        return 0
    n_members = int.from_bytes(end[at + 10 : at + 12], "little")
    at = end.rfind(b"PK\x06\x06", 0, at) if n_members == 0xFFFF else -1
    return n_members if at < 0 else int.from_bytes(end[at + 32 : at + 40], "little")


_END_BYTES = 22 + 20 + 56 + 0xFFFF
"""Longest end of an archive: the end record with its comment, the locator and the ZIP64 end record."""


def _in_list(path: Path) -> Iterator[InputFile]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UnsupportedInput(f"{path} is no list of files in UTF-8; expected one path a line") from error
    entries = [entry for line in lines if (entry := _COMMENT.split(line, maxsplit=1)[0].strip())]
    _require_few(len(entries), path)
    for entry in entries:
        yield _on_disk(path.parent / _from_home(entry), entry)


def _from_home(entry: str) -> Path:
    try:
        return Path(entry).expanduser()
    except RuntimeError:  # no such user: it is a name that begins with ~
        return Path(entry)
