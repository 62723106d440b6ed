"""The record that an int8 graph has to show before it is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from meddinov3_stroke.errors import WeightsMismatch
from meddinov3_stroke.models.documents import read_document, write_document

LEAST_INT8_COSINE = 0.999
"""Least CLS cosine to fp32, on volumes that calibration did not see, at which int8 is used without being forced."""

CALIBRATION_SCHEMA = 1
"""Version of the record."""

RECORD_NAME = "calibration.json"
"""The record's name, beside the int8 graph."""


@dataclass(frozen=True)
class Calibration:
    """How an int8 graph was made and what it was measured to do, all on class tokens."""

    weights_sha256: str
    resize: int
    """Side in pixels; the graph takes no other."""
    graph_sha256: str
    """Digest of the quantized graph's two files."""
    cls_cosine_min: float
    """Least cosine to the fp32 reference over the slices that were held out."""
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
        """Whether int8 may be used without being forced."""
        return self.cls_cosine_min >= LEAST_INT8_COSINE


def calibration_folder(cache: Path, weights_sha256: str) -> Path:
    """Where the int8 graph of these weights lies with its record; a new calibration takes the place of the old."""
    return cache / "int8" / weights_sha256[:16]


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write the record; it comes last, after the graph it speaks of.

    Raises:
        StorageError: the file cannot be written.
    """
    write_document(folder / RECORD_NAME, {"schema": CALIBRATION_SCHEMA, **asdict(calibration)})


def read_calibration(folder: Path) -> Calibration | None:
    """The record in `folder`, None where there is none or a damaged one.

    Raises:
        WeightsMismatch: a record of another version.
    """
    document = read_document(folder / RECORD_NAME)
    if document is None:
        return None
    if document.pop("schema", None) != CALIBRATION_SCHEMA or document.keys() != {f.name for f in fields(Calibration)}:
        raise WeightsMismatch(f"{folder / RECORD_NAME} is of another version of this package; calibrate again")
    for name in ("calibration_inputs_sha256", "check_inputs_sha256"):
        document[name] = tuple(document[name])
    return Calibration(**document)
