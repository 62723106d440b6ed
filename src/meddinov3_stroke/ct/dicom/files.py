"""The files of an input: a folder, archive, list, header index or single files. Nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from meddinov3_stroke.ct.contents import (
    GZIP,
    MAX_DEFLATE_RATIO,
    PACKED_HEAD_BYTES,
    TAR,
    machine_errors,
    recognise,
    stat_of,
    unpacked_head,
)
from meddinov3_stroke.ct.dicom.container import MAGIC, PREAMBLE_BYTES
from meddinov3_stroke.ct.dicom.tars import tar_members
from meddinov3_stroke.errors import CorruptInput, MissingInput, UnsupportedInput, UsageError
from meddinov3_stroke.system.names import know, known_file
from meddinov3_stroke.types import STACK_NUMBER

MAX_FILES = 50_000
"""Files examined for one volume; a study has a few thousand. A flat Kaggle folder is for `prepare-rsna`."""

MAX_FILE_BYTES = 1 << 30
"""Size of the largest DICOM file that is read; an enhanced CT of 1,000 frames of 512 x 512 has half of that."""

LIST_SUFFIX, INDEX_SUFFIX = ".txt", ".parquet"
"""Of a list of files (one path a line, relative to the list's folder; `#` at the start of a line or after a blank
begins a comment), and of a header index, whose columns `series_uid` and `file` are read here."""

_COMMENT = re.compile(r"(?:^|\s)#")
_INDEX_BATCH_ROWS = 8192

_UNPACKING_ERRORS = (zipfile.BadZipFile, EOFError, ValueError, zlib.error, lzma.LZMAError, OSError)  # bz2: OSError

_METHODS_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks the others without a limit to memory
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}
"""Compression methods of zip members (APPNOTE.TXT 4.4.5): those that are read, and names of others."""

_REPACK = "pack the archive again with the method Deflate"

_END_BYTES = 22 + 20 + 56 + 0xFFFF  # longest end: the end record with its comment, the ZIP64 locator and end record


@dataclass(frozen=True, eq=False)
class InputFile:
    """One file of an input."""

    name: str
    """Within the input, for messages; a full path where there is no enclosing folder."""
    path: Path
    """On disk; for a member of an archive, the archive."""
    n_bytes: int
    archive: zipfile.ZipFile | None = None
    member: str = ""
    content: bytes | None = None
    """Of a member of a tar archive."""
    is_packed: bool = False
    """Whether the file is a gzip stream; `n_bytes` is then the size that it declares of its content."""

    @property
    def is_member(self) -> bool:
        """Whether it lies in an archive."""
        return self.archive is not None or self.content is not None

    def read(self) -> bytes:
        """All its bytes.

        Raises:
            CorruptInput: of another length than when it was listed, or its checksum in the archive does not match.
            UnsupportedInput: larger than `MAX_FILE_BYTES`, encrypted, or compressed by an unknown method.
        """
        self.require_readable_size()
        return self._of_listed_size(self.head(self.n_bytes + 1))

    def require_readable_size(self) -> None:
        """Raise `UnsupportedInput` if the file is larger than `MAX_FILE_BYTES`."""
        if self.n_bytes > MAX_FILE_BYTES:
            most = f"at most {MAX_FILE_BYTES} are read of one DICOM file"
            raise UnsupportedInput(f"{self.name} has {self.n_bytes} bytes; {most}")

    def head(self, n_bytes: int) -> bytes:
        """Its first `n_bytes` bytes, of a file of any size; else as `read`."""
        with self._opened() as handle:
            return handle.read(n_bytes)

    def read_if(self, is_wanted: Callable[[bytes], bool], n_head: int) -> bytes | None:
        """All its bytes, in one opening; None if `is_wanted` rejects the first `n_head`. Else as `read`."""
        if self.content is not None:
            return self.content if is_wanted(self.content[:n_head]) else None
        with self._opened() as handle:
            content = handle.read(n_head)
            if not is_wanted(content):
                return None
            self.require_readable_size()
            if len(content) == n_head:
                content += handle.read(self.n_bytes + 1 - n_head)
            return self._of_listed_size(content)

    def _of_listed_size(self, content: bytes) -> bytes:
        if len(content) != self.n_bytes:
            if self.is_packed:
                raise CorruptInput(f"{self.name} does not unpack to the {self.n_bytes} bytes it declares; unpack it")
            change = "grown beyond" if len(content) > self.n_bytes else "shrunk below"
            raise CorruptInput(f"{self.name} has {change} {self.n_bytes} bytes since it was listed; read it again")
        return content

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes] | gzip.GzipFile]:
        with machine_errors(self.path):
            if self.archive is None and not self.is_packed:
                with self.path.open("rb", buffering=0) if self.content is None else BytesIO(self.content) as handle:
                    yield handle
                return
            try:
                with gzip.open(self.path) if self.archive is None else self.archive.open(self._member()) as unpacked:
                    yield unpacked
            except RuntimeError as error:  # also of a decoder that this Python lacks
                fault = f"uses a feature of zip that is not supported ({error}); {_REPACK}"
                raise UnsupportedInput(f"{self.name} {fault}") from error
            except _UNPACKING_ERRORS as error:
                packed = "the archive" if self.archive else "it"
                raise CorruptInput(f"{self.name} cannot be unpacked ({error}); fetch {packed} again") from error

    def _member(self) -> zipfile.ZipInfo:
        assert self.archive is not None
        member = self.archive.getinfo(self.member)
        if member.flag_bits & 1:
            raise UnsupportedInput(f"{self.name} is encrypted; unpack the archive with its password")
        if member.compress_type not in _METHODS_READ:
            method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
            raise UnsupportedInput(f"{self.name} is compressed by {method}, not supported; {_REPACK}")
        return member


@contextmanager
def open_files(source: Path | Sequence[Path]) -> Iterator[tuple[InputFile, ...]]:
    """The files of a folder (recursively), archive, list (.txt) or file, or the given files, sorted by name.

    Raises:
        MissingInput: not found, or empty; a link or list entry without a file.
        CorruptInput: a damaged archive, one with impossible sizes, or one with two files of one name.
        UnsupportedInput: more than `MAX_FILES` files, or something other than a regular file.
        MachineError: the files cannot be listed.
    """
    know(*((source,) if isinstance(source, Path) else source))
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
            return
        with source.open("rb") as handle:
            head = handle.read(PACKED_HEAD_BYTES)
        inside = unpacked_head(head)
        if recognise(inside) is TAR:
            yield from _in_tar(source)
        elif zipfile.is_zipfile(source) or head.startswith(b"PK\x03\x04"):  # that of a truncated one
            yield from _in_archive(source, stack)
        elif source.name.lower().endswith(LIST_SUFFIX) and not head[PREAMBLE_BYTES:].startswith(MAGIC):
            yield from _in_list(source)
        else:
            yield _on_disk(source, str(source), is_packed=head.startswith(GZIP))


def _on_disk(path: Path, name: str, *, is_packed: bool | None = None) -> InputFile:
    """The file at `path`; by default a name in .gz, other than a volume's, may be that of a gzip stream."""
    with machine_errors(path):
        found = stat_of(path)
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise UnsupportedInput(f"{name} is {what}; expected a DICOM file; name the files themselves")
    ending = path.name.lower()
    if is_packed or (is_packed is None and ending.endswith(".gz") and not ending.endswith(".nii.gz")):
        return _packed(path, name, found.st_size)
    return InputFile(name, path, found.st_size)


def _packed(path: Path, name: str, n_packed: int) -> InputFile:
    """The gzip stream of `n_packed` bytes at `path`; not one: a file as it is."""
    with machine_errors(path), path.open("rb") as handle:
        is_packed = handle.read(len(GZIP)) == GZIP
        handle.seek(max(n_packed - 4, 0))
        n_bytes = int.from_bytes(handle.read(4), "little")  # modulo 2^32 (RFC 1952)
    if is_packed and n_bytes > MAX_DEFLATE_RATIO * n_packed:
        sizes = f"{n_bytes} bytes from {n_packed}, more than deflate can expand"
        raise CorruptInput(f"{name} declares {sizes}; fetch it again")
    return InputFile(name, path, n_bytes if is_packed else n_packed, is_packed=is_packed)


def _in_folder(folder: Path) -> Iterator[InputFile]:
    n_files, walked = 0, {folder.resolve()}
    for parent, folders, found in os.walk(folder, onerror=_raise, followlinks=True):
        resolved = {Path(parent, name).resolve(): name for name in sorted(folders, reverse=True)}
        folders[:] = sorted(name for target, name in resolved.items() if target not in walked)
        walked |= resolved.keys()
        for name in sorted(found):
            n_files += 1
            _require_few(n_files, folder)
            path = Path(parent, name)
            yield _on_disk(path, known_file(path.relative_to(folder).as_posix(), path))


def _raise(error: OSError) -> None:
    raise error


def _require_few(n_files: int, source: Path) -> None:
    if n_files > MAX_FILES:
        remedy = "name the study's own folder, or use prepare-rsna for a data set"
        raise UnsupportedInput(f"{source} holds more than {MAX_FILES} files; expected one study; {remedy}")


def _in_tar(path: Path) -> Iterator[InputFile]:
    files: dict[str, InputFile] = {}
    for name, content in tar_members(path):
        if name in files:
            raise CorruptInput(f"{path} holds 2 files named {name}; expected one of each name; pack it again")
        _refuse_gzip(known_file(name), path)
        files[name] = InputFile(f"{path.name}:{name}", path, len(content), content=content)
        _require_few(len(files), path)
    yield from (files[name] for name in sorted(files))


def _refuse_gzip(name: str, path: Path) -> None:
    if name.lower().endswith(".dcm.gz"):
        raise UnsupportedInput(f"{path}: {name} is packed once more; unpack the archive and give the folder")


def _in_archive(path: Path, stack: ExitStack) -> Iterator[InputFile]:
    _require_few(_declared_members(path), path)  # before zipfile builds an object for each
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except NotImplementedError as error:
        raise UnsupportedInput(f"{path} uses a feature of zip that is not supported ({error}); {_REPACK}") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise CorruptInput(f"{path} is a damaged zip archive ({error}); fetch it again") from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    _require_few(len(members), path)
    counts = Counter(known_file(member.filename) for member in members)
    for member in sorted(members, key=lambda member: member.filename):
        _refuse_gzip(member.filename, path)
        if counts[member.filename] > 1:
            found = f"{counts[member.filename]} files named {member.filename}"
            raise CorruptInput(f"{path} holds {found}; expected one of each name; pack it again")
        if member.file_size > MAX_DEFLATE_RATIO * max(member.compress_size, 1):
            sizes = f"{member.file_size} bytes from {member.compress_size}, more than deflate can expand"
            raise CorruptInput(f"{path}: {member.filename} declares {sizes}; fetch it again")
        yield InputFile(f"{path.name}:{member.filename}", path, member.file_size, archive, member.filename)


def _declared_members(path: Path) -> int:
    """Number of members in the archive's end record; 0 if it has none (APPNOTE.TXT 4.3.14 and 4.3.16)."""
    with path.open("rb") as handle:
        handle.seek(-min(path.stat().st_size, _END_BYTES), os.SEEK_END)
        end = handle.read()
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) < at + 12:
        return 0
    n_members = int.from_bytes(end[at + 10 : at + 12], "little")
    at = end.rfind(b"PK\x06\x06", 0, at) if n_members == 0xFFFF else -1
    return n_members if at < 0 else int.from_bytes(end[at + 32 : at + 40], "little")


def _in_list(path: Path) -> Iterator[InputFile]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UnsupportedInput(f"{path} is not a list of files in UTF-8; expected one path a line") from error
    entries = [entry for line in lines if (entry := _COMMENT.split(line, maxsplit=1)[0].strip())]
    _require_few(len(entries), path)
    for entry in entries:
        found = Path(entry)
        with suppress(RuntimeError):  # no such user: the name just begins with ~
            found = found.expanduser()
        yield _on_disk(path.parent / found, known_file(entry, path.parent / found))


def is_header_index(path: Path) -> bool:
    """Whether `path` is a file named as a header index; a folder of that name is a folder."""
    return path.name.lower().endswith(INDEX_SUFFIX) and path.is_file()


def files_of_series(path: Path, series_uid: str | None) -> list[Path]:
    """The files of a series in the header index at `path`; relative ones are resolved against the index's folder."""
    import pyarrow as pa
    from pyarrow import dataset

    if series_uid is None:
        raise UsageError(f"{path} is a header index of many series; name one with --series UID")
    uids = [series_uid, STACK_NUMBER.sub("", series_uid)]
    is_of_series = dataset.field("series_uid").isin(uids)
    try:
        with machine_errors(path):
            index = dataset.dataset(path, format="parquet")
            for kind in (index.schema.field(name).type for name in ("series_uid", "file")):
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise TypeError(kind)
            scanner = index.scanner(columns=["file"], filter=is_of_series, batch_size=_INDEX_BATCH_ROWS)
            listed = scanner.head(MAX_FILES + 1)["file"].to_pylist()
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:  # ValueError: also text that is not UTF-8
        fault = f"is not a header index ({type(error).__name__})"
        raise CorruptInput(f"{path} {fault}; create it again with prepare-rsna") from error
    if len(listed) > MAX_FILES:
        found = f"more than {MAX_FILES} images of series {series_uid}"
        raise UnsupportedInput(f"{path} has {found}; no series is that long; create it again with prepare-rsna")
    files = dict.fromkeys(filter(None, listed))
    if not files:
        raise MissingInput(f"{path} has no series {series_uid}; check the UID, or create the index again")
    return [path.parent / name for name in files]
