"""From a path to the findings of one head CT; the model is loaded once and nothing of a case is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float32, Float64, Int64

from meddinov3_stroke import config
from meddinov3_stroke.backbone import Backbone, load_backbone
from meddinov3_stroke.cases import Case, FailedCase
from meddinov3_stroke.ct import Source
from meddinov3_stroke.ct.scope import judge, require_in_scope, scope_warnings
from meddinov3_stroke.errors import UsageError
from meddinov3_stroke.explain import (
    HeadInput,
    demo_warnings,
    parse_patch,
    patch_similarity,
    rank,
    ranking_text,
    reference_patch,
    sim_slice_index,
    suspicion,
)
from meddinov3_stroke.features import EVERY_SLICE, FeatureExtractor, extract_one, naming
from meddinov3_stroke.features.extract import OnSlices
from meddinov3_stroke.heads import check_backbone
from meddinov3_stroke.heads.applying import HeadEnsemble, distribution_warnings, load_heads, require_in_distribution
from meddinov3_stroke.scoring import Scored, scored
from meddinov3_stroke.system.provenance import Stopwatch
from meddinov3_stroke.types import (
    CaseFindings,
    SliceEmbeddings,
    SliceSelection,
    Threshold,
    TopSlice,
    Volume,
)
from meddinov3_stroke.views import View

__all__ = ["Case", "FailedCase", "ICHPredictor"]


@dataclass(frozen=True, eq=False)
class ICHPredictor:
    """Six probabilities, decisions and suspicious slices of a head CT, by a frozen backbone and a trained head."""

    extractor: FeatureExtractor
    heads: HeadEnsemble
    top_k: int
    warnings: tuple[str, ...]  # warnings that hold for every case
    sim_slice: int | None = None
    """The slice of the similarity map, -1 for the middle one; None maps the suspicious slices."""
    sim_patch: str | None = None  # the reference patch of the map: center or row,column; None chooses one by head score
    force: bool = False  # compute volumes outside the intended use

    def __repr__(self) -> str:
        n_heads = len(self.heads.members)
        heads = "head" if n_heads == 1 else f"{n_heads} heads"
        about = f"{heads} of {len(self.heads.labels)} labels on {self.heads.pool_mode} features"
        return f"ICHPredictor({self.extractor.backbone}, {about})"

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | Sequence[Path | str],
        *,
        backbone: Backbone | Path | str,
        device: str = "auto",
        engine: str = "auto",
        precision: str = "auto",
        batch: int = 8,
        top_k: int = 5,
        resize: int | None = None,
        selection: SliceSelection = EVERY_SLICE,
        tokens: str = "all",
        threshold: float | None = None,
        operating_point: str | None = None,
        sim_slice: int | None = None,
        sim_patch: str | None = None,
        force: bool = False,
    ) -> ICHPredictor:
        """A predictor, after checking that backbone and head belong together.

        `backbone` is a weights file, a registered name or an opened backbone (which has its device, engine and
        precision already). Of several checkpoints the logits are averaged, and so are, in logits, their thresholds.
        `resize` is the head's own by default; `threshold` replaces the checkpoint's thresholds; `operating_point`
        (youden, sensitivity-95, sensitivity-98) takes those of one of its points, on calibrated probabilities. `force`
        computes volumes outside the intended use, with a warning. `tokens` head leaves patches of pure air out.

        Raises UsageError (`top_k` or `batch` below 1, a threshold outside [0, 1], or both threshold and operating
        point) or WeightsError (no weights or no head; a head of other weights, preprocessing or `resize`, or without
        operating points).
        """
        _check_options(top_k, batch, threshold, operating_point)
        paths = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
        heads = load_heads([Path(path) for path in paths])
        if isinstance(backbone, str | Path):
            backbone = load_backbone(backbone, engine=engine, precision=precision, device=device)
        side = resize if resize is not None else heads.resize or config.RESIZE
        extractor = FeatureExtractor(backbone, side, batch, selection, views_of(heads, tokens))  # may refuse the size
        found = chain.from_iterable(check_backbone(head, extractor.identity, side) for head in heads.members)
        warnings = [*demo_warnings(backbone.identity), *backbone.warnings, *dict.fromkeys(found)]
        if heads.pool_mode == "unknown":
            kind = applied_as(heads, backbone.identity.embed_dim)
            warnings.append(f"the head is applied as if trained on {kind}-pooled volumes")
        if threshold is not None:
            given = Threshold(threshold, "given by --threshold")
            heads = replace(heads, thresholds=dict.fromkeys(heads.labels, given), are_given=True)
            warnings.append(f"--threshold {threshold:g} replaces the checkpoint's thresholds for every label")
        if operating_point is not None:
            heads = heads.at_point(operating_point)
            warnings += heads.point_warnings()
        if sim_patch is not None:
            parse_patch(sim_patch, (backbone.side(side), backbone.side(side)))
        return cls(extractor, heads, top_k, tuple(warnings), sim_slice, sim_patch, force)

    def __call__(
        self, source: Source, on_slices: OnSlices | None = None, check: Callable[[Volume], object] | None = None
    ) -> Case:
        """The findings of the volume in `source` (all that `read_volume` takes).

        `check` may raise for the volume before it is embedded.

        Raises InputError (corrupt, unsupported or ambiguous), OutOfScope (readable, but outside what the model is meant
        for) or NonFiniteEmbedding (the backbone or the head gave NaN; the message names the file).
        """
        watch = Stopwatch()

        def checks(volume: Volume) -> None:
            self._check_flags(volume)
            if check is not None:
                check(volume)

        volume, embeddings, read_s = extract_one(source, self.extractor, on_slices, checks, self.force)
        return self._case(volume, embeddings, watch, read_s)

    def judge(self, volume: Volume) -> Case:
        """The findings of a volume in memory; errors as for a call, without those of reading."""
        watch = Stopwatch()
        self._check_flags(volume)
        scope = judge(volume).document()
        if not self.force:
            require_in_scope(scope, volume.source.path)
        return self._case(volume, self.extractor.embed(volume, scope), watch)

    def _check_flags(self, volume: Volume) -> None:
        if self.sim_slice is not None:
            sim_slice_index(self.sim_slice, volume.n_slices)

    def _case(self, volume: Volume, embeddings: SliceEmbeddings, watch: Stopwatch, read_s: float = 0.0) -> Case:
        embedded_s = watch.elapsed_s
        with naming(volume.source.path):
            findings = self._findings(volume, embeddings)
        elapsed_s = watch.elapsed_s
        timings = {"read_s": read_s, "embed_s": embedded_s - read_s, "explain_s": elapsed_s - embedded_s}
        return Case(volume.source.path, replace(findings, elapsed_s=elapsed_s, timings=timings))

    def map(
        self, sources: Iterable[Source], on_slices: OnSlices | None = None, *, stage: Path | None = None
    ) -> Iterator[Case | FailedCase]:
        """The case of each source, in order; a case that fails is recorded and the next one goes on.

        The next volumes are read while the engine works, and its passes are filled across volumes. `on_slices` hears of
        every forward pass; `stage` is a local folder for copies of inputs on slow storage.
        """
        from meddinov3_stroke.batch import map_cases

        def finish(volume: Volume, embeddings: SliceEmbeddings) -> Case:
            return self._case(volume, embeddings, Stopwatch())

        watch, before = Stopwatch(), 0.0
        run = map_cases(
            sources,
            self.extractor,
            finish,
            on_slices=on_slices,
            check=self._check_flags,
            force=self.force,
            stage=stage,
        )
        for ended in run:
            elapsed_s, before = watch.elapsed_s - before, watch.elapsed_s
            if isinstance(ended, Case):
                ended = replace(ended, findings=replace(ended.findings, elapsed_s=elapsed_s))
            yield cast("Case | FailedCase", ended)

    def _findings(self, volume: Volume, embeddings: SliceEmbeddings) -> CaseFindings:
        heads, kind = self.heads, applied_as(self.heads, self.extractor.backbone.identity.embed_dim)
        is_plain = heads.view in (View(), self.extractor.views[0])
        found = scored(heads, kind, volume, embeddings, is_plain=is_plain)
        rows, of_case = found.rows, found.of_case
        distribution = heads.judge_distance(found.inputs)
        if not self.force:
            require_in_distribution(distribution, volume.source.path)
        unlike = distribution_warnings(distribution)
        case, *each = (
            dict(zip(heads.labels, one.max(axis=0).tolist(), strict=True))
            for one in (heads.probabilities(of_case), *(output.probabilities for output in of_case))
        )
        calibrated = heads.calibrated(of_case)
        decisions, indeterminate = heads.decide(case, calibrated)
        order = rank(suspicion(rows, heads.labels), self.top_k)
        top_slices, similarity = self._look_at(volume, embeddings.slice_indices[order], found, rows[order])
        map_slices = top_slices
        if self.sim_slice is not None:
            index = np.array([sim_slice_index(self.sim_slice, volume.n_slices)])
            known = rows[embeddings.slice_indices == index]  # one probability per slice, whatever graph gives the map
            map_slices, similarity = self._look_at(volume, index, found, known if len(known) else None)
        return CaseFindings(
            probabilities=case,
            probabilities_of_heads=tuple(each) if len(each) > 1 else (),
            thresholds=heads.thresholds,
            decisions=decisions,
            calibrated=calibrated,
            operating_point=heads.operating_point,
            indeterminate=indeterminate,
            top_slices=top_slices,
            embeddings=embeddings,
            volume_embedding=found.pooled,
            slice_probabilities=None if kind == "mean_max" else rows,
            map_slices=map_slices,
            similarity=similarity,
            map_hu=volume.hu_slices([one.slice_index for one in map_slices]),
            spacing_mm=volume.spacing_mm,
            ranking=ranking_text(kind, heads.labels, known=heads.pool_mode != "unknown"),
            reference_rule=found.rule if self.sim_patch is None else f"given by --sim-patch {self.sim_patch}",
            head={**heads.document(), "applied_as": kind},
            device=self.extractor.backbone.device,
            elapsed_s=0.0,
            distribution=distribution,
            notices=(*scope_warnings(embeddings.scope), *unlike),
            warnings=(*embeddings.warnings, *unlike, *self.warnings, *contradictions(decisions)),
        )

    def _look_at(
        self,
        volume: Volume,
        slice_indices: Int64[np.ndarray, " shown"],
        found: Scored,
        rows: Float64[np.ndarray, "shown label"] | None = None,
    ) -> tuple[tuple[TopSlice, ...], Float32[np.ndarray, "shown h w"]]:
        # the slices with score and reference patch, and the similarity map of each; `rows` are their probabilities
        tokens, labels = self.extractor.tokens(volume, slice_indices), self.heads.labels
        assert tokens.patches is not None  # asked for
        if rows is None:
            if not found.scores_tokens:
                advice = "this head needs the slice embedded; omit --stride and --max-slices"
                raise UsageError(f"--sim-slice {self.sim_slice}: {advice}")
            rows = found.of_tokens(tokens.cls)
        slices, maps = [], []
        for index, row, patches in zip(slice_indices.tolist(), rows, tokens.patches, strict=True):
            if self.sim_patch is None:
                scores = found.patch_scores(volume, index, patches, tokens.grid)
                patch = reference_patch(scores, volume.hu_slices([index])[0], tokens.grid)
            else:
                patch = parse_patch(self.sim_patch, tokens.grid)
            x, y, z = volume.slice_positions_mm[index].tolist()
            score, image = float(suspicion(row[None], labels)[0]), volume.source.image_of(index)
            named = dict(zip(labels, row.tolist(), strict=True))
            slices.append(TopSlice(index, score, (x, y, z), named, patch, image))
            maps.append(patch_similarity(patches, tokens.grid, patch))
        return tuple(slices), np.stack(maps)


def _check_options(top_k: int, batch: int, threshold: float | None, operating_point: str | None) -> None:
    for flag, value in (("--top-k", top_k), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{flag} {value}: expected at least 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: expected a probability from 0 to 1")
    if threshold is not None and operating_point is not None:
        raise UsageError("--threshold beside --operating-point; pass one of them")


def views_of(heads: HeadEnsemble, tokens: str) -> tuple[View, ...]:
    """What is taken of each slice: its class token, of all tokens or those of the head, and what the heads see."""
    plain = View.parse("cls+head" if tokens == "head" else "cls")
    return (plain,) if heads.view in (View(), plain) else (plain, heads.view)


def applied_as(head: HeadEnsemble, embed_dim: int) -> HeadInput:
    """The input the head is used with; for `unknown` by its width: mean_max if twice the embedding, else mean."""
    if head.pool_mode != "unknown":
        return cast("HeadInput", head.pool_mode)
    return "mean_max" if head.input_dim == 2 * embed_dim else "mean"


def contradictions(decisions: Mapping[str, bool]) -> tuple[str, ...]:
    """The warning where a type is positive and `any` is negative: each label has a threshold of its own."""
    types = [f"'{label}'" for label, decided in decisions.items() if decided and label != "any"]
    if decisions.get("any", True) or not types:
        return ()
    found = f"{' and '.join(types)} {'is' if len(types) == 1 else 'are'} positive"
    return (f"{found} but 'any' is negative (separate thresholds); review the slices",)
