"""What is said of a case: `summary.json`, pictures and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from meddinov3_stroke.explain import REFERENCE_RULE, case_text
from meddinov3_stroke.report.origin import origin_document
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_npy
from meddinov3_stroke.system.provenance import memory_statistics, provenance
from meddinov3_stroke.types import CaseFindings, TopSlice

SUMMARY = "summary.json"
PICTURE = "similarity_map.png"
SIMILARITY = "similarity_map.npy"
SLICE_PROBS = "slice_probs.npy"


def case_document(findings: CaseFindings) -> dict[str, Any]:
    """`summary.json` of a case: what was found, how, and where everything came from."""
    from meddinov3_stroke.report import SIMILARITY_RANGE, WINDOW_CENTER, WINDOW_WIDTH  # matplotlib: a second

    return {
        **provenance(),
        **origin_document(findings.embeddings, findings.device),
        "head": dict(findings.head),
        "head_sha256": findings.head["sha256"],
        "seeds": {"head_training": findings.head["seed"]},
        "probabilities": dict(findings.probabilities),
        "thresholds": {label: threshold.value for label, threshold in findings.thresholds.items()},
        "threshold_origins": {label: threshold.origin for label, threshold in findings.thresholds.items()},
        "decisions": dict(findings.decisions),
        "case_rule": case_text(findings.head["applied_as"]),
        "decision_rule": "true where the probability is at or above the threshold",
        "top_slices": [_top_slice(one) for one in findings.top_slices],
        "ranking": findings.ranking,
        "reference_patch_rule": REFERENCE_RULE,
        "similarity": {
            "measure": "cosine similarity of patch tokens to the reference patch of their slice",
            "grid": list(findings.similarity.shape[1:]),
            "colour_range": list(SIMILARITY_RANGE),
            "window_hu": {"center": WINDOW_CENTER, "width": WINDOW_WIDTH},
        },
        "slice_probs": _about_slice_probs(findings),
        "timings": {name: round(seconds, 4) for name, seconds in findings.timings.items()},
        "elapsed_s": round(findings.elapsed_s, 4),
        "memory": memory_statistics(findings.device),
        "warnings": list(findings.warnings),
        "files": list(_writers(findings)),
    }


def save_case(findings: CaseFindings, folder: Path) -> dict[str, Path]:
    """Name -> path of the files written into `folder`, `summary.json` last, each whole or not at all.

    `slice_probs.npy` of an earlier case is removed where this one has none, so that the folder tells of one case.

    Raises:
        StorageError: the folder cannot be written.
    """
    writers = _writers(findings)
    if SLICE_PROBS not in writers:
        (folder / SLICE_PROBS).unlink(missing_ok=True)
    for name, write in writers.items():
        write(folder / name)
    return {name: folder / name for name in writers}


def _writers(findings: CaseFindings) -> dict[str, Callable[[Path], None]]:
    """Name of each file -> what writes it."""
    from meddinov3_stroke.report import case_picture

    writers: dict[str, Callable[[Path], None]] = {
        PICTURE: lambda path: write_bytes(path, case_picture(findings)),
        SIMILARITY: lambda path: write_npy(path, findings.similarity),
    }
    probabilities = findings.slice_probabilities
    if probabilities is not None:
        writers[SLICE_PROBS] = lambda path: write_npy(path, probabilities.astype(np.float32))
    return {**writers, SUMMARY: lambda path: write_json(path, case_document(findings))}


def _top_slice(one: TopSlice) -> dict[str, Any]:
    document = asdict(one)
    document |= document.pop("image") or {"sop_instance_uid": None, "frame_number": None}
    for name in ("position_mm", "reference_patch"):
        document[name] = None if document[name] is None else list(document[name])
    return document


def _about_slice_probs(findings: CaseFindings) -> Mapping[str, Any]:
    rows = findings.embeddings.slice_indices.tolist()
    if findings.slice_probabilities is None:
        reason = "the head's input is no slice embedding (mean_max-pooled volumes)"
        return {"file": None, "reason": reason, "slice_indices": rows}
    return {"file": SLICE_PROBS, "labels": list(findings.probabilities), "slice_indices": rows}
