"""A case as files (`summary.json`, picture, arrays) and on the terminal; the origin of embeddings, for summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meddinov3_stroke.explain import AID_NOTE, SIMILARITY_RANGE, WINDOW_CENTER, WINDOW_WIDTH, case_text, is_demo
from meddinov3_stroke.heads.applying import NO_HEAD
from meddinov3_stroke.system import names
from meddinov3_stroke.system.atomic import write_bytes, write_json, write_npy
from meddinov3_stroke.system.progress import console as results_console
from meddinov3_stroke.system.provenance import SUMMARY_NAME, ending, memory_statistics, provenance
from meddinov3_stroke.types import Calibrated, CaseFindings, SliceEmbeddings, TopSlice, VolumeSource

PICTURE = "similarity_map.png"
SLICE_PROBS = "slice_probs.npy"


def case_document(findings: CaseFindings) -> dict[str, Any]:
    """`summary.json` of a case: the findings, how they were made, and where everything came from."""
    thresholds = {label: threshold.value for label, threshold in findings.thresholds.items()}
    return {
        **provenance(),
        **origin_document(findings.embeddings, findings.device, findings.distribution),
        "num_slices": len(findings.embeddings.slice_indices),
        "head": dict(findings.head),
        "head_sha256": findings.head["sha256"],
        "seeds": {"head_training": findings.head["seed"]},
        "probabilities": dict(findings.probabilities),
        **_spread_document(findings),
        "thresholds": thresholds,
        "threshold": next(iter(thresholds.values())) if len(set(thresholds.values())) == 1 else None,
        "threshold_origins": {label: threshold.origin for label, threshold in findings.thresholds.items()},
        "decisions": dict(findings.decisions),
        "predicted": {label: int(decided) for label, decided in findings.decisions.items()},
        "case_rule": case_text(findings.head["applied_as"]),
        "decision_rule": f"true where the {_decides(findings)} is at or above the threshold",
        "operating_point": findings.operating_point,
        "calibrated_probabilities": {label: one.value for label, one in findings.calibrated.items()},
        "calibration": {label: _about_calibration(one) for label, one in findings.calibrated.items()},
        "classification": dict(findings.classification),
        "lesion_slice_index": findings.top_slices[0].slice_index,
        "top_slices": [_top_slice(rank, one) for rank, one in enumerate(findings.top_slices, start=1)],
        "ranking": findings.ranking,
        "reference_patch_rule": findings.reference_rule,
        "similarity": {
            **map_document("the reference patch of their slice", findings.similarity.shape[1:]),
            "slice_indices": [one.slice_index for one in findings.map_slices],
            "reference_patches": [one.reference_patch and list(one.reference_patch) for one in findings.map_slices],
        },
        "slice_probs": _about_slice_probs(findings),
        "timings": {name: round(seconds, 4) for name, seconds in findings.timings.items()},
        "elapsed_s": round(findings.elapsed_s, 4),
        "memory": memory_statistics(findings.device),
        "warnings": list(findings.warnings),
        "files": [PICTURE, *_arrays(findings), SUMMARY_NAME],
    }


def _decides(findings: CaseFindings) -> str:
    return "probability" if findings.operating_point is None else "calibrated probability (if null, the probability)"


def _about_calibration(one: Calibrated) -> dict[str, Any]:
    about = asdict(one)
    del about["value"]
    return about


def _spread_document(findings: CaseFindings) -> dict[str, Any]:
    """Of several heads: the range and the standard deviation of their probabilities, and the probabilities of each."""
    each = findings.probabilities_of_heads
    if not each:
        return {}
    spread = {
        label: {"min": low, "max": high, "sd": float(np.std([one[label] for one in each], ddof=1))}
        for label, (low, high) in findings.spread.items()
    }
    return {"spread": spread, "probabilities_of_heads": [dict(one) for one in each]}


def case_row(findings: CaseFindings) -> dict[str, Any]:
    """A case as columns of `results.csv`."""
    document = origin_document(findings.embeddings, findings.device, findings.distribution)
    spread = findings.spread.items()
    return {
        **{f"p_{label}": round(value, 6) for label, value in findings.probabilities.items()},
        **{f"p_{side}_{label}": round(ends[k], 6) for label, ends in spread for k, side in enumerate(("min", "max"))},
        **{f"positive_{label}": int(decided) for label, decided in findings.decisions.items()},
        **{f"p_calibrated_{label}": _rounded(one.value) for label, one in findings.calibrated.items()},
        **{f"classification_{label}": word for label, word in findings.classification.items()},
        **{name: None if verdict is None else int(verdict) for name, verdict in document["verdicts"].items()},
        "warnings": " | ".join(findings.warnings),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def save_case(findings: CaseFindings, folder: Path) -> dict[str, Path]:
    """Name -> path of the files written into `folder`, `summary.json` last, each whole or not at all.

    `slice_probs.npy` of an earlier case is removed where this one has none, so that the folder is of one case.
    """
    from meddinov3_stroke.report.pictures import case_picture

    arrays = _arrays(findings)
    if SLICE_PROBS not in arrays:
        (folder / SLICE_PROBS).unlink(missing_ok=True)
    write_bytes(folder / PICTURE, case_picture(findings))
    for name, array in arrays.items():
        write_npy(folder / name, array)
    write_json(folder / SUMMARY_NAME, case_document(findings))
    return {name: folder / name for name in (PICTURE, *arrays, SUMMARY_NAME)}


def _arrays(findings: CaseFindings) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "similarity_map.npy": findings.similarity,
        "slice_embeddings.npy": findings.embeddings.cls,
        "volume_embedding.npy": findings.volume_embedding,
        "slice_indices.npy": findings.embeddings.slice_indices,
    }
    if findings.slice_probabilities is not None:
        arrays[SLICE_PROBS] = findings.slice_probabilities.astype(np.float32)
    return arrays


def _top_slice(rank: int, one: TopSlice) -> dict[str, Any]:
    document = {"rank": rank, **asdict(one), "p_any": one.probabilities.get("any")}
    document |= document.pop("image") or dict.fromkeys(("sop_instance_uid", "frame_number", "instance_number"))
    document["position_mm"] = list(one.position_mm)
    document["reference_patch"] = one.reference_patch and list(one.reference_patch)
    return document


def _about_slice_probs(findings: CaseFindings) -> Mapping[str, Any]:
    about: dict[str, Any] = {"file": SLICE_PROBS, "labels": list(findings.probabilities)}
    if findings.slice_probabilities is None:
        about = {"file": None, "reason": "the head's input is not a slice embedding (mean_max-pooled volumes)"}
    return about | {"slice_indices": findings.embeddings.slice_indices.tolist()}


def map_document(reference: str, grid: tuple[int, ...]) -> dict[str, Any]:
    """How a similarity map was made and how its picture is drawn."""
    return {
        "measure": f"cosine similarity of patch tokens to {reference}",
        "note": AID_NOTE,
        "grid": list(grid),
        "colour_range": list(SIMILARITY_RANGE),
        "window_hu": {"center": WINDOW_CENTER, "width": WINDOW_WIDTH},
    }


def origin_document(
    embeddings: SliceEmbeddings, device: str, distribution: Mapping[str, Any] = NO_HEAD
) -> dict[str, Any]:
    """Input, verdicts, slices, backbone, preprocessing, engine, precision and device."""
    backbone, source, figures = asdict(embeddings.backbone), embeddings.source, dict(distribution)
    in_distribution = figures.pop("in_distribution", None)
    return {
        "input": str(source.path),
        "input_format": source.format,
        "input_sha256": source.sha256,
        "pixels_sha256": source.pixels_sha256,
        "dicom": dicom_document(source),
        "verdicts": {"valid": True, "in_scope": embeddings.scope.get("in_scope"), "in_distribution": in_distribution},
        "scope": dict(embeddings.scope),
        "distribution": figures,
        "n_slices": embeddings.n_slices,
        "n_slices_embedded": len(embeddings.slice_indices),
        "embedding_dim": int(embeddings.cls.shape[1]),
        "selection": asdict(embeddings.selection),
        "resize": embeddings.resize,
        "backbone": backbone,
        "preprocessing_version": embeddings.backbone.preprocessing.version,
        **{name: backbone[name] for name in ("weights_sha256", "preprocessing", "engine", "precision")},
        "device": device,
    }


def dicom_document(source: VolumeSource) -> dict[str, Any] | None:
    """Study, series and the image of each canonical slice, to trace a finding back to it; None for NIfTI.

    `frame_numbers` (1-based) are given for a multi-frame object only.
    """
    if not source.images:
        return None
    frames = [image.frame_number for image in source.images]
    return {
        "study_instance_uid": source.study_instance_uid,
        "series_instance_uid": source.series_instance_uid,
        "sop_instance_uids": [image.sop_instance_uid for image in source.images],
        "instance_numbers": [image.instance_number for image in source.images],
        "frame_numbers": frames if any(frame is not None for frame in frames) else None,
    }


def print_case(findings: CaseFindings, files: Mapping[str, Path], console: Console | None = None) -> None:
    """Print a case on standard output, or on `console`: tables, files, warnings, and the answer in the last line."""
    console = console or results_console()
    for part in (_probabilities(findings), _top_slices(findings)):
        console.print(part)
    for text in (findings.ranking, AID_NOTE):
        console.print(text, markup=False)
    for path in files.values():
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    for warning in findings.warnings:
        style = "bold" if warning in findings.notices else None
        console.print(f"warning: {names.public(warning)}", style=style, markup=False)
    folder = Path(files[SUMMARY_NAME]).parent if SUMMARY_NAME in files else Path()
    console.print(answer(findings, folder), markup=False)


def answer(findings: CaseFindings, folder: Path) -> str:
    """The disclaimer and the answer: `any` (of a head without it, the highest label), threshold, decision, folder.

    At an operating point the probability is the calibrated one, if there is one."""
    found = deciding(findings)
    label = "any" if "any" in found else max(found, key=found.__getitem__)
    figures = found[label], findings.thresholds[label].value
    digits = 2 if len({f"{figure:.2f}" for figure in figures}) == 2 else 4
    probability, threshold = (f"{figure:.{digits}f}" for figure in figures)
    words = findings.classification
    decided = words[label]
    others = [name for name, word in words.items() if word == "positive" and decided != "positive"]
    text = f"{label} {probability} (threshold {threshold}) {decided}"
    if findings.spread:
        low, high = findings.spread[label]
        text += f", {len(findings.probabilities_of_heads)} heads {low:.{digits}f} to {high:.{digits}f}"
    text += f", but {' and '.join(others)} positive" if others else ""
    return ending(text, folder, len(findings.warnings), is_demo(findings.embeddings.backbone.name))


def deciding(findings: CaseFindings) -> dict[str, float]:
    """The probability of each label that its threshold is compared with."""
    after = {} if findings.operating_point is None else findings.calibrated
    known = {label: one.value for label, one in after.items() if one.value is not None}
    return {**findings.probabilities, **known}


def _calibrated_text(one: Calibrated) -> str:
    return "-" if one.value is None else f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"


def _table(title: str, *names: str, numbers: slice) -> Table:
    table = Table(*names, title=title, title_justify="left")
    for column in table.columns[numbers]:
        column.justify = "right"
    return table


def _probabilities(findings: CaseFindings) -> Table:
    spread = {label: f"{low:.4f} to {high:.4f}" for label, (low, high) in findings.spread.items()}
    is_calibrated = any(one.value is not None for one in findings.calibrated.values())
    extra = [*["range of the heads"][: len(spread)], *["calibrated (95 % interval)"][:is_calibrated]]
    names = ("label", "probability", *extra, "threshold", "decision")
    table = _table("Haemorrhage", *names, numbers=slice(1, len(names) - 1))
    for label, probability in findings.probabilities.items():
        words = [escape(label), f"{probability:.4f}", *[spread.get(label, "")][: len(spread)]]
        words += [_calibrated_text(findings.calibrated[label])] if is_calibrated else []
        words += [f"{findings.thresholds[label].value:.4f}", findings.classification[label]]
        table.add_row(*words, style="bold" if findings.decisions[label] else None)
    return table


def _top_slices(findings: CaseFindings) -> Table:
    is_numbered = any(one.instance_number is not None for one in findings.top_slices)
    names = ("slice", *["Instance Number"][:is_numbered], "score", "z in mm")
    table = _table("Suspicious slices", *names, "highest type", numbers=slice(len(names)))
    for one in findings.top_slices:
        types = {label: value for label, value in one.probabilities.items() if label != "any"}
        highest = max(types, key=types.__getitem__) if types else "-"
        named = f"{highest} {types[highest]:.4f}" if types else highest
        numbers = [str(one.slice_index), *[str(one.instance_number)][:is_numbered], f"{one.score:.4f}"]
        table.add_row(*numbers, f"{one.position_mm[2]:.1f}", escape(named))
    return table
