"""Which head saw which data: digests of training data in the checkpoint, and an append-only record of evaluations.

Figures on a test set mean less each time somebody looks at it, and nothing if the head was trained on its patients.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from meddinov3_stroke.config import user_config
from meddinov3_stroke.data.predictions import read_row_table
from meddinov3_stroke.errors import DatasetError, StorageError
from meddinov3_stroke.heads import HeadCheckpoint
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import append_line
from meddinov3_stroke.system.command import log_warnings
from meddinov3_stroke.system.digest import sha256_of_bytes
from meddinov3_stroke.types import HeadData

LOGGER = logging.getLogger("meddinov3_stroke")

RECORD_NAME = "exposure.jsonl"

Digests = Mapping[str, Int64[np.ndarray, " distinct"]]


def digests_of(
    groups: Sequence[str] | None = None,
    pixels: Sequence[str] | None = None,
    embeddings: Float32[np.ndarray, "n dim"] | None = None,
) -> dict[str, Int64[np.ndarray, " distinct"]]:
    """{patients, pixels, rows: sorted digests of 64 bits} of what is known: of patients (or studies), unless names are
    hidden, of the pixels of series, and of rows of embeddings, which are equal for equal pixels and backbones."""
    found: dict[str, Int64[np.ndarray, " distinct"]] = {}
    if groups is not None and not names.are_hidden():
        found["patients"] = _digests(_patient(group).encode() for group in groups if not group.startswith("row:"))
    if pixels is not None:
        found["pixels"] = _digests(map(str.encode, pixels))
    if embeddings is not None:
        found["rows"] = _digests(map(np.ndarray.tobytes, embeddings))
    return found


def _patient(group: str) -> str:
    # series tables write patient:P1 and study:S1, tables of predictions patient_id:P1 and study_uid:S1
    return re.sub("^(patient_id|patient):", "", re.sub("^study_uid:", "study:", group))


def _digests(contents: Iterable[bytes]) -> Int64[np.ndarray, " distinct"]:
    starts = b"".join(hashlib.sha256(one).digest()[:8] for one in contents)
    return np.unique(np.frombuffer(starts, dtype="<i8").astype(np.int64))


def digests_of_data(data: HeadData) -> dict[str, Int64[np.ndarray, " distinct"]]:
    """The digests of rows for training or testing."""
    return digests_of(data.groups, data.pixels, data.embeddings)


def read_groups(path: Path, embeddings: Path, n_rows: int) -> tuple[str, ...]:
    """The patient of each row of some embeddings, as of `read_row_table`; DatasetError if the table names none."""
    found = read_row_table(path, embeddings, n_rows)
    log_warnings(found.warnings)
    if found.groups is None:
        raise DatasetError(f"{path} has neither patient_id nor study_uid; add the column, or omit the table")
    return found.groups


def require_unseen(checkpoint: HeadCheckpoint, test: Digests, *, allow_seen: bool = False) -> list[str]:
    """Warnings about test data that the head was validated on.

    Raises DatasetError where it was trained on any, unless that is allowed; counts patients, pixels and rows.
    """
    shared: dict[str, str] = {}
    for split, seen in (checkpoint.seen or {}).items():
        both = {kind: np.intersect1d(test[kind], one).size for kind, one in seen.items() if kind in test}
        if counts := ", ".join(f"{n} of {len(test[kind])} {kind}" for kind, n in both.items() if n):
            shared[split] = counts
    found = [
        f"the head was {past} on {shared[split]} of this test set, so its figures are too good"
        for split, past in (("training", "trained"), ("validation", "validated"))
        if split in shared
    ]
    if "training" in shared and not allow_seen:
        raise DatasetError(
            f"{found[0]}; leave them out, test a head that was not trained on them, or pass --allow-seen if they are "
            "other patients of the same identifiers, or blank slices"
        )
    return found


def record_exposure(record: Path | None, test: Digests, head_sha256: str | None, command: str) -> dict[str, Any]:
    """{record, test_set, earlier_by_this_head, earlier_by_others, other_heads}, once this evaluation is recorded.

    `record` is by default the user's. Test sets are the same if their patients, pixels or rows are. A record that
    cannot be written is warned about.
    """
    path = record or user_config() / RECORD_NAME
    test_set = {kind: sha256_of_bytes(one.tobytes()) for kind, one in sorted(test.items()) if len(one)}
    earlier = [line for line in _lines(path) if any(line["test_set"].get(k) == v for k, v in test_set.items())]
    others = [line["head_sha256"] for line in earlier if head_sha256 is None or line["head_sha256"] != head_sha256]
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command}
    try:
        append_line(path, json.dumps({**line, "head_sha256": head_sha256, "test_set": test_set}))
    except StorageError as error:
        LOGGER.warning("this evaluation is not in the exposure record: %s", error)
    return {
        "record": str(path),
        "head_sha256": head_sha256,
        "test_set": test_set,
        "earlier_by_this_head": len(earlier) - len(others),
        "earlier_by_others": len(others),
        "other_heads": len(set(others)),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            lines.append({"head_sha256": line["head_sha256"], "test_set": dict(line["test_set"])})
        except (ValueError, TypeError, LookupError):
            LOGGER.warning("%s line %d is damaged and ignored", path, number)
    return lines
