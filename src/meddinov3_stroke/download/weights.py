"""Weights from the first source that gives them whole: locked, verified, then renamed into place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import httpx

from meddinov3_stroke.download.answers import make_client
from meddinov3_stroke.download.contents import refuse_stump
from meddinov3_stroke.download.failures import SourceFailed, no_source_left
from meddinov3_stroke.download.limits import Limits
from meddinov3_stroke.download.packages import Package
from meddinov3_stroke.download.part_file import PartFile, PartNote
from meddinov3_stroke.download.record import (
    FIRST_USE,
    FOUND,
    STATED,
    Expected,
    expected_digest,
    write_record,
)
from meddinov3_stroke.download.sources import Source
from meddinov3_stroke.download.transfer import Transfer
from meddinov3_stroke.errors import LockTimeout, UsageError, WeightsMismatch
from meddinov3_stroke.system.atomic import storage_error
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.progress import byte_bar

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True)
class Download:
    """A verified file."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    source: str
    """Name of the source, or `already there`."""
    origin: str
    """What the digest was held against: pinned, recorded, stated by Hugging Face, first use or found on disk."""
    fetched: bool
    """Whether this call transferred it."""


@dataclass(frozen=True, eq=False)
class _Job:
    """All that a download is told."""

    path: Path
    package: Package
    pinned: str | None
    force: bool
    limits: Limits
    progress: bool

    @property
    def expected(self) -> Expected | None:
        return expected_digest(self.path, self.pinned, ignore_record=self.force)


def download_weights(
    path: Path,
    sources: Sequence[Source],
    package: Package,
    *,
    pinned: str | None = None,
    force: bool = False,
    limits: Limits | None = None,
    progress: bool = False,
) -> Download:
    """The verified file at `path`: the one that is there, else a new one from the first source that gives it whole.

    `pinned` is the sha256 it must have; without one, that of the first download is recorded and held to. `force`
    replaces the file that is there, and its record, once the new one is whole.

    Raises:
        DownloadError: no source gave the file; the message lists each with its reason.
        WeightsMismatch: the file that is there is not the expected one; it is left as it is.
        LockTimeout: another process is downloading the same file for too long.
        StorageError: the folder cannot be written, or the disk is full.
    """
    if path.is_dir():
        raise UsageError(f"--output {path}: found a folder, expected a file's path; name the file in it")
    job = _Job(path, package, pinned, force, limits or Limits(), progress)
    try:
        if not force and (there := _trusted(job)):
            return there
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(job):
            _finish_interrupted(job)
            if path.exists() and not force:
                return _adopted(job)
            return _from_first_source(job, sources)
    except OSError as error:
        raise storage_error(path, error) from error


def _trusted(job: _Job) -> Download | None:
    """The file that is there, if its digest is the expected one; asks for no lock and writes nothing."""
    expected = job.expected
    if expected is None or not job.path.is_file():
        return None
    digest = sha256_of_file(job.path)
    return _already_there(job, expected) if digest == expected.sha256 else None


def _adopted(job: _Job) -> Download:
    """The file that is there, held against its digest or, on first use, recorded."""
    digest = sha256_of_file(job.path)
    expected = job.expected
    if expected is None:
        try:
            refuse_stump(job.path, job.package)
        except SourceFailed as failure:
            raise WeightsMismatch(
                f"{job.path}: found {failure}, expected {job.package.name} weights; the file was left as it is; "
                "move it away, or replace it with meddinov3-stroke download --force"
            ) from failure
        LOGGER.warning("%s: nothing to hold it against; its sha256 %s is recorded from now on", job.path, digest)
        expected = Expected(digest, FOUND)
        write_record(job.path, digest, "already there", FOUND)
    expected.check(digest, job.path)
    return _already_there(job, expected)


def _already_there(job: _Job, expected: Expected) -> Download:
    size = job.path.stat().st_size
    return Download(job.path, expected.sha256, size, "already there", expected.origin, fetched=False)


@contextmanager
def _locked(job: _Job) -> Iterator[None]:
    """Hold `<name>.lock`, so that of two processes one downloads and the other finds the file."""
    lock = filelock.FileLock(job.path.with_name(f"{job.path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        LOGGER.info("%s: another process is downloading it; waiting", job.path)
        try:
            lock.acquire(timeout=job.limits.lock_wait_s)
        except filelock.Timeout as error:
            raise LockTimeout(
                f"{lock.lock_file}: held by another process for more than {job.limits.lock_wait_s:g} s; wait for its "
                "download, or stop it, and run again"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _finish_interrupted(job: _Job) -> None:
    """Record the digest of a file that was renamed into place by a process that was killed right after."""
    part = PartFile(job.path)
    note = part.note()
    if note is None or note.verified_sha256 is None or note.origin is None:
        return
    if part.size:
        part.write_note(replace(note, verified_sha256=None, origin=None))
        return
    if job.path.is_file() and sha256_of_file(job.path) == note.verified_sha256:
        write_record(job.path, note.verified_sha256, note.source, note.origin)
    part.discard()


def _from_first_source(job: _Job, sources: Sequence[Source]) -> Download:
    reasons = []
    with make_client(job.limits) as client:
        for source in sources:
            try:
                if source.skipped:
                    raise SourceFailed(source.skipped)
                return _from_source(job, client, source)
            except SourceFailed as failure:
                reasons.append(f"{source}: {failure}")
                LOGGER.warning("%s: %s", source, failure)
    raise no_source_left(reasons, job.path)


def _from_source(job: _Job, client: httpx.Client, source: Source) -> Download:
    part = PartFile(job.path)
    resumed = part.resumable(source.key) is not None
    try:
        with byte_bar(f"{job.package.name} from {source.name}", job.progress) as report:
            note = Transfer(client, source, part, job.expected, job.limits, report).run()
        return _put_in_place(job, source, part, note)
    except SourceFailed as failure:
        if failure.spoiled:
            part.discard()
        if not (failure.spoiled and resumed):
            raise
        LOGGER.warning("%s: %s; starting again without the bytes of an earlier run", source, failure)
    return _from_source(job, client, source)


def _put_in_place(job: _Job, source: Source, part: PartFile, note: PartNote) -> Download:
    """Verify the part, journal its digest, rename it and record the digest: killed anywhere, the next run goes on."""
    expected = job.expected
    if expected is None and note.stated_sha256:
        expected = Expected(note.stated_sha256, STATED)
    if job.pinned is None:
        _refuse_stump(part, job.package)
    digest = sha256_of_file(part.path)
    if expected and digest != expected.sha256:
        raise SourceFailed(f"it gave sha256 {digest}, expected {expected.sha256} ({expected.origin})", spoiled=True)
    origin = expected.origin if expected else FIRST_USE
    part.write_note(replace(note, total=part.size, verified_sha256=digest, origin=origin))
    part.take_the_place()
    write_record(job.path, digest, str(source), origin)
    part.discard()
    return Download(job.path, digest, job.path.stat().st_size, source.name, origin, fetched=True)


def _refuse_stump(part: PartFile, package: Package) -> None:
    try:
        refuse_stump(part.path, package)
    except SourceFailed as failure:
        raise SourceFailed(str(failure), spoiled=True) from failure
