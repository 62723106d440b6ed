"""The weights at their place: from the first source that has them, verified, then renamed; one process at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meddinov3_stroke.download.sources import Limits, Offer, Source, SourceFailed, refuse_impostor
from meddinov3_stroke.errors import DownloadError, LockTimeout, UsageError, WeightsMismatch
from meddinov3_stroke.system.atomic import commit, storage_error, write_json
from meddinov3_stroke.system.contents import HEAD_BYTES
from meddinov3_stroke.system.digest import sha256_of_file
from meddinov3_stroke.system.progress import byte_bar
from meddinov3_stroke.system.provenance import provenance

if TYPE_CHECKING:
    import filelock

LOGGER = logging.getLogger("meddinov3_stroke")
LICENCE = (
    "MedDINOv3 weights: the authors' repository states Apache-2.0 and includes DINOv3 code of Meta, whose DINOv3 "
    "License also binds derivative works. This project neither owns nor redistributes the weights; by downloading "
    "them you accept their terms (https://github.com/ricklisz/MedDINOv3, "
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license)."
)
_JOURNAL = "verified.json"
_REPLACE = "the file was left as it was; move it away, or replace it with meddinov3-stroke download --force"


@dataclass(frozen=True)
class Download:
    """A verified file."""

    path: Path
    sha256: str
    source: str
    """Name of the source, or `already there`."""
    origin: str
    """What the digest was compared with: pinned, recorded, stated by Hugging Face, first use or found on disk."""
    fetched: bool
    """Whether this call fetched it."""


@dataclass(frozen=True)
class _Expected:
    sha256: str
    origin: str


def download_weights(
    path: Path,
    sources: Sequence[Source],
    *,
    pinned: str | None = None,
    force: bool = False,
    limits: Limits | None = None,
    progress: bool = False,
) -> Download:
    """The verified file at `path`: the one that is there, else a new one from the first source that has it.

    `pinned` is the sha256 it must have; without one, that of the first download is recorded and required from then on.
    `force` replaces the file and its record once the new file is complete.

    Raises:
        DownloadError: no source gave the file; the message lists each with its reason.
        WeightsMismatch: the file that is there is not the expected one; it is left unchanged.
        LockTimeout: another process has been downloading the same file for too long.
        StorageError: the folder cannot be written, or the disk is full.
    """
    if path.is_dir():
        raise UsageError(f"--output {path}: found a folder, expected a file's path; name the file in it")
    limits = limits or Limits()
    try:
        expected = _expected_digest(path, pinned, force)
        if expected and not force and path.is_file() and sha256_of_file(path) == expected.sha256:
            return Download(path, expected.sha256, "already there", expected.origin, fetched=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, limits):
            _finish_interrupted(path)
            expected = _expected_digest(path, pinned, force)
            if path.exists() and not force:
                return _accept(path, expected, limits)
            return _first_that_works(path, sources, expected, limits, progress)
    except OSError as error:
        raise storage_error(path, error) from error


def remote_offers(sources: Sequence[Source], limits: Limits | None = None) -> list[Offer]:
    """What each source says of its file; nothing is kept.

    Raises:
        DownloadError: no source is configured, or none has the weights.
    """
    offers = []
    for source in sources:
        try:
            if source.skipped:
                raise SourceFailed(source.skipped)
            offers.append(source.offer(limits or Limits()))
        except SourceFailed as failure:
            offers.append(Offer(source, problem=str(failure)))
    if all(offer.problem for offer in offers):
        raise _no_source_left([f"{offer.source}: {offer.problem}" for offer in offers])
    return offers


def record_path(path: Path) -> Path:
    """Where the digest of `path` is recorded."""
    return path.with_name(f"{path.name}.sha256.json")


def parse_sha256(text: str, where: str) -> str:
    """`text` as a lower-case hex sha256; `where` names the flag or key it came from.

    Raises:
        UsageError: it is not a sha256.
    """
    digest = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"{where}: found {text!r}, expected a sha256 of 64 hex digits; correct or remove it")
    return digest


def _expected_digest(path: Path, pinned: str | None, force: bool) -> _Expected | None:
    if pinned or force:
        return _Expected(pinned, "pinned") if pinned else None
    record = record_path(path)
    try:
        sha256 = parse_sha256(json.loads(record.read_bytes())["sha256"], str(record))
        return _Expected(sha256, f"recorded in {record.name}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise WeightsMismatch(
            f"{record} cannot be read; expected the sha256 of {path.name}; delete it to trust {path.name} again"
        ) from error


def _accept(path: Path, expected: _Expected | None, limits: Limits) -> Download:
    """The file that is there, if it has the expected digest; on first use its digest is recorded."""
    digest = sha256_of_file(path)
    if expected is None:
        try:
            _check_weights(path, limits)
        except SourceFailed as failure:
            raise WeightsMismatch(f"{path}: {failure}, expected weights; {_REPLACE}") from failure
        expected = _Expected(digest, "found on disk")
        LOGGER.warning("%s: no digest to compare it with; its sha256 %s is recorded and required now", path, digest)
        _write_record(path, digest, "already there", expected.origin)
    if digest != expected.sha256:
        raise WeightsMismatch(
            f"{path}: found sha256 {digest}, expected {expected.sha256} ({expected.origin}); {_REPLACE}"
        )
    return Download(path, digest, "already there", expected.origin, fetched=False)


def _write_record(path: Path, sha256: str, source: str, origin: str) -> None:
    document = {"file": path.name, "sha256": sha256, "size": path.stat().st_size, "source": source, "origin": origin}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(record_path(path), provenance() | document | {"date": date})


def _lock(path: Path, limits: Limits) -> filelock.AcquireReturnProxy[filelock.FileLock]:
    import filelock

    lock = filelock.FileLock(f"{path}.lock", timeout=limits.lock_wait_s)
    try:
        return lock.acquire()
    except filelock.Timeout as error:
        raise LockTimeout(
            f"{lock.lock_file}: held by another process for more than {limits.lock_wait_s:g} s; wait for its download, "
            "or stop it, and run again"
        ) from error


def _staging(path: Path) -> Path:
    """Folder of an unfinished download of `path`."""
    return path.with_name(f"{path.name}.download")


def _first_that_works(
    path: Path, sources: Sequence[Source], expected: _Expected | None, limits: Limits, progress: bool
) -> Download:
    reasons = []
    for source in sources:
        try:
            if source.skipped:
                raise SourceFailed(source.skipped)
            return _from_source(path, source, expected, limits, progress)
        except SourceFailed as failure:
            reasons.append(f"{source}: {failure}")
            LOGGER.warning("%s: %s", source, failure)
    if not any(_staging(path).glob("file*")):  # no bytes to resume from
        shutil.rmtree(_staging(path), ignore_errors=True)
    raise _no_source_left(reasons, path)


def _from_source(path: Path, source: Source, expected: _Expected | None, limits: Limits, progress: bool) -> Download:
    """The new file: fetched, verified, named in a journal, renamed, recorded; a kill at any point loses nothing."""
    folder = _staging(path)
    resumed = folder.exists()
    folder.mkdir(exist_ok=True)
    with byte_bar(f"weights from {source.name}", progress) as report:
        found, stated = source.fetch(folder, limits, expected.sha256 if expected else None, report)
    wanted = expected or (_Expected(stated, "stated by Hugging Face") if stated else None)
    try:
        if not (expected and expected.origin == "pinned"):
            _check_weights(found, limits)
        digest = sha256_of_file(found)
        if wanted and digest != wanted.sha256:
            raise SourceFailed(f"it gave sha256 {digest}, expected {wanted.sha256} ({wanted.origin})")
    except SourceFailed as failure:
        shutil.rmtree(folder)
        if not resumed:
            raise
        LOGGER.warning("%s: %s; starting over without the bytes of an earlier run", source, failure)
        return _from_source(path, source, expected, limits, progress)
    origin = wanted.origin if wanted else "first use"
    write_json(folder / _JOURNAL, {"sha256": digest, "source": str(source), "origin": origin})
    with found.open("rb+") as handle:
        os.fsync(handle.fileno())
    commit(found, path)
    _finish_interrupted(path)
    return Download(path, digest, source.name, origin, fetched=True)


def _finish_interrupted(path: Path) -> None:
    """Record the digest of a file that was just renamed into place, also by a process that was killed right after."""
    folder = _staging(path)
    try:
        journal = json.loads((folder / _JOURNAL).read_bytes())
    except (FileNotFoundError, ValueError):
        return
    if path.is_file() and sha256_of_file(path) == journal["sha256"]:
        _write_record(path, journal["sha256"], journal["source"], journal["origin"])
        shutil.rmtree(folder)
    else:  # killed before the rename: the next run verifies what was fetched
        (folder / _JOURNAL).unlink()


def _check_weights(path: Path, limits: Limits) -> None:
    """Refuse a file that is not weights, is too small for them, or is truncated as far as its format shows."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    refuse_impostor(head)
    if (size := path.stat().st_size) < limits.least_bytes:
        raise SourceFailed(f"too small for the weights: found {size} bytes, expected at least {limits.least_bytes}")
    try:
        if head.startswith(b"PK"):
            zipfile.ZipFile(path).close()  # reads the directory at the end of the file
        elif head[8:9] == b"{":
            with safe_open(path, "np"):  # compares the size with the header
                pass
    except (zipfile.BadZipFile, SafetensorError, ValueError, EOFError, NotImplementedError) as error:
        raise SourceFailed(f"truncated or damaged: {error}") from error


def _no_source_left(reasons: Sequence[str], path: Path | None = None) -> DownloadError:
    if not reasons:
        return DownloadError(
            "no source of weights is configured; expected at least one of MEDDINOV3_URL, MEDDINOV3_HF_REPO, "
            "MEDDINOV3_GDRIVE_FILE_ID; set it in .env"
        )
    kept = f"{path} was left as it was; " if path and path.exists() else ""
    return DownloadError(
        f"no source gave the weights; tried {'; '.join(reasons)}; {kept}check the network and the sources in .env and "
        "run again, or fetch the file by other means and pass it with --from-file"
    )
