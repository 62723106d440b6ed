"""Heads compared by cross-validation: what each view and kind of head makes of patients it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8, Int64

from meddinov3_stroke.config import POS_WEIGHT_CAP, AnyHeadConfig
from meddinov3_stroke.data import SeriesTable
from meddinov3_stroke.data.exposure import digests_of
from meddinov3_stroke.data.slice_labels import read_series_slice_labels
from meddinov3_stroke.data.splits import stratify
from meddinov3_stroke.errors import DatasetError, UsageError
from meddinov3_stroke.features import EmbeddingStore, Extraction, pool_slices
from meddinov3_stroke.head_train import calibration_of
from meddinov3_stroke.heads import HeadCheckpoint, read_array, save_checkpoint
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.metrics import auroc_report, patients_of, youden_thresholds
from meddinov3_stroke.metrics.comparison import compare
from meddinov3_stroke.metrics.evaluation import discrimination, evaluate_slices
from meddinov3_stroke.system.atomic import write_npy
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.types import LABELS, HeadData, HeadOutput
from meddinov3_stroke.views import View

LOGGER = logging.getLogger("meddinov3_stroke")

LINEAR = "linear"  # name of an mlp without a hidden layer
REFERENCE = ("cls", "mlp")
"""View and head that every other one is compared with: the README's."""

BAG_BATCH = 8  # at most so many cases in a step of a head on slices or patches
RANKED_BY = "macro AUROC of the cases, out of fold"


@dataclass(frozen=True)
class Candidate:
    """A view and a kind of head."""

    view: View
    head: str  # key of `ARCHITECTURES`, or `linear`

    @property
    def name(self) -> str:
        """As the leaderboard names it."""
        return f"{self.view.name} · {self.head}"

    @property
    def takes(self) -> str:
        """rows, slices or patches."""
        return ARCHITECTURES[self._kind].takes

    @property
    def _kind(self) -> str:
        return "mlp" if self.head == LINEAR else self.head

    def config(self, plain: AnyHeadConfig, seed: int) -> AnyHeadConfig:
        """How the head is fitted with a seed."""
        hidden = 0 if self.head in (LINEAR, "slices", "evidence") else plain.hidden_dim
        size = plain.batch_size if self.takes == "rows" else min(plain.batch_size, BAG_BATCH)
        return replace(plain, head=self._kind, hidden_dim=hidden, batch_size=size, seed=seed)


def candidates_of(views: Sequence[View], heads: Sequence[str]) -> list[Candidate]:
    """Every head on every view that it can take, the reference first; UsageError for an unknown or useless head."""
    known = [*ARCHITECTURES, LINEAR]
    if unknown := [head for head in heads if head not in known]:
        raise UsageError(f"--heads {unknown[0]}: expected some of {', '.join(known)}")
    pairs = [Candidate(view, head) for view in views for head in heads]
    found = [one for one in pairs if (one.takes == "patches") == one.view.on_patches]
    if unused := [head for head in heads if head not in {one.head for one in found}]:
        wanted = "patches or patchesK" if unused[0] == "evidence" else "cls, stats or blocks"
        raise UsageError(f"--heads {unused[0]}: none of the views is for it; add one of {wanted} to --views")
    reference = Candidate(View.parse(REFERENCE[0]), REFERENCE[1])
    return [reference, *(one for one in found if one != reference)]


@dataclass(frozen=True, eq=False)
class Series:
    """The series of a table that could be read, with what the cache holds of each."""

    table: SeriesTable
    extractions: tuple[Extraction, ...]
    store: EmbeddingStore
    pool_mode: str
    slice_labels: Path | None = None

    def data(self, view: View, takes: str) -> HeadData:
        """What heads of a kind take of a view."""
        parts = [self._array(one, view) for one in self.extractions]
        labels, groups = self.table.labels, tuple(self.table.groups)
        pixels = tuple(one.embeddings.source.pixels_sha256 for one in self.extractions if one.embeddings)
        if takes == "rows":
            pooled = np.stack([pool_slices(part, self.pool_mode) for part in parts])
            return HeadData(pooled, labels, groups, pixels)
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        scale = None if view.basis is None else view.basis.scale
        of_slices, positions = self.of_slices()
        return HeadData(np.concatenate(parts), labels, groups, pixels, starts, of_slices, positions, scale)

    def _array(self, one: Extraction, view: View) -> np.ndarray:
        entry = self.store.get(one.keys[view.name])
        if entry is None:
            raise DatasetError(f"{one.path}: the cache no longer holds view {view.name}; run again")
        return entry.values

    @property
    def heights(self) -> Float64[np.ndarray, " slice"]:
        """Relative height of every slice."""
        each = [one.embeddings for one in self.extractions if one.embeddings]
        return np.concatenate([(one.slice_indices + 0.5) / one.n_slices for one in each])

    @property
    def patients(self) -> list[str]:
        """The patient of every slice."""
        pairs = zip(self.table.groups, self.extractions, strict=True)
        return [group for group, one in pairs if one.embeddings for _ in one.embeddings.slice_indices]

    @cached_property
    def _known_slices(self) -> dict[str, Any]:
        return {} if self.slice_labels is None else read_series_slice_labels(self.slice_labels)

    def warnings(self) -> list[str]:
        """What is to be said of labels of slices."""
        n = sum(str(uid) in self._known_slices for uid in self.table.frame["series_uid"])
        if self.slice_labels is None or n == len(self.table):
            return []
        return [f"{self.slice_labels} has labels of slices for {n} of {len(self.table)} series, by series_uid"]

    def of_slices(self) -> tuple[Int8[np.ndarray, "slice label"] | None, Any]:
        """(labels, positions in mm) of every slice, as far as the table of slice labels has them."""
        if self.slice_labels is None:
            return None, None
        known, labels, positions = self._known_slices, [], []
        for uid, one in zip(self.table.frame["series_uid"], self.extractions, strict=True):
            assert one.embeddings is not None
            found = known.get(str(uid), {})
            unknown = (np.full(len(LABELS), -1, dtype=np.int8), float("nan"))
            rows = [found.get(int(k), unknown) for k in one.embeddings.slice_indices]
            labels.append(np.stack([row for row, _ in rows]))
            heights = np.array([height for _, height in rows], dtype=np.float32)
            positions.append(heights - np.float32(np.nanmean(heights) if np.isfinite(heights).any() else np.nan))
        return np.concatenate(labels), np.nan_to_num(np.concatenate(positions))


def folds_of(
    groups: Sequence[str], labels: Int8[np.ndarray, "n label"], n_folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """The fold of each row: patients together, the labels spread evenly; UsageError for fewer patients than folds."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if not 2 <= n_folds <= len(names):
        raise UsageError(f"--folds {n_folds}: expected 2 to {len(names)}, the number of patients")
    positive = np.zeros((len(names), labels.shape[1]), dtype=bool)
    np.logical_or.at(positive, index, labels.astype(bool))
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    return np.asarray(stratify(positive, order, [1 / n_folds] * n_folds)[index])


@dataclass(frozen=True, eq=False)
class Sweep:
    """The candidates on one table, and where finished fits are kept."""

    series: Series
    folds: Int64[np.ndarray, " n"]
    plain: AnyHeadConfig
    n_seeds: int
    folder: Path  # of finished fits
    about: Mapping[str, Any]  # what else decides a fit, as JSON

    def predictions(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, list[HeadOutput]]]:
        """What the heads of each seed say of the patients they have not seen; fits of a view are made together."""
        inputs = list(dict.fromkeys((one.view, one.takes) for one in candidates))
        for view, takes in inputs:
            data = None
            for candidate in [one for one in candidates if (one.view, one.takes) == (view, takes)]:
                missing = [seed for seed in self.seeds if not self._path(candidate, seed).exists()]
                if missing:
                    data = data or self.series.data(view, takes)
                    self._fit(candidate, missing, data)
                yield candidate, [self._read(candidate, seed) for seed in self.seeds]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the fits."""
        return [self.plain.seed + k for k in range(self.n_seeds)]

    def _path(self, candidate: Candidate, seed: int) -> Path:
        document = {**self.about, "config": asdict(candidate.config(self.plain, seed)), "view": candidate.view.key}
        return self.folder / f"{sha256_of_document({**document, 'folds': self.folds.tolist()})[:24]}.npy"

    def _read(self, candidate: Candidate, seed: int) -> HeadOutput:
        logits, slices = np.split(read_array(self._path(candidate, seed)), [len(self.folds)])
        return HeadOutput(logits, LABELS, slices if len(slices) else None)

    def _fit(self, candidate: Candidate, seeds: Sequence[int], data: HeadData) -> None:
        from meddinov3_stroke.heads.fitting import Fit, fit_heads, taken

        numbers = np.unique(self.folds)
        configs = [candidate.config(self.plain, seed) for seed in seeds]
        rows = [np.flatnonzero(self.folds != fold) for fold in numbers]
        heads = fit_heads([Fit(config, some) for config in configs for some in rows], data)
        for k, seed in enumerate(seeds):
            logits = np.zeros(data.labels.shape, dtype=np.float32)
            of_slices = None if data.starts is None else np.zeros((len(data.embeddings), len(LABELS)), dtype=np.float32)
            for fold, head in zip(numbers, heads[k * len(numbers) : (k + 1) * len(numbers)], strict=True):
                held = np.flatnonzero(self.folds == fold)
                found = head.outputs(taken(data, held), LABELS)
                logits[held] = found.logits
                if of_slices is not None and data.starts is not None:
                    slices = np.concatenate([np.arange(data.starts[row], data.starts[row + 1]) for row in held])
                    of_slices[slices] = found.slice_logits
            both = [logits] if of_slices is None else [logits, of_slices]
            write_npy(self._path(candidate, seed), np.concatenate(both))


def leaderboard(sweep: Sweep, candidates: Sequence[Candidate], n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """The candidates with their figures, the best first: the mean of the probabilities of the seeds is judged.

    The best of many looks better than it is: quote figures of patients that took no part.
    """
    labels, groups = sweep.series.table.labels, sweep.series.table.groups
    patients, _ = patients_of(groups, len(labels), n_resamples, seed)
    of_slices, _ = sweep.series.of_slices()
    rows, reference = [], None
    for candidate, outputs in sweep.predictions(candidates):
        each = [output.probabilities for output in outputs]
        mean = np.mean(each, axis=0)
        reference = mean if reference is None else reference
        macros = [auroc_report(labels, one, LABELS).macro for one in each]
        row: dict[str, Any] = {"view": candidate.view.name, "head": candidate.head, "macro_auroc_of_seeds": macros}
        row |= discrimination(labels, mean, LABELS, patients)
        row["against_reference"] = compare(labels, mean, reference, LABELS, patients)
        slices = [output.slice_logits for output in outputs if output.slice_logits is not None]
        if slices and of_slices is not None:
            row["slices"] = _slice_figures(sweep.series, of_slices, np.mean(slices, axis=0), n_resamples, seed)
        rows.append(row)
        LOGGER.info("%s: macro AUROC %s", candidate.name, _text(row["macro"]["auroc"]["value"]))
    return sorted(rows, key=lambda row: -(row["macro"]["auroc"]["value"] or 0))


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _slice_figures(series: Series, labels: np.ndarray, logits: np.ndarray, n_resamples: int, seed: int) -> Any:
    known = np.asarray((labels >= 0).all(axis=1))
    if not known.any():
        return None
    groups = [group for group, is_known in zip(series.patients, known, strict=True) if is_known]
    patients, _ = patients_of(groups, int(known.sum()), n_resamples, seed)
    probabilities = HeadOutput(logits[known], LABELS).probabilities
    return evaluate_slices(labels[known], probabilities, LABELS, patients, series.heights[known])


def refit(
    sweep: Sweep, candidates: Sequence[Candidate], best: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """The best candidate fitted on every row, written as a checkpoint with thresholds from the held-out predictions."""
    from meddinov3_stroke.heads.fitting import Fit, fit_heads
    from meddinov3_stroke.heads.training import fit_distribution, positive_weights

    (candidate,) = [one for one in candidates if (one.view.name, one.head) == (best["view"], best["head"])]
    data = sweep.series.data(candidate.view, candidate.takes)
    config = candidate.config(sweep.plain, sweep.seeds[0])
    (head,) = fit_heads([Fit(config, np.arange(len(data.labels)))], data)
    ((_, (held_out, *_)),) = sweep.predictions([candidate])  # of the seed that is fitted
    extractor = sweep.series.extractions[0].embeddings
    assert extractor is not None
    has_both = data.labels.any(axis=0)
    weights = np.where(has_both, positive_weights(np.where(has_both, data.labels, 1), POS_WEIGHT_CAP), 1.0)
    checkpoint = HeadCheckpoint(
        state_dict=dict(head.state),
        labels=LABELS,
        input_dim=int(data.embeddings.shape[-1]),
        arch=config.arch,
        params=dict(head.params),
        pool_mode=sweep.series.pool_mode if candidate.takes == "rows" else candidate.takes,
        resize=extractor.resize,
        backbone=asdict(extractor.backbone),
        thresholds=youden_thresholds(data.labels, held_out.probabilities, LABELS),
        pos_weight=dict(zip(LABELS, weights.tolist(), strict=True)),
        seed=config.seed,
        epoch=head.epoch,
        metric_name=RANKED_BY,
        best_metric=best["macro"]["auroc"]["value"],
        view=candidate.view,
        distribution=fit_distribution(data.embeddings) if candidate.takes == "rows" else None,
        seen={"training": digests_of(data.groups, data.pixels, data.embeddings if candidate.takes == "rows" else None)},
    )
    found, warnings = calibration_of(data, held_out.logits, LABELS, config.seed)
    checkpoint = replace(checkpoint, **found)
    about = {"view": candidate.view.name, "head": candidate.head, "checkpoint": str(path)}
    return about | {"sha256": save_checkpoint(path, checkpoint)}, warnings
