"""What is remembered of a weights file: its identity, its fidelity in lower precisions, its int8 calibration.

Records are JSON documents that carry their own digest; a damaged one is ignored with a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from meddinov3_stroke.errors import StorageError, WeightsMismatch
from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.types import Preprocessing

LOGGER = logging.getLogger("meddinov3_stroke")

DIGEST_KEY = "sha256_of_document"
"""Key in a document for the digest of all its other keys."""

RECORD_SCHEMA = 2
"""Version of `WeightsRecord`; older records are ignored, and the weights read again."""

LEAST_AUTO_COSINE = 0.9999
"""Least CLS cosine to fp32 at which `auto` takes a lower precision."""

LEAST_INT8_COSINE = 0.999
"""Least CLS cosine to fp32, on volumes that calibration did not see, at which int8 needs no --accept-int8."""

CALIBRATION_SCHEMA = 1
"""Version of `Calibration`."""


@dataclass(frozen=True)
class WeightsRecord:
    """The part of a backbone's identity that its weights decide, and how well they keep lower precisions."""

    weights_sha256: str
    embed_dim: int
    patch_size: int
    rope_dtype: str
    preprocessing: Preprocessing
    fidelity: Mapping[str, float] = field(default_factory=dict)
    """Engine, version, precision and instructions -> least CLS cosine to fp32."""


@dataclass(frozen=True)
class Calibration:
    """How an int8 graph was made and how it performed, all on class tokens."""

    weights_sha256: str
    resize: int
    """Side in pixels; the graph takes no other."""
    graph_sha256: str
    """Digest of the quantized graph's two files."""
    cls_cosine_min: float
    """Least cosine to the fp32 reference over the held-out slices."""
    cls_cosine_mean: float
    n_calibration_volumes: int
    n_calibration_slices: int
    n_check_volumes: int
    n_check_slices: int
    calibration_inputs_sha256: tuple[str, ...]
    check_inputs_sha256: tuple[str, ...]
    settings: dict[str, str]
    """Versions and options of the quantizer."""
    auroc: dict[str, object] | None = None
    """Macro and per-class AUROC in fp32 and int8 on the held-out volumes; None without a head and labels."""

    @property
    def is_faithful(self) -> bool:
        """Whether int8 may be used without --accept-int8."""
        return self.cls_cosine_min >= LEAST_INT8_COSINE

    @property
    def statement(self) -> str:
        """What every output of the int8 backbone states."""
        measured = (
            f"int8 backbone: CLS cosine to fp32 at least {self.cls_cosine_min:.5f}, mean {self.cls_cosine_mean:.5f}, "
            f"on {self.n_check_slices} held-out slices"
        )
        accepted = f"; that is below {LEAST_INT8_COSINE} and was accepted with --accept-int8"
        return measured if self.is_faithful else measured + accepted


def read_record(folder: Path, file_sha256: str) -> WeightsRecord | None:
    """The record of the weights file with this digest; None without one of this version."""
    document = read_document(folder / "records" / f"{file_sha256}.json")
    if document is None or document.pop("schema", None) != RECORD_SCHEMA:
        return None
    return WeightsRecord(**document | {"preprocessing": Preprocessing(**document["preprocessing"])})


def write_record(folder: Path, file_sha256: str, record: WeightsRecord) -> None:
    """Keep the record of a weights file; a folder that cannot be written is reported and does no harm."""
    try:
        write_document(folder / "records" / f"{file_sha256}.json", {"schema": RECORD_SCHEMA, **asdict(record)})
    except StorageError as error:
        LOGGER.warning("%s; it will be measured again next time", error)


def calibration_folder(cache: Path, weights_sha256: str) -> Path:
    """The folder of the int8 graph of these weights and of its record."""
    return cache / "int8" / weights_sha256[:16]


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write the record; raises StorageError."""
    write_document(folder / "calibration.json", {"schema": CALIBRATION_SCHEMA, **asdict(calibration)})


def read_calibration(folder: Path) -> Calibration | None:
    """The record in `folder`; None if there is none or a damaged one; raises WeightsMismatch for another version."""
    document = read_document(folder / "calibration.json")
    if document is None:
        return None
    if document.pop("schema", None) != CALIBRATION_SCHEMA or document.keys() != {f.name for f in fields(Calibration)}:
        raise WeightsMismatch(f"{folder / 'calibration.json'} is of another version of this package; calibrate again")
    for name in ("calibration_inputs_sha256", "check_inputs_sha256"):
        document[name] = tuple(document[name])
    return Calibration(**document)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document with its digest, atomically; raises StorageError."""
    write_json(path, {**document, DIGEST_KEY: sha256_of_document(document)})


def read_document(path: Path) -> dict[str, Any] | None:
    """The document without its digest; None if there is none or, with a warning, if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = content.pop(DIGEST_KEY)
        if stated == sha256_of_document(content):
            return dict(content)
        reason = "its digest does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    LOGGER.warning("%s is damaged or unreadable (%s); it is ignored", path, reason)
    return None
