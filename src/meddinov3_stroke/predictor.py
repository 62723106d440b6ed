"""From a path to what is found in one head CT; the model is loaded once and nothing of a case is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.ct import Source, read_volume, source_path
from meddinov3_stroke.errors import InputError, MedDINOError, OutOfScope, UsageError
from meddinov3_stroke.explain import (
    HeadInput,
    demo_warnings,
    head_rows,
    patch_similarity,
    rank,
    ranking_text,
    reference_patch,
    suspicion,
)
from meddinov3_stroke.feature_extractor import EVERY_SLICE, FeatureExtractor, naming, pool_slices
from meddinov3_stroke.heads import HeadCheckpoint, check_backbone, load_checkpoint, predict_logits
from meddinov3_stroke.options import case_name
from meddinov3_stroke.report import save_case
from meddinov3_stroke.system.atomic import write_json
from meddinov3_stroke.system.provenance import provenance
from meddinov3_stroke.system.statistics import Stopwatch
from meddinov3_stroke.types import (
    CaseFindings,
    SliceEmbeddings,
    SliceSelection,
    Threshold,
    TopSlice,
    Volume,
)

LOGGER = logging.getLogger("meddinov3_stroke")

DEFAULT_RESIZE = 224
"""Side in pixels where neither the caller nor the head names one (the size MedDINOv3 was trained at)."""

FailedStatus = Literal["rejected", "refused", "failed"]
"""Corrupt or unsupported; out of scope; anything else."""


@dataclass(frozen=True, eq=False)
class Case:
    """A case that was read and judged."""

    path: Path
    findings: CaseFindings
    status: Literal["done"] = "done"

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return case_name(self.path)

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Label -> probability of the case."""
        return self.findings.probabilities

    @property
    def thresholds(self) -> Mapping[str, Threshold]:
        """Label -> decision threshold and its origin."""
        return self.findings.thresholds

    @property
    def decisions(self) -> Mapping[str, bool]:
        """Label -> whether the probability is at or above the threshold."""
        return self.findings.decisions

    @property
    def top_slices(self) -> tuple[TopSlice, ...]:
        """The most suspicious slices, highest score first."""
        return self.findings.top_slices

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know."""
        return self.findings.warnings

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the files written into `folder`; `summary.json` comes last."""
        return save_case(self.findings, Path(folder))


@dataclass(frozen=True)
class FailedCase:
    """A case that could not be judged, and why."""

    path: Path
    status: FailedStatus
    code: str
    message: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return case_name(self.path)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why there are no findings."""
        return (self.message,)

    def save(self, folder: Path | str) -> dict[str, Path]:
        """Name -> path of the one file written into `folder`: a `summary.json` with `status`, `code`, `message`."""
        path = Path(folder) / "summary.json"
        about = {"status": self.status, "code": self.code, "message": self.message}
        write_json(path, {**provenance(), "input": str(self.path), **about})
        return {path.name: path}


@dataclass(frozen=True, eq=False)
class ICHPredictor:
    """Six probabilities, decisions and suspicious slices of a head CT, by a frozen backbone and a trained head."""

    extractor: FeatureExtractor
    checkpoint: HeadCheckpoint
    top_k: int
    warnings: tuple[str, ...]
    """What holds for every case."""

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        *,
        backbone: Backbone | Path | str,
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        batch: int = 8,
        top_k: int = 5,
        resize: int | None = None,
        selection: SliceSelection = EVERY_SLICE,
    ) -> ICHPredictor:
        """A predictor with backbone and head in memory, after checking that they belong together.

        `backbone` is a weights file, a registered name or an opened backbone (which has its device, engine and
        precision already). `resize` is the head's own by default.

        Raises:
            UsageError: `top_k` or `batch` below 1.
            WeightsError: no weights or no head; a head of other weights, preprocessing or `resize`.
        """
        if top_k < 1:
            raise UsageError(f"--top-k {top_k}: expected 1 or more")
        head = load_checkpoint(Path(checkpoint))
        if isinstance(backbone, str | Path):
            backbone = load_backbone(backbone, engine, precision, device)
        side = resize if resize is not None else head.resize or DEFAULT_RESIZE
        known = (*demo_warnings(backbone.identity), *backbone.warnings)
        warnings = (*known, *check_backbone(head, backbone.identity, side))
        extractor = FeatureExtractor(backbone, resize=side, batch=batch, selection=selection)
        if head.pool_mode == "unknown":
            warnings = (*warnings, f"the head is applied as if trained on {applied_as(head, backbone)}-pooled volumes")
        return cls(extractor, head, top_k, warnings)

    def __call__(self, source: Source, on_batch: Callable[[int], None] | None = None) -> Case:
        """What is found in the volume in `source` (all that `read_volume` takes); `on_batch` is told the number of
        slices just embedded.

        Raises:
            InputError: corrupt, unsupported or ambiguous.
            OutOfScope: readable, but outside what the model is meant for.
            NonFiniteEmbedding: the backbone or the head gave NaN; the file is named.
        """
        watch = Stopwatch()
        volume = read_volume(source)
        return self.judge(volume, on_batch, read_s=watch.elapsed_s)

    def map(self, sources: Iterable[Source]) -> Iterator[Case | FailedCase]:
        """What became of each source, in order; a bad case is recorded and the next one goes on."""
        for source in sources:
            try:
                yield self(source)
            except MedDINOError as error:
                yield FailedCase(_path_of(source), _status(error), error.code, str(error))
            except Exception as error:
                LOGGER.error("%s: %s: %s", _path_of(source), type(error).__name__, error, exc_info=error)
                told = f"a bug of ours: {type(error).__name__}: {error}"
                yield FailedCase(_path_of(source), "failed", MedDINOError.code, told)

    def judge(self, volume: Volume, on_batch: Callable[[int], None] | None = None, *, read_s: float = 0.0) -> Case:
        """What is found in a volume that is read already; `read_s` is the seconds that took."""
        watch = Stopwatch()
        with naming(volume.source.path):
            embeddings = self.extractor.embed(volume, on_batch)
            embed_s = watch.elapsed_s
            findings = self._findings(volume, embeddings)
        elapsed_s = read_s + watch.elapsed_s
        timings = {"read_s": read_s, "embed_s": embed_s, "explain_s": watch.elapsed_s - embed_s}
        return Case(volume.source.path, replace(findings, elapsed_s=elapsed_s, timings=timings))

    def _findings(self, volume: Volume, embeddings: SliceEmbeddings) -> CaseFindings:
        head, kind = self.checkpoint, applied_as(self.checkpoint, self.extractor.backbone)
        rows = self._probabilities(head_rows(embeddings.cls, kind))
        probabilities = self._named(self._case_probabilities(embeddings.cls, rows, kind))
        order = rank(suspicion(rows, head.labels), self.top_k)
        shown = embeddings.slice_indices[order]
        patches, similarity = self._look_at(volume, shown, kind)
        decisions = {label: probabilities[label] >= head.thresholds[label].value for label in head.labels}
        return CaseFindings(
            probabilities=probabilities,
            thresholds=head.thresholds,
            decisions=decisions,
            top_slices=tuple(
                self._top_slice(volume, int(index), row, patch)
                for index, row, patch in zip(shown, rows[order], patches, strict=True)
            ),
            embeddings=embeddings,
            slice_probabilities=None if kind == "mean_max" else rows,
            similarity=similarity,
            top_hu=volume.hu_slices(shown),
            spacing_mm=volume.spacing_mm,
            ranking=ranking_text(kind, head.labels, known=head.pool_mode != "unknown"),
            head=_about_head(head, kind),
            device=self.extractor.backbone.device,
            elapsed_s=0.0,
            warnings=(*embeddings.warnings, *self.warnings, *contradictions(decisions)),
        )

    def _case_probabilities(
        self, cls: Float32[np.ndarray, "n dim"], rows: Float64[np.ndarray, "n label"], kind: HeadInput
    ) -> Float64[np.ndarray, " label"]:
        if kind == "slice":  # RSNA's label of a series is the maximum over its slices
            return np.asarray(rows.max(axis=0))
        return np.asarray(self._probabilities(pool_slices(cls, kind)[None])[0])

    def _probabilities(self, rows: Float32[np.ndarray, "n width"]) -> Float64[np.ndarray, "n label"]:
        return predict_logits(self.checkpoint, rows).probabilities

    def _look_at(
        self, volume: Volume, slice_indices: Int64[np.ndarray, " shown"], kind: HeadInput
    ) -> tuple[list[tuple[int, int]], Float32[np.ndarray, "shown h w"]]:
        """Reference patch and similarity map of each slice."""
        tokens = self.extractor.tokens(volume, slice_indices)
        assert tokens.patches is not None  # asked for
        references, maps = [], []
        for patches, hu in zip(tokens.patches, volume.hu_slices(slice_indices), strict=True):
            scores = suspicion(self._probabilities(head_rows(patches, kind)), self.checkpoint.labels)
            references.append(reference_patch(scores, hu, tokens.grid))
            maps.append(patch_similarity(patches, tokens.grid, references[-1]))
        return references, np.stack(maps)

    def _top_slice(
        self, volume: Volume, index: int, row: Float64[np.ndarray, " label"], patch: tuple[int, int]
    ) -> TopSlice:
        x, y, z = (float(value) for value in volume.slice_positions_mm[index])
        score = float(suspicion(row[None], self.checkpoint.labels)[0])
        return TopSlice(index, score, (x, y, z), self._named(row), patch, volume.source.image_of(index))

    def _named(self, row: Float64[np.ndarray, " label"]) -> dict[str, float]:
        return dict(zip(self.checkpoint.labels, row.tolist(), strict=True))


def applied_as(head: HeadCheckpoint, backbone: Backbone) -> HeadInput:
    """What the head's rows are taken for; `unknown` by its width: mean, or mean_max where it is twice the embedding."""
    kinds: dict[str, HeadInput] = {"slice": "slice", "mean": "mean", "max": "max", "mean_max": "mean_max"}
    wide = head.input_dim == 2 * backbone.identity.embed_dim
    return kinds.get(head.pool_mode, "mean_max" if wide else "mean")


def contradictions(decisions: Mapping[str, bool]) -> tuple[str, ...]:
    """What to say where `any` is below its threshold and a type is not: each label has a threshold of its own."""
    types = [label for label, decided in decisions.items() if decided and label != "any"]
    if decisions.get("any", True) or not types:
        return ()
    return (f"any is below its threshold, yet at or above theirs: {', '.join(types)}; look at the slices",)


def _about_head(head: HeadCheckpoint, kind: HeadInput) -> dict[str, Any]:
    names = ("sha256", "pool_mode", "labels", "input_dim", "hidden_dim", "resize", "backbone", "seed", "epoch")
    about = {name: getattr(head, name) for name in (*names, "metric_name", "best_metric")}
    return {**about, "labels": list(head.labels), "applied_as": kind}


def _path_of(source: Source) -> Path:
    """The path in the record of a case that failed, also where the source itself is the fault."""
    try:
        return source_path(source)
    except UsageError:
        return Path()


def _status(error: MedDINOError) -> FailedStatus:
    if isinstance(error, InputError):
        return "rejected"
    return "refused" if isinstance(error, OutOfScope) else "failed"
