"""Applying heads: logits of rows of embeddings, averaged over several heads, and whether a head belongs to a backbone.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from meddinov3_stroke.errors import CheckpointError, NonFiniteEmbedding, OutOfScope, UsageError
from meddinov3_stroke.heads.checkpoint import POOL_MODES, HeadCheckpoint, load_checkpoint
from meddinov3_stroke.heads.registry import ARCHITECTURES
from meddinov3_stroke.system.command import command_of
from meddinov3_stroke.system.digest import sha256_of_document
from meddinov3_stroke.types import BackboneIdentity, Calibrated, HeadData, HeadOutput, Threshold, logit, sigmoid

LEAST_ROWS = 100
"""Training rows below which a head gets no rule for the distance to them."""

NO_HEAD: Mapping[str, Any] = {"in_distribution": None, "reason": "no head was applied"}

ROWS_PER_BATCH = 16384  # rows sent through the head at a time; bounds memory

_ALIKE = ("labels", "pool_mode", "input_dim", "resize", "view")

_IDENTITY = ("sha256", "arch", "pool_mode", "labels", "input_dim", "hidden_dim", "resize", "backbone", "seed", "epoch")


def predict_logits(
    checkpoint: HeadCheckpoint, embeddings: Float32[np.ndarray, "n dim"], labels: Sequence[str] | None = None
) -> HeadOutput:
    """Logits [n, label] of the rows, computed in numpy.

    Raises CheckpointError where the embedding size or the labels differ from the checkpoint's (lists expected and
    found), NonFiniteEmbedding where a row gives NaN or infinity.
    """
    if embeddings.shape[1] != checkpoint.input_dim:
        raise CheckpointError(
            f"embeddings of {embeddings.shape[1]} columns do not fit the head; expected {checkpoint.input_dim} "
            f"(pool mode {checkpoint.pool_mode}), found {embeddings.shape[1]}; use the head trained on these embeddings"
        )
    if labels is not None and tuple(labels) != checkpoint.labels:
        raise CheckpointError(
            f"the head's labels differ; expected {', '.join(checkpoint.labels)}; found {', '.join(labels)}; "
            "use labels of the same names in the same order"
        )
    unlabelled = np.zeros((len(embeddings), len(checkpoint.labels)), dtype=np.int8)
    data = HeadData(embeddings, unlabelled)
    return apply_head(checkpoint.arch, checkpoint.params, checkpoint.state_dict, data, checkpoint.labels)


def apply_head(
    arch: str,
    params: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    data: HeadData,
    labels: tuple[str, ...],
    *,
    with_patches: bool = False,
) -> HeadOutput:
    """What a head of some kind computes from rows, or from the slices of cases; NonFiniteEmbedding for NaN or infinity.

    Logits of patches, which are many, are kept `with_patches` only.
    """
    architecture = ARCHITECTURES[arch]
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        if architecture.logits is not None:
            starts = range(0, max(len(data.embeddings), 1), ROWS_PER_BATCH)
            parts = [architecture.logits(state, data.values(slice(k, k + ROWS_PER_BATCH))) for k in starts]
            found = HeadOutput(np.concatenate(parts), labels)
        else:
            assert architecture.case is not None
            assert data.starts is not None
            cases = []
            for low, high in pairwise(data.starts.tolist()):
                positions = None if data.positions_mm is None else data.positions_mm[low:high]
                case, slices, patches = architecture.case(state, params, data.values(slice(low, high)), positions)
                cases.append((case, slices, patches if with_patches else None))
            of_patches = [patches for *_, patches in cases if patches is not None]
            found = HeadOutput(
                np.stack([logits for logits, *_ in cases]),
                labels,
                np.concatenate([slices for _, slices, _ in cases]),
                np.concatenate(of_patches) if of_patches else None,
            )
    bad = np.nonzero(~np.isfinite(found.logits).all(axis=1))[0]
    if bad.size:
        raise NonFiniteEmbedding(
            f"the head gives NaN or infinity for {bad.size} of {len(found.logits)} rows, first {bad[0]}"
        )
    return found


def judge_distance(checkpoint: HeadCheckpoint, rows: Float32[np.ndarray, "n dim"]) -> dict[str, Any]:
    """The verdict on a case whose rows the head takes, with its figures; of several rows, the median distance counts.

    `in_distribution` is None, with the reason, for a head without a rule.
    """
    if (rule := checkpoint.distribution) is None:
        reason = f"the head carries no rule: trained on fewer than {LEAST_ROWS} rows, or by an earlier version"
        return {"in_distribution": None, "reason": reason}
    distance = float(np.median(rule.distances(rows)))
    return {"in_distribution": distance <= rule.limit, "distance": round(distance, 4), **rule.figures()}


@dataclass(frozen=True, eq=False)
class HeadEnsemble:
    """Heads of the same labels and inputs."""

    members: tuple[HeadCheckpoint, ...]
    thresholds: Mapping[str, Threshold]
    operating_point: str | None = None  # whose thresholds these are; they are on calibrated probabilities
    are_given: bool = False  # whether the user gave the thresholds, which then have no indeterminate band
    labels = property(attrgetter("_first.labels"))
    pool_mode = property(attrgetter("_first.pool_mode"))
    input_dim = property(attrgetter("_first.input_dim"))
    resize = property(attrgetter("_first.resize"))
    view = property(attrgetter("_first.view"))

    @property
    def _first(self) -> HeadCheckpoint:
        return self.members[0]

    @property
    def sha256(self) -> str:
        """Digest of the checkpoint; of several, of their digests, in any order."""
        digests = sorted(head.sha256 for head in self.members)
        return digests[0] if len(digests) == 1 else sha256_of_document(digests)

    def outputs(self, rows: Float32[np.ndarray, "n dim"]) -> list[HeadOutput]:
        """What each head computes from the rows; errors as for `predict_logits`."""
        return [predict_logits(head, rows) for head in self.members]

    def of_case(self, data: HeadData) -> list[HeadOutput]:
        """What each head on slices or patches computes from a case; with the logits of patches."""
        pairs = [(head, (head.arch, head.params, head.state_dict)) for head in self.members]
        return [apply_head(*parts, data, head.labels, with_patches=True) for head, parts in pairs]

    def probabilities(self, outputs: Sequence[HeadOutput]) -> Float64[np.ndarray, "n label"]:
        """Sigmoid of the mean of the heads' logits."""
        logits = np.stack([output.logits for output in outputs]).astype(np.float64)
        return HeadOutput(logits.mean(axis=0), self.labels).probabilities

    def at_point(self, name: str) -> HeadEnsemble:
        """The same head, deciding at one of its operating points, such as `sensitivity-95`.

        Raises CheckpointError where there are none, UsageError for another name.
        """
        point, points = name.replace("-", "_"), self._first.operating_points or {}
        if reason := self._uncalibrated():
            raise CheckpointError(
                f"--operating-point {name}: {reason}; omit it to decide at the thresholds of the checkpoint"
            )
        if point not in points:
            expected = ", ".join(points).replace("_", "-")
            raise UsageError(f"--operating-point {name}: expected one of {expected}")
        return replace(self, thresholds=points[point], operating_point=point)

    def point_warnings(self) -> tuple[str, ...]:
        """The warning about labels that an operating point decides on probabilities without calibration."""
        calibration = self._first.calibration or {}
        without = [label for label in self.labels if calibration[label].calibrator is None]
        if not without:
            return ()
        named = (self.operating_point or "").replace("_", "-")
        return (
            f"--operating-point {named}: {', '.join(without)} without calibration, for lack of validation patients; "
            "decided on the probability as it is",
        )

    def _uncalibrated(self) -> str | None:
        if len(self.members) > 1:
            return "the mean of the logits of several heads has no calibration"
        if self._first.operating_points is None and self._first.calibration is not None:
            return "the head was trained without validation data"
        if self._first.calibration is None:
            return "the checkpoint has no calibration: an earlier version wrote it, or its training was cut off"
        if self.pool_mode == "slice":
            return "the head was calibrated on slices, and the maximum over the slices of a case was not"
        return None

    def calibrated(self, outputs: Sequence[HeadOutput]) -> dict[str, Calibrated]:
        """The calibrated probability of each label of a case, or the reason why there is none."""
        if reason := self._uncalibrated():
            return dict.fromkeys(self.labels, Calibrated(reason=reason))
        assert self._first.calibration is not None
        logits = dict(zip(self.labels, outputs[0].logits[0].tolist(), strict=True))
        return {label: self._first.calibration[label].of(logits[label]) for label in self.labels}

    def decide(
        self, probabilities: Mapping[str, float], calibrated: Mapping[str, Calibrated]
    ) -> tuple[dict[str, bool], tuple[str, ...]]:
        """(label -> whether it is at or above its threshold; labels whose threshold lies in the interval of the
        calibrated probability)."""
        decisions, indeterminate = {}, []
        for label, one in calibrated.items():
            limit, calibration = self.thresholds[label].value, (self._first.calibration or {}).get(label)
            value = None if self.operating_point is None else one.value
            decisions[label] = (probabilities[label] if value is None else value) >= limit
            if one.low is None or one.high is None or self.are_given or calibration is None:
                continue
            if value is None and calibration.calibrator is not None:
                limit = float(calibration.calibrator.apply(logit(np.array([limit])))[0])
            if one.low < limit <= one.high:
                indeterminate.append(label)
        return decisions, tuple(indeterminate)

    def judge_distance(self, rows: Float32[np.ndarray, "n dim"]) -> dict[str, Any]:
        """The verdict of the head that the rows are farthest from; of heads without a rule, that it is unknown."""
        verdicts = [judge_distance(head, rows) for head in self.members]
        worst = [one for verdict in (False, None, True) for one in verdicts if one["in_distribution"] is verdict]
        alike = [one for one in worst if one["in_distribution"] is worst[0]["in_distribution"]]
        return max(alike, key=lambda one: one.get("distance", 0) / (one.get("limit") or 1))

    def document(self) -> dict[str, Any]:
        """The identity of the head, as JSON; of several, what they share, and each under `members`."""
        about = [_about(head) for head in self.members]
        if len(about) == 1:
            return about[0]
        shared = {name: value for name, value in about[0].items() if all(one[name] == value for one in about)}
        return {**dict.fromkeys(about[0]), **shared, "sha256": self.sha256, "members": about}


def load_heads(paths: Sequence[Path]) -> HeadEnsemble:
    """The heads in some checkpoints; errors of `load_checkpoint`.

    Raises:
        UsageError: no checkpoint, or the same head twice.
        CheckpointError: heads of other labels or inputs than the first.
    """
    heads = [load_checkpoint(path) for path in paths]
    if not heads:
        raise UsageError("--checkpoint: expected at least one head checkpoint")
    for k, (path, head) in enumerate(zip(paths, heads, strict=True)):
        for name in _ALIKE:
            if (expected := getattr(heads[0], name)) != (found := getattr(head, name)):
                raise CheckpointError(
                    f"{path} cannot be averaged with {paths[0]}: {name}: expected {expected}, found {found}; "
                    "give heads that were trained on the same labels and features"
                )
        if head.sha256 in [other.sha256 for other in heads[:k]]:
            raise UsageError(f"--checkpoint {path}: this head is named twice; name each once")
    return HeadEnsemble(tuple(heads), heads[0].thresholds if len(heads) == 1 else _mean_thresholds(heads))


def _mean_thresholds(heads: Sequence[HeadCheckpoint]) -> dict[str, Threshold]:
    """The thresholds as the probabilities are averaged: in logits."""
    origin = f"mean of the logits of the thresholds of {len(heads)} heads"
    values = np.array([[head.thresholds[label].value for label in heads[0].labels] for head in heads])
    means = sigmoid(logit(values).mean(axis=0))
    return {label: Threshold(float(mean), origin) for label, mean in zip(heads[0].labels, means, strict=True)}


def _about(head: HeadCheckpoint) -> dict[str, Any]:
    about = {name: getattr(head, name) for name in (*_IDENTITY, "metric_name", "best_metric")}
    return {**about, "labels": list(head.labels), "view": head.view.name}


def require_in_distribution(verdict: Mapping[str, Any], where: object) -> None:
    """Raise `OutOfScope` for a verdict of out of distribution."""
    for message in distribution_warnings(verdict):
        error = OutOfScope(f"{where}: {message}; use a head trained on such CT, or pass --force to compute anyway")
        error.rules = ("distribution",)
        raise error


def distribution_warnings(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The warning about a case out of distribution; none otherwise."""
    if verdict["in_distribution"] is not False:
        return ()
    return (
        f"unlike the CTs that the head was trained on: distance {verdict['distance']:.2f} from the training set, "
        f"expected at most {verdict['limit']:.2f}",
    )


def check_backbone(checkpoint: HeadCheckpoint, identity: BackboneIdentity, resize: int | None) -> list[str]:
    """Warnings about applying a head to embeddings of this backbone at `resize` pixels (None: unknown).

    Raises CheckpointError for other weights, preprocessing, resize or input size (lists expected and found), and for a
    head of another implementation.
    """
    if checkpoint.is_foreign:
        raise CheckpointError(
            "this head checkpoint was written by another implementation and trained on slices that lay transposed and "
            "were resized without antialiasing, so its probabilities would be wrong here; retraining on cached "
            f"features takes minutes: {command_of('train-rsna')} --series-csv YOUR.csv"
        )
    faults, mode = [], checkpoint.pool_mode
    *_, width = checkpoint.view.shape(1, identity.embed_dim)
    fitting = [factor * width for factor in POOL_MODES[mode]]
    if checkpoint.input_dim not in fitting:
        found = " or ".join(map(str, fitting))
        faults.append(f"input_dim: expected {checkpoint.input_dim}, found {found} (pool mode {mode})")
    if None not in (checkpoint.resize, resize) and checkpoint.resize != resize:
        faults.append(f"resize: expected {checkpoint.resize}, found {resize}")
    warnings = ["the checkpoint does not name the backbone it was trained on; check that this one is right"]
    if checkpoint.backbone is not None:
        unusable, slight = backbone_differences(checkpoint.backbone, asdict(identity))
        faults += unusable
        warnings = [f"the head was trained on embeddings of another {text}" for text in slight]
    if faults:
        raise CheckpointError(
            f"the head was not trained on embeddings of backbone {identity.name}: {'; '.join(faults)}; "
            f"compute embeddings with {_flags_of_training(checkpoint)}, or train a head on this backbone"
        )
    unstated = {
        "the checkpoint does not state the --resize of its training": checkpoint.resize is None,
        "the checkpoint does not state how its training embeddings were pooled": mode == "unknown",
        "the --resize of these embeddings is unknown": resize is None,
    }
    return warnings + [text for text, holds in unstated.items() if holds]


def _flags_of_training(checkpoint: HeadCheckpoint) -> str:
    """The flags that give the backbone and the size a head was trained on, as far as it states them."""
    resize = "the --resize of its training" if checkpoint.resize is None else f"--resize {checkpoint.resize}"
    if (trained := checkpoint.backbone) is None:
        return f"the --backbone and {resize}"
    name, digest = trained["name"], trained["weights_sha256"][:12]
    tokens = ", --tokens head" if trained.get("tokens") == "head" else ""
    return f"--backbone {name if name == 'demo' else f'PATH/{name}'} (weights {digest}){tokens} and {resize}"


def backbone_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences between two backbone identities: those that make embeddings incomparable, and slight ones."""
    expected, found = ({"tokens": "all", **one} for one in (expected, found))  # not stated by earlier versions
    both_int8 = expected["precision"] == found["precision"] == "int8"
    groups = (
        ("weights_sha256", "preprocessing", "patch_size", "rope_dtype", "tokens"),
        ("engine", "precision", "calibration_sha256") if both_int8 else ("engine", "precision"),
    )
    unusable, slight = (
        [f"{k}: expected {expected.get(k)}, found {found.get(k)}" for k in names if expected.get(k) != found.get(k)]
        for names in groups
    )
    return unusable, slight
