"""What a weights file holds, learned once by reading it and kept under the digest of its bytes."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.models.documents import read_document, write_document
from meddinov3_stroke.types import BackboneIdentity, Preprocessing

LOGGER = logging.getLogger("meddinov3_stroke")

FACTS_SCHEMA = 1
"""Raised when the same bytes would be described otherwise (another weights digest, say); older records then miss."""

LEAST_AUTO_COSINE = 0.9999
"""Least CLS cosine to the fp32 reference at which `auto` takes a lower precision."""


@dataclass(frozen=True)
class WeightsFacts:
    """The part of a backbone's identity that its weights alone decide."""

    weights_sha256: str
    """Digest of the canonical tensors."""
    embed_dim: int
    patch_size: int
    rope_dtype: str
    preprocessing: Preprocessing

    @classmethod
    def of(cls, identity: BackboneIdentity) -> WeightsFacts:
        """The facts an identity rests on."""
        return cls(**{field.name: getattr(identity, field.name) for field in fields(cls)})

    def identity(
        self, name: str, engine: str, precision: str, calibration_sha256: str | None = None
    ) -> BackboneIdentity:
        """The identity of these weights when they run so."""
        return BackboneIdentity(
            name=name,
            weights_sha256=self.weights_sha256,
            embed_dim=self.embed_dim,
            patch_size=self.patch_size,
            rope_dtype=self.rope_dtype,
            preprocessing=self.preprocessing,
            engine=engine,
            precision=precision,
            calibration_sha256=calibration_sha256,
        )


class WeightsRecords:
    """Facts and fidelity figures under `<folder>/records`; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "records" if folder is not None else None

    def facts(self, file_sha256: str) -> WeightsFacts | None:
        """What the file with this digest holds, where that is known."""
        document = self._read(f"{file_sha256}.json")
        if document is None or document.pop("schema", None) != FACTS_SCHEMA:
            return None
        return WeightsFacts(**document | {"preprocessing": Preprocessing(**document["preprocessing"])})

    def keep_facts(self, file_sha256: str, facts: WeightsFacts) -> None:
        """Record what the file with this digest holds."""
        self._write(f"{file_sha256}.json", {"schema": FACTS_SCHEMA, **asdict(facts)})

    def fidelity(self, weights_sha256: str, way: str) -> float | None:
        """Least cosine to the fp32 reference measured for these weights computed this `way`, where that is known."""
        document = self._read(f"fidelity-{weights_sha256[:16]}-{way}.json")
        return None if document is None else float(document["cls_cosine_min"])

    def keep_fidelity(self, weights_sha256: str, way: str, cls_cosine_min: float) -> None:
        """Record a measured fidelity."""
        document = {"weights_sha256": weights_sha256, "way": way, "cls_cosine_min": cls_cosine_min}
        self._write(f"fidelity-{weights_sha256[:16]}-{way}.json", document)

    def _read(self, name: str) -> dict[str, Any] | None:
        return None if self._folder is None else read_document(self._folder / name)

    def _write(self, name: str, document: dict[str, Any]) -> None:
        if self._folder is None:
            return
        try:
            write_document(self._folder / name, document)
        except StorageError as error:
            LOGGER.warning("%s; it will be worked out again next time", error)
