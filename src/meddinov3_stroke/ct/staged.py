"""Inputs that are copied to local disk before they are read: objects at a URL, and files on slow storage.

The next inputs are copied while one is read, bounded by number and bytes, and each copy is removed once it was read.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar
from weakref import finalize

from meddinov3_stroke.ct.contents import OpenedInput, is_nifti_name, machine_errors
from meddinov3_stroke.errors import CorruptInput, MedDINOError, MissingInput, StorageUnavailable, UnsupportedInput
from meddinov3_stroke.system.atomic import is_url, located
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.system.names import know
from meddinov3_stroke.system.remote import Stored, fetch, listed
from meddinov3_stroke.types import Volume, VolumeInput

COPIES_AHEAD = 4
BYTES_AHEAD = 4 * 2**30  # no further copy begins while those at hand take as much
MOST_OBJECTS = 50_000  # below one URL; a bucket named by mistake holds more

Open = Callable[[VolumeInput], OpenedInput]
Wanted = Callable[[OpenedInput, str | None], bool]  # whether an input, with its series, is going to be read
SourceT = TypeVar("SourceT")


class StagedInput(OpenedInput):
    """An input that is copied when its digest or volume is first asked for; messages name the original."""

    def __init__(self, source: VolumeInput, open_local: Open, folder: Path | None = None) -> None:
        know(source.path)
        self.path, self.join_series = source.path, source.join_series
        self._source, self._open_local, self._folder = source, open_local, folder
        self._remove: Callable[[], object] = lambda: None
        self._state_copied: tuple[str, float] | None = None  # of what was copied, while there is a copy

    @property
    def reader_version(self) -> int:
        """As of the input itself."""
        if is_nifti_name(self.path):
            return 0
        from meddinov3_stroke.ct.dicom.read import READER_VERSION

        return READER_VERSION

    @property
    def files(self) -> tuple[Path, ...]:
        """The original files, or the URLs of the objects."""
        return tuple(one.url for one in self._objects()) if is_url(self.path) else self._open_local(self._source).files

    def state(self) -> tuple[str, float] | None:
        """As of any input; of objects by URL, ETag and size, which are always settled."""
        if self._state_copied is not None:
            return self._state_copied
        if not is_url(self.path):
            return super().state()
        return sha256_of_document([(str(one.url), one.etag, one.size) for one in self._objects()]), 0.0

    @property
    def n_bytes(self) -> int:
        """Size of the copy."""
        if is_url(self.path):
            return sum(one.size for one in self._objects())
        with machine_errors(self.path):
            return sum(path.stat().st_size for path in self.files)

    @property
    def digest(self) -> str:
        """That of the copy."""
        with self._named():
            return self._copy.digest

    def volume(self) -> Volume:
        """That of the copy, under the original path."""
        with self._named():
            volume = self._copy.volume()
        return replace(volume, source=replace(volume.source, path=self.path))

    def prepare(self) -> None:
        """Make the copy now."""
        self._copy  # noqa: B018

    def close(self) -> None:
        """Remove the copy."""
        self._remove()
        self._state_copied = None
        self.__dict__.pop("_copy", None)

    def _objects(self) -> list[Stored]:
        found = listed(self.path, MOST_OBJECTS)
        if not found:
            raise MissingInput(f"{self.path}: no such object, and none below it; check the URL")
        if len(found) > MOST_OBJECTS:
            raise UnsupportedInput(
                f"{self.path} holds more than {MOST_OBJECTS} objects; expected one volume; name its own prefix"
            )
        return found

    @property
    def _local(self) -> Path:
        return self._place / (self.path.name if self.path.name not in ("", "..") else "input")

    @cached_property
    def _place(self) -> Path:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="meddinov3-", dir=self._folder))

    @cached_property
    def _copy(self) -> OpenedInput:
        with machine_errors(self.path), self._full_disk():
            self.__dict__.pop("_place", None)
            self._remove = finalize(self, shutil.rmtree, self._place, ignore_errors=True)
            state = self.state()
            if is_url(self.path):
                for one in self._objects():
                    fetch(one, self._local / one.url.relative_to(self.path))
            elif self.path.is_dir():
                shutil.copytree(self.path, self._local)
            else:
                shutil.copyfile(self.path, self._local)
            if state != self.state():
                raise CorruptInput(f"{self.path} changed while it was copied; run again")
            self._state_copied = state
        return self._open_local(replace(self._source, path=self._local))

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageUnavailable(
                f"{self.path} cannot be copied to {self._folder or tempfile.gettempdir()}: {error.strerror}; free "
                "space, or name another folder with --stage"
            ) from error

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except MedDINOError as error:
            if "_place" in self.__dict__:
                error.args = (str(error).replace(str(self._local), str(self.path)),)
            raise


_Waiting = tuple[SourceT, StagedInput | None, int, Future[None] | None]  # with the bytes of its copy, and its making


class Stage:
    """The copies of a run, in a folder, by default the system's for temporary files."""

    def __init__(self, folder: Path | None, open_local: Open, wanted: Wanted) -> None:
        self._folder, self._open_local, self._wanted = folder, open_local, wanted
        self._current: tuple[object, StagedInput | None] = (None, None)

    def open(self, source: object) -> OpenedInput | None:
        """The input that is copied; None for one that is read in place."""
        return self._current[1] if self._current[0] is source else self._staged(source)

    def ahead(self, sources: Iterable[SourceT]) -> Generator[SourceT, None, None]:
        """The sources, while copies of those that follow are made; a copy lasts until the next source is asked for."""
        queue: deque[_Waiting[SourceT]] = deque()
        rest = iter(sources)
        pool = ThreadPoolExecutor(2, thread_name_prefix="stage")
        try:
            while True:
                while len(queue) < COPIES_AHEAD and sum(one[2] for one in queue) < BYTES_AHEAD:
                    following = list(islice(rest, 1))
                    if not following:
                        break
                    queue.append((following[0], *self._begin(following[0], pool)))
                if not queue:
                    return
                source, staged, _, copying = queue[0]
                if copying is not None:
                    copying.exception()  # the reader meets it again
                self._current = source, staged
                yield source
                self._current = None, None
                queue.popleft()
                if staged is not None:
                    staged.close()
        finally:
            pool.shutdown(cancel_futures=True)
            for _, staged, _, _ in queue:
                if staged is not None:
                    staged.close()

    def _staged(self, source: object) -> StagedInput | None:
        """None for what is read in place: files named one by one, and lists and indices, whose files lie elsewhere."""
        if isinstance(source, str | Path):
            source = VolumeInput(located(Path(source)))
        if not isinstance(source, VolumeInput):
            return None
        is_remote, is_list = is_url(source.path), source.path.suffix.lower() in (".txt", ".parquet")
        if not is_remote and (self._folder is None or is_list or source.path.name.upper() == "DICOMDIR"):
            return None
        return StagedInput(source, self._open_local, self._folder)

    def _begin(self, source: object, pool: ThreadPoolExecutor) -> tuple[StagedInput | None, int, Future[None] | None]:
        staged = self._staged(source)
        try:
            if staged is not None and self._wanted(staged, getattr(source, "series_uid", None)):
                return staged, staged.n_bytes, pool.submit(staged.prepare)
        except MedDINOError:
            pass  # the reader meets it again
        return staged, 0, None
