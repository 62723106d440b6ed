"""The name of a cache entry: a digest of everything that decides its content, and of nothing else."""

from __future__ import annotations

from dataclasses import asdict

from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.types import BackboneIdentity, SliceSelection

KEY_SCHEMA = 2
"""Raised when the same inputs would be stored as something else; old entries then miss and are never reused."""

CLS_VIEW = "cls"
"""The class token after the final norm of each chosen slice, at `resize`, without windowing."""


def embedding_key(
    source_sha256: str,
    backbone: BackboneIdentity,
    resize: int,
    selection: SliceSelection,
    view: str = CLS_VIEW,
) -> str:
    """Hex sha256 over the input's bytes, the backbone, side, slices, view.

    The backbone is its weights, preprocessing, engine, precision and int8 calibration.

    The backbone's display name, the file's name and the batch size stay out. `view` leaves room for other things taken
    from the same volume: layers, windows, patch statistics.
    """
    decisive = asdict(backbone)
    del decisive["name"]
    return sha256_of_document(
        {
            "schema": KEY_SCHEMA,
            "source_sha256": source_sha256,
            "backbone": decisive,
            "resize": resize,
            "selection": asdict(selection),
            "view": view,
        }
    )
