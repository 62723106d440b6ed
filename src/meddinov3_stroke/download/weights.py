"""The weights at their place: from the first source that has them, verified, then renamed; one process at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meddinov3_stroke.download.sources import Limits, Offer, Source, SourceFailed, fetch, refuse_impostor, remote_offer
from meddinov3_stroke.errors import DownloadError, LockTimeout, UsageError, WeightsMismatch
from meddinov3_stroke.system.atomic import commit, storage_error, write_json
from meddinov3_stroke.system.digest import HEAD_BYTES, sha256_of_file
from meddinov3_stroke.system.progress import byte_bar
from meddinov3_stroke.system.provenance import provenance

LOGGER = logging.getLogger("meddinov3_stroke")
LICENCE = (
    "MedDINOv3 weights: the authors' repository states Apache-2.0 and includes DINOv3 code of Meta, whose DINOv3 "
    "License also binds derivative works. This project neither owns nor redistributes the weights; by downloading "
    "them you accept their terms (https://github.com/ricklisz/MedDINOv3, "
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license)."
)
_REPLACE = "the file was left as it was; move it away, or replace it with meddinov3-stroke download --force"


@dataclass(frozen=True)
class Download:
    """A verified file."""

    path: Path
    sha256: str
    origin: str
    """What the digest was compared with: pinned, recorded, stated by Hugging Face, first use or found on disk."""
    source: str = "already there"
    """Name of the source, or `already there`."""

    @property
    def fetched(self) -> bool:
        """Whether this call fetched it."""
        return self.source != "already there"


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
        sha256, origin = _expected_digest(path, pinned, force)
        if sha256 and not force and path.is_file() and sha256_of_file(path) == sha256:
            return Download(path, sha256, origin)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, limits.lock_wait_s):
            _finish_interrupted(path)
            sha256, origin = _expected_digest(path, pinned, force)
            if path.exists() and not force:
                return _accept(path, sha256, origin, limits)
            reasons = []
            for source in sources:
                try:
                    return _from_source(path, source, sha256, origin, limits, progress)
                except SourceFailed as failure:
                    reasons.append(f"{source}: {failure}")
                    LOGGER.warning("%s: %s", source, failure)
            if not any(_staging(path).glob("file*")):  # no bytes to resume from
                shutil.rmtree(_staging(path), ignore_errors=True)
            raise _no_source_left(reasons, f"{path} was left as it was; " if path.exists() else "")
    except OSError as error:
        raise storage_error(path, error) from error


def remote_offers(sources: Sequence[Source], limits: Limits | None = None) -> list[Offer]:
    """What each source says of its file; nothing is kept. Raises DownloadError if none has the weights."""
    offers = []
    for source in sources:
        try:
            offers.append(remote_offer(source, limits or Limits()))
        except SourceFailed as failure:
            offers.append(Offer(source, problem=str(failure)))
    if all(offer.problem for offer in offers):
        raise _no_source_left([f"{offer.source}: {offer.problem}" for offer in offers])
    return offers


def record_path(path: Path) -> Path:
    """Where the digest of `path` is recorded."""
    return path.with_name(f"{path.name}.sha256.json")


def parse_sha256(text: str, where: str) -> str:
    """`text` as a lower-case hex sha256; a UsageError names the flag or key `where` it came from."""
    digest = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"{where}: found {text!r}, expected a sha256 of 64 hex digits; correct or remove it")
    return digest


def _expected_digest(path: Path, pinned: str | None, force: bool) -> tuple[str | None, str]:
    if pinned or force:
        return (pinned, "pinned") if pinned else (None, "first use")
    record = record_path(path)
    try:
        text = str(json.loads(record.read_bytes())["sha256"])
        return parse_sha256(text, str(record)), f"recorded in {record.name}"
    except FileNotFoundError:
        return None, "first use"
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise WeightsMismatch(
            f"{record} cannot be read; expected the sha256 of {path.name}; delete it to trust {path.name} again"
        ) from error


def _accept(path: Path, sha256: str | None, origin: str, limits: Limits) -> Download:
    """The file that is there, if it has the expected digest; on first use its digest is recorded."""
    digest = sha256_of_file(path)
    if sha256 is None:
        try:
            _check_weights(path, limits)
        except SourceFailed as failure:
            raise WeightsMismatch(f"{path}: {failure}, expected weights; {_REPLACE}") from failure
        origin = "found on disk"
        LOGGER.warning("%s: no digest to compare it with; its sha256 %s is recorded and required now", path, digest)
        write_json(record_path(path), _record(path, path, digest, "already there", origin))
    elif digest != sha256:
        raise WeightsMismatch(f"{path}: found sha256 {digest}, expected {sha256} ({origin}); {_REPLACE}")
    return Download(path, digest, origin)


def _record(path: Path, file: Path, sha256: str, source: str, origin: str) -> dict[str, Any]:
    document = {"file": path.name, "sha256": sha256, "size": file.stat().st_size, "source": source, "origin": origin}
    return provenance() | document | {"date": datetime.now(UTC).isoformat(timespec="seconds")}


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    import filelock

    lock = f"{path}.lock"
    try:
        with filelock.FileLock(lock, timeout=wait_s):
            yield
    except filelock.Timeout as error:
        waited = f"held by another process for more than {wait_s:g} s"
        raise LockTimeout(f"{lock}: {waited}; wait for its download, or stop it, and run again") from error


def _staging(path: Path) -> Path:
    return path.with_name(f"{path.name}.download")


def _from_source(
    path: Path, source: Source, sha256: str | None, origin: str, limits: Limits, progress: bool
) -> Download:
    """The new file: fetched, verified, renamed, recorded; a kill at any point loses nothing."""
    folder = _staging(path)
    resumed = folder.exists()
    folder.mkdir(exist_ok=True)
    with byte_bar(f"weights from {source.name}", progress) as report:
        found, stated = fetch(source, folder, limits, sha256, report)
    wanted, basis = (stated, "stated by Hugging Face") if stated and not sha256 else (sha256, origin)
    try:
        if basis != "pinned":
            _check_weights(found, limits)
        digest = sha256_of_file(found)
        if wanted and digest != wanted:
            raise SourceFailed(f"it gave sha256 {digest}, expected {wanted} ({basis})")
    except SourceFailed as failure:
        shutil.rmtree(folder)
        if not resumed:
            raise
        LOGGER.warning("%s: %s; starting over without the bytes of an earlier run", source, failure)
        return _from_source(path, source, sha256, origin, limits, progress)
    write_json(folder / "record.json", _record(path, found, digest, str(source), basis))
    with found.open("rb+") as handle:
        os.fsync(handle.fileno())
    commit(found, path)
    _finish_interrupted(path)
    return Download(path, digest, basis, source.name)


def _finish_interrupted(path: Path) -> None:
    """Put the record of a file that was just renamed in place, also for a process that was killed right after."""
    record = _staging(path) / "record.json"
    if not record.exists():
        return
    if path.is_file() and sha256_of_file(path) == json.loads(record.read_bytes())["sha256"]:
        commit(record, record_path(path))
        shutil.rmtree(_staging(path))
    else:  # killed before the rename: the next run verifies what was fetched
        record.unlink()


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


def _no_source_left(reasons: Sequence[str], kept: str = "") -> DownloadError:
    tried = "; ".join(reasons) or "none: set one of MEDDINOV3_URL, MEDDINOV3_HF_REPO, MEDDINOV3_GDRIVE_FILE_ID"
    return DownloadError(
        f"no source gave the weights; tried {tried}; {kept}check the network and the sources in .env and "
        "run again, or fetch the file by other means and pass it with --from-file"
    )
