"""Converted graphs of an engine, kept as files whose digests are checked before they are used.

Reading the graph OpenVINO made of a ViT-B/16 and compiling it takes about a second; tracing and converting it
anew takes eight. What is kept is the graph and not the compiled blob: importing the blob takes longer than compiling.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.models.documents import read_document, write_document
from meddinov3_stroke.system.atomic import atomic_file, storage_error
from meddinov3_stroke.system.digest import sha256_of_document, sha256_of_file

LOGGER = logging.getLogger("meddinov3_stroke")

GRAPH_SCHEMA = 1
"""Raised when the same weights would be converted to another graph."""

GRAPH_FILES = ("graph.xml", "graph.bin")
"""Structure and weights, as OpenVINO writes and reads them."""

MANIFEST = "manifest.json"
"""Holds the digests of `GRAPH_FILES`; written last, so that a folder without it is unfinished."""


def graph_key(weights_sha256: str, resize: int, view: str, engine_version: str) -> str:
    """The folder's name: a digest of all that decides a graph. Precision stays out, as compiling decides it."""
    decisive = {"schema": GRAPH_SCHEMA, "weights": weights_sha256, "resize": resize, "view": view}
    return f"{weights_sha256[:12]}-{resize}-{view}-" + sha256_of_document({**decisive, "engine": engine_version})[:12]


class GraphCache:
    """Graphs under `<folder>/graphs/<key>`; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "graphs" if folder is not None else None

    def find(self, key: str) -> Path | None:
        """The verified graph's .xml, its .bin beside it; None where there is none or, with a warning, a damaged one."""
        return None if self._folder is None else verified_graph(self._folder / key)

    def keep(self, key: str, save: Callable[[Path], None]) -> None:
        """Keep the graph that `save` writes as `graph.xml` and `graph.bin` at the .xml path it is given.

        A folder that cannot be written is said and gone without.
        """
        if self._folder is None:
            return
        try:
            write_graph(self._folder / key, save)
        except StorageError as error:
            LOGGER.warning("%s; the graph will be converted again next time", error)


def verified_graph(folder: Path) -> Path | None:
    """The .xml of the graph in `folder`, its files held against the manifest; None where there is no sound one."""
    manifest = read_document(folder / MANIFEST)
    if manifest is None:
        return None
    try:
        found = {name: sha256_of_file(folder / name) for name in GRAPH_FILES}
    except OSError as error:
        LOGGER.warning("the graph in %s cannot be read (%s); it is made anew", folder, error.strerror)
        return None
    if found != manifest["files"]:
        LOGGER.warning("the graph in %s does not match its digests; it is made anew", folder)
        return None
    return folder / GRAPH_FILES[0]


def graph_sha256(folder: Path) -> str | None:
    """Digest of the graph that the manifest in `folder` names; None where there is none."""
    manifest = read_document(folder / MANIFEST)
    return None if manifest is None else sha256_of_document(manifest["files"])


def write_graph(folder: Path, save: Callable[[Path], None]) -> str:
    """Digest of the graph that `save` wrote, once its files are in `folder` under one manifest.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"), tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
            save(Path(scratch) / GRAPH_FILES[0])
            for name in GRAPH_FILES:
                with (Path(scratch) / name).open("rb") as made, atomic_file(folder / name) as kept:
                    shutil.copyfileobj(made, kept)
            digests = {name: sha256_of_file(folder / name) for name in GRAPH_FILES}
            write_document(folder / MANIFEST, {"files": digests})
    except OSError as error:
        raise storage_error(folder, error) from error
    return sha256_of_document(digests)
