"""The cache of embeddings: a content-addressed folder, one file an entry, its own digest inside, verified when read.

A file is `MAGIC`, the sha256 of the rest, and a safetensors payload whose metadata hold the key and the entry's JSON.
Writers need no lock: an entry is renamed into place whole, and equal keys mean equal content. `features.compacted`
moves entries into Parquet shards; a store reads both forms.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as payload_of

from meddinov3_stroke.errors import NonFiniteEmbedding, StorageError, UsageError
from meddinov3_stroke.system.atomic import is_url, located, read_bytes, write_bytes
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.types import BackboneIdentity, SliceEmbeddings, SliceImage, SliceSelection, VolumeSource
from meddinov3_stroke.views import View

if TYPE_CHECKING:
    from meddinov3_stroke.features.compacted import Compacted

LOGGER = logging.getLogger("meddinov3_stroke")

MAGIC = b"MDSEMB1\n"  # first bytes of an entry; the digit is the version of this layout
SUFFIX = ".emb"
COMPACTED, COMPACTED_INDEX = "compacted", "index.parquet"  # folder of shards, and what lies in them
CORRUPT_SUFFIX = ".corrupt"  # appended to the name of an entry whose digest fails, which is kept for inspection

KEY_SCHEMA = 3
"""Raised when the same inputs would be stored as something else; old entries then miss and are never reused."""

ENTRY_SCHEMA = 3  # version of an entry's metadata; 2 added the images of the slices, 3 the scope

CLS_VIEW = "cls"  # the class token after the final norm of each chosen slice, at `resize`, without windowing


def embedding_key(
    source_sha256: str, backbone: BackboneIdentity, resize: int, selection: SliceSelection, view: str = CLS_VIEW
) -> str:
    """Hex sha256 over the input's bytes, the backbone, side, slices and view.

    The backbone is its weights, preprocessing, engine, precision and int8 calibration. Its display name, the file's
    name and the batch size stay out. `view` is `View.key`.
    """
    decisive = asdict(backbone)
    del decisive["name"], decisive["tokens"]
    document = {"schema": KEY_SCHEMA, "source_sha256": source_sha256, "backbone": decisive, "resize": resize}
    return sha256_of_document(document | {"selection": asdict(selection), "view": view})


@dataclass(frozen=True, eq=False)
class Entry:
    """Arrays of one volume under one key, and their metadata (JSON). No path is stored: it may name a patient."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, embeddings: SliceEmbeddings, view: View | None = None, values: np.ndarray | None = None) -> Entry:
        """The entry that holds `embeddings`, or the `values` that another view takes of the same slices.

        Rows [n, width] float32 are the array `cls`; patches [n, patch, k] are `patches` (float16, or int8 codes in
        steps of the array `scale`).
        """
        source = asdict(embeddings.source)
        del source["path"]
        metadata: dict[str, Any] = {
            "schema": ENTRY_SCHEMA,
            "view": CLS_VIEW if view is None else view.name,
            "n_slices": embeddings.n_slices,
            "resize": embeddings.resize,
            "selection": asdict(embeddings.selection),
            "backbone": asdict(embeddings.backbone),
            "source": source,
            "warnings": list(embeddings.warnings),
            "scope": dict(embeddings.scope),
        }
        arrays = {"slice_indices": embeddings.slice_indices}
        if view is not None and view.basis is not None:
            metadata["basis_sha256"], arrays["scale"] = view.basis.sha256, view.basis.scale
        name = "patches" if view is not None and view.on_patches else "cls"
        return cls(arrays | {name: embeddings.cls if values is None else values}, metadata)

    @property
    def values(self) -> np.ndarray:
        """What the view takes of the slices: [n, width], or [n, patch, k]."""
        return self.arrays["patches" if "patches" in self.arrays else "cls"]

    def embeddings(self, path: Path, backbone: BackboneIdentity) -> SliceEmbeddings:
        """The embeddings this entry holds, for the file at `path`, under the name the backbone has now."""
        facts = self.metadata
        images = tuple(SliceImage(**image) for image in facts["source"].get("images", ()))
        return SliceEmbeddings(
            cls=self.arrays["cls"],
            slice_indices=self.arrays["slice_indices"],
            n_slices=int(facts["n_slices"]),
            resize=int(facts["resize"]),
            selection=SliceSelection(**facts["selection"]),
            backbone=backbone,
            source=VolumeSource(path=path, **{**facts["source"], "images": images}),
            warnings=tuple(facts["warnings"]),
            scope=facts.get("scope", {}),
        )


class EmbeddingStore:
    """Entries under `<folder>/<first two digits of the key>/<key>.emb`."""

    def __init__(self, folder: Path) -> None:
        self.folder = located(Path(folder))
        self._shards: tuple[int, Compacted] | None = None  # time of the index, and what it lists

    def path(self, key: str) -> Path:
        """The file of the entry of `key`, whether or not it exists; `UsageError` unless the key is a hex sha256."""
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise UsageError(f"embedding key {key!r}: expected 64 hexadecimal digits")
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def get(self, key: str, *, compacted: bool = True) -> Entry | None:
        """The entry, its digest checked, or None; of shards too, if `compacted`.

        A damaged entry is set aside with a warning and counts as None.
        """
        path = self.path(key)
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            return self._in_shards(key) if compacted else None
        except OSError as error:
            raise StorageError(
                f"cannot read {path}: {error.strerror or error}; check the disk and the permissions"
            ) from error
        try:
            return _decode(content, key)
        except ValueError as damage:
            _set_aside(path, str(damage))
            return None

    @cached_property
    def _has_no_shards(self) -> bool:
        from meddinov3_stroke.system.remote import listed

        if listed(self.folder / COMPACTED):
            raise UsageError(
                f"{self.folder} is compacted, and shards are read from a local folder only; copy it to one"
            )
        return True

    def _in_shards(self, key: str) -> Entry | None:
        if is_url(self.folder) and self._has_no_shards:
            return None
        try:
            changed = (self.folder / COMPACTED / COMPACTED_INDEX).stat().st_mtime_ns
        except OSError:
            return None
        from meddinov3_stroke.features.compacted import Compacted  # pyarrow is loaded for shards alone

        if self._shards is None or self._shards[0] != changed:
            if self._shards is None:
                LOGGER.warning("%s is compacted: class tokens in its shards are float16", self.folder)
            self._shards = changed, Compacted(self.folder)
        try:
            return self._shards[1].get(key)
        except ValueError as damage:
            LOGGER.warning("damaged cache entry %s: %s; computed again", key[:12], damage)
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Write the entry whole or not at all; `NonFiniteEmbedding` where an array holds NaN or infinity."""
        for name, array in entry.arrays.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise NonFiniteEmbedding(f"array {name!r} of entry {key[:12]} holds NaN or infinity; it was not stored")
        write_bytes(self.path(key), _encode(key, entry))


def _encode(key: str, entry: Entry) -> bytes:
    # One metadata value only: safetensors writes several in random order, and equal entries must be equal bytes.
    document = json.dumps({"key": key, "metadata": dict(entry.metadata)}, sort_keys=True, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in entry.arrays.items()}
    payload = payload_of(arrays, metadata={"entry": document})
    return MAGIC + hashlib.sha256(payload).digest() + payload


def header_of(path: Path) -> dict[str, Any] | None:
    """Metadata of the entry in a file, and shape and type of its arrays, unverified; None where they cannot be read."""
    with suppress(OSError, ValueError, KeyError), path.open("rb") as handle:
        handle.seek(len(MAGIC) + hashlib.sha256().digest_size)
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        return {**header, **json.loads(header.pop("__metadata__")["entry"])["metadata"]}
    return None


def _decode(content: bytes, key: str) -> Entry:
    # ValueError says why the bytes cannot be trusted
    start = len(MAGIC) + hashlib.sha256().digest_size
    payload = content[start:]
    if len(content) < start or not content.startswith(MAGIC):
        raise ValueError(f"{len(content)} bytes without the entry's first bytes")
    if hashlib.sha256(payload).digest() != content[len(MAGIC) : start]:
        raise ValueError("the content does not match its sha256")
    try:
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        document = json.loads(header["__metadata__"]["entry"])
        stored_key, entry = document["key"], Entry(arrays=tensors_of(payload), metadata=document["metadata"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"sound bytes of another layout ({error})") from error
    if stored_key != key:
        raise ValueError(f"it was written under the key {stored_key[:12]}")
    return entry


def _set_aside(path: Path, reason: str) -> None:
    if is_url(path):
        LOGGER.warning("damaged cache entry %s: %s; computed again, and replaced", path, reason)
        return
    aside = path.with_name(path.name + CORRUPT_SUFFIX)
    try:
        path.replace(aside)
    except FileNotFoundError:
        return  # another process set it aside first
    except OSError as error:
        LOGGER.warning("damaged cache entry %s (%s) cannot be set aside: %s", path, reason, error.strerror)
        return
    LOGGER.warning("damaged cache entry %s: %s; set aside as %s, computed again", path, reason, aside.name)
