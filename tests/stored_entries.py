"""What an embedding store holds on disk."""

from __future__ import annotations

from meddinov3_stroke.features import EmbeddingStore


def stored_keys(store: EmbeddingStore) -> list[str]:
    return [path.stem for path in sorted(store.folder.glob("??/*.emb"))]
