"""What int8 does to class tokens, and to a head's AUROC, on volumes that calibration did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int8

from meddinov3_stroke.backbone import Backbone
from meddinov3_stroke.backbone.fidelity import cosines
from meddinov3_stroke.ct import read_volume
from meddinov3_stroke.errors import CheckpointError
from meddinov3_stroke.feature_extractor import FeatureExtractor
from meddinov3_stroke.features import pool_slices
from meddinov3_stroke.heads import HeadCheckpoint, predict_logits
from meddinov3_stroke.int8.volumes import CalibrationVolume
from meddinov3_stroke.metrics import auroc_report


@dataclass(frozen=True, eq=False)
class MeasuredVolume:
    """Class tokens of one volume, both ways."""

    reference: Float32[np.ndarray, "n dim"]
    int8: Float32[np.ndarray, "n dim"]
    source_sha256: str
    pixels_sha256: str
    labels: Int8[np.ndarray, " label"] | None

    @property
    def cosines(self) -> Float64[np.ndarray, " n"]:
        """Of each slice."""
        return cosines(self.int8, self.reference)


def measure(
    volumes: Sequence[CalibrationVolume],
    reference: Backbone,
    int8: Backbone,
    resize: int,
    batch: int,
    on_volume: Callable[[], None] = lambda: None,
) -> list[MeasuredVolume]:
    """Every slice of the volumes by both backbones; `on_volume` is called after each.

    Raises:
        InputError, OutOfScope: a volume that cannot be used.
        NonFiniteEmbedding: a backbone gave NaN.
    """
    measured = []
    for each in volumes:
        volume = read_volume(each.input)
        plain, quantized = (FeatureExtractor(one, resize, batch).embed(volume).cls for one in (reference, int8))
        source = volume.source
        measured.append(MeasuredVolume(plain, quantized, source.sha256, source.pixels_sha256, each.labels))
        on_volume()
    return measured


def auroc_change(head: HeadCheckpoint, measured: Sequence[MeasuredVolume]) -> dict[str, Any]:
    """Macro and per-class AUROC of the head on fp32 and on int8 tokens of the same volumes, and their difference.

    Raises:
        CheckpointError: the head does not say how its rows were pooled.
    """
    labels = np.stack([one.labels for one in measured if one.labels is not None])
    reports = {
        "fp32": auroc_report(labels, _probabilities(head, [one.reference for one in measured]), head.labels),
        "int8": auroc_report(labels, _probabilities(head, [one.int8 for one in measured]), head.labels),
    }
    macros = [report.macro for report in reports.values()]
    change = None if None in macros else macros[1] - macros[0]  # type: ignore[operator]
    return {
        **{name: {"macro": report.macro, "per_class": report.per_class} for name, report in reports.items()},
        "macro_change": change,
        "n_volumes": len(measured),
        "head_sha256": head.sha256,
    }


def _probabilities(
    head: HeadCheckpoint, tokens: Sequence[Float32[np.ndarray, "_ dim"]]
) -> Float64[np.ndarray, "volume label"]:
    mode = head.pool_mode
    if mode == "slice":  # the label of a series is the maximum over its slices
        return np.stack([predict_logits(head, cls).probabilities.max(axis=0) for cls in tokens])
    if mode not in ("mean", "max", "mean_max"):
        raise CheckpointError(f"the head says pool mode {mode!r}; expected slice, mean, max or mean_max; train it anew")
    return predict_logits(head, np.stack([pool_slices(cls, mode) for cls in tokens])).probabilities  # type: ignore[arg-type]
