"""Objects on s3:// and gs://, through fsspec: listed, fetched, and written whole or not at all.

A URL is a path whose first part is its scheme (`is_url` of `system.atomic`), so it travels wherever paths do. fsspec is
loaded at the first use of one.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import MachineError, MissingInput, StorageError, StorageUnavailable, UnsupportedInput
from meddinov3_stroke.system.atomic import UrlPath

LOGGER = logging.getLogger("meddinov3_stroke")

MODULES = {"s3:": "s3fs", "gs:": "gcsfs"}  # what fsspec needs for a scheme
CREDENTIALS = {
    "s3:": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL for other servers)",
    "gs:": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}


@dataclass(frozen=True)
class Stored:
    """An object at a URL."""

    url: Path
    etag: str  # changes with the content
    size: int


def filesystem(url: Path) -> Any:
    """fsspec's file system of a URL, which keeps no listings; MachineError without the extra."""
    scheme = url.parts[0]
    if find_spec("fsspec") is None or find_spec(MODULES[scheme]) is None:
        raise MachineError(f"{url}: {MODULES[scheme]} is not installed; pip install 'meddinov3-stroke[cloud]'")
    import fsspec

    return fsspec.filesystem(scheme[:-1], use_listings_cache=False)


@contextmanager
def remote_errors(url: Path) -> Iterator[None]:
    """What a storage service raises, as FileNotFoundError (no such object), StorageError (an object that may not be
    read or written) or StorageUnavailable (whatever else, which other objects would meet too)."""
    try:
        yield
    except (FileNotFoundError, MachineError):
        raise
    except Exception as error:
        kind, advice = type(error).__name__, "check the network and run again"
        is_denied = isinstance(error, PermissionError)
        if is_denied or "Credential" in kind or "Anonymous" in str(error):
            advice = CREDENTIALS[url.parts[0]]
        told = f"{url} cannot be used ({' '.join(str(error).split()) or kind}); {advice}"
        raise (StorageError if is_denied else StorageUnavailable)(told) from error


def listed(url: Path, most: int | None = None) -> list[Stored]:
    """The object at a URL, or those below it, by name; none if there is nothing. Stops early above `most`."""
    found: dict[str, Any] = {}
    with remote_errors(url), suppress(FileNotFoundError):  # of a bucket that does not exist
        found = {} if most is None else _first_above(filesystem(url), _name(url), most)
        found = found or filesystem(url).find(_name(url), detail=True)
    names = [name for name in sorted(found) if not name.endswith("/")]
    about = [(name, found[name], found[name].get("ETag") or found[name].get("etag") or "") for name in names]
    return [Stored(_located(url, name), str(etag), int(one["size"])) for name, one, etag in about]


def _first_above(system: Any, name: str, most: int) -> dict[str, Any]:
    # folder by folder, so that a bucket named by mistake is not listed to its end; none if they are at most `most`
    found: dict[str, Any] = {}
    for _, _, files in system.walk(name, detail=True):
        found |= {one["name"]: one for one in files.values()}
        if len(found) > most:
            return found
    return {}


def _located(url: Path, name: str) -> Path:
    """The URL of a listed object; UnsupportedInput for a name that a path would change or that leaves its folder."""
    found = UrlPath(f"{url.parts[0]}//{name}")
    if _name(found) != name or ".." in found.parts:
        raise UnsupportedInput(f"{url} holds an object named {name!r}; expected no empty, . or .. part; rename it")
    return found


def matching(pattern: Path) -> list[Path]:
    """The objects that match a pattern."""
    with remote_errors(pattern):
        found = sorted(filesystem(pattern).glob(_name(pattern)))
    return [_located(pattern, name) for name in found]


def read_object(url: Path) -> bytes:
    """The content of an object; FileNotFoundError if there is none."""
    with remote_errors(url):
        return bytes(filesystem(url).cat_file(_name(url)))


def write_object(url: Path, content: bytes | memoryview) -> None:
    """Write an object; it appears when its last byte has arrived."""
    try:
        with remote_errors(url):
            filesystem(url).pipe_file(_name(url), bytes(content))
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {url}: no such bucket; create {url.parts[1]}, or correct the URL") from error


def require_bucket(url: Path) -> None:
    """Raise StorageError unless objects can be written below a URL."""
    probe = url / f".probe.{secrets.token_hex(4)}"
    write_object(probe, b"")
    with remote_errors(url):
        filesystem(url).rm_file(_name(probe))


def fetch(one: Stored, path: Path) -> None:
    """Copy an object to a local file; StorageError unless every byte arrived."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with remote_errors(one.url):
            filesystem(one.url).get_file(_name(one.url), str(path))
    except FileNotFoundError as error:
        raise MissingInput(f"{one.url} is gone since it was listed; check the URL") from error
    if path.stat().st_size != one.size:
        raise StorageError(f"{one.url}: {path.stat().st_size} bytes arrived of {one.size}; run again")


def _name(url: Path) -> str:
    return "/".join(url.parts[1:])


@contextmanager
def local_folder_of(url: Path) -> Iterator[Path]:
    """A local folder with what lies below a URL; what the block changes in it is uploaded, however the block ends.

    Documents are fetched; other objects are empty files until the block writes them.
    Documents that sum up are uploaded last, and name the URL in the place of the folder.
    """
    require_bucket(url)
    name = tempfile.mkdtemp(prefix="meddinov3-")
    folder = Path(name)
    try:
        for one in listed(url):
            path = folder / one.url.relative_to(url)
            if path.suffix in _DOCUMENTS:
                fetch(one, path)
            else:  # that it is there is all that a run needs to know of it
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        before = _states(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        yield folder
    finally:
        changed = [path for path, state in _states(folder).items() if before.get(path) != state]
        try:
            for path in sorted(changed, key=lambda one: one.name.endswith("summary.json")):
                content = path.read_bytes()
                if path.suffix in _DOCUMENTS:
                    content = content.replace(name.encode(), str(url).encode())
                write_object(url / path.relative_to(folder), content)
        except BaseException:
            LOGGER.error("not everything was uploaded to %s; the results are kept in %s", url, folder)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        LOGGER.info("uploaded %d files to %s", len(changed), url)


_DOCUMENTS = (".json", ".jsonl", ".csv")  # ledgers, summaries, tables: what an earlier run is known by


def _states(folder: Path) -> dict[Path, tuple[int, int, int]]:
    stats = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats}
