"""Slice embeddings as cache entries, and back. No path is stored: it may name a patient."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddinov3_stroke.features.store import Entry
from meddinov3_stroke.types import BackboneIdentity, SliceEmbeddings, SliceImage, SliceSelection, VolumeSource

ENTRY_SCHEMA = 2
"""Version of an entry's metadata; 2 added the study, the series and the image of each slice, which 1 did not know."""


def entry_of(embeddings: SliceEmbeddings, view: str) -> Entry:
    """The entry that holds `embeddings`."""
    source = asdict(embeddings.source)
    del source["path"]
    metadata: dict[str, Any] = {
        "schema": ENTRY_SCHEMA,
        "view": view,
        "n_slices": embeddings.n_slices,
        "resize": embeddings.resize,
        "selection": asdict(embeddings.selection),
        "backbone": asdict(embeddings.backbone),
        "source": source,
        "warnings": list(embeddings.warnings),
    }
    return Entry({"cls": embeddings.cls, "slice_indices": embeddings.slice_indices}, metadata)


def embeddings_of(entry: Entry, path: Path, backbone: BackboneIdentity) -> SliceEmbeddings:
    """The embeddings an entry holds, for the file at `path`; the backbone goes by the name it has now."""
    facts = entry.metadata
    return SliceEmbeddings(
        cls=entry.arrays["cls"],
        slice_indices=entry.arrays["slice_indices"],
        n_slices=int(facts["n_slices"]),
        resize=int(facts["resize"]),
        selection=SliceSelection(**facts["selection"]),
        backbone=backbone,
        source=_source(path, facts["source"]),
        warnings=tuple(facts["warnings"]),
    )


def _source(path: Path, facts: dict[str, Any]) -> VolumeSource:
    images = tuple(SliceImage(**image) for image in facts.get("images", ()))
    return VolumeSource(path=path, **{**facts, "images": images})
