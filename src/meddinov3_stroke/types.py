"""The six labels, and what modules exchange: Volume -> SliceEmbeddings -> HeadOutput -> CaseFindings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int8, Int64, Real

LABELS: tuple[str, ...] = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
"""The six labels of the RSNA 2019 intracranial haemorrhage challenge, always in this order."""

AIR_HU, PADDING_BELOW_HU = -1000.0, -1024.0
"""HU given to padding and to non-finite voxels; values below the second are padding (-1500, -2000, -3024 occur)."""


def scaled_hu(stored: Real[np.ndarray, "*shape"], slope: float, intercept: float) -> Float32[np.ndarray, "*shape"]:
    """`stored * slope + intercept` in float32; values beyond its range become infinite, nothing is mapped to air."""
    with np.errstate(over="ignore", invalid="ignore"):
        hu = stored.astype(np.float32)
        if slope != 1.0:
            hu *= np.float32(slope)
        if intercept != 0.0:
            hu += np.float32(intercept)
    return hu


CASE_ID_DIGITS, SHORT_UID = 12, 8
"""Digits of a case id, the start of the sha256 of the input's content; last characters of a series UID on pictures."""

STACK_NUMBER = re.compile(r"#\d+$")
"""Ending of a series name: `UID#2` is the second volume of a series that has several, as `inspect` lists them."""


@dataclass(frozen=True)
class VolumeInput:
    """Where a volume is to be read from."""

    path: Path  # a NIfTI file; a DICOM file, folder, archive or list of files (.txt); or a header index (.parquet)
    series_uid: str | None = None
    """The series to read if the path holds several, as `inspect` names it (UID, or UID#2 for the second volume of a
    series); without it the rule of `ct.dicom.choice` decides."""
    format: Literal["nifti", "dicom"] | None = None
    """The only format accepted at `path`, as a column of a series table implies; None accepts both."""
    join_series: bool = False
    """Read the slices of a DICOM study as one series, whatever their series UIDs."""


@dataclass(frozen=True)
class SliceImage:
    """The DICOM image a slice was read from."""

    sop_instance_uid: str
    frame_number: int | None = None
    """1-based, as DICOM counts, in a multi-frame object; None if the object is the image."""
    instance_number: int | None = None
    """As viewers show it; slices are not ordered by it."""


@dataclass(frozen=True, eq=False)
class VolumeSource:
    """Where a volume came from, without any patient attribute."""

    path: Path
    format: str  # `nifti` or `dicom`
    sha256: str
    """Digest of the file's bytes; of DICOM, of the digests of the files read, their frames and the reader's version."""
    pixels_sha256: str  # digest of the stored voxels in canonical orientation, with dtype, shape, slope and intercept
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    images: tuple[SliceImage, ...] = ()  # the image of each canonical slice; empty for NIfTI

    @property
    def label(self) -> str:
        """The case id, and the end of the series UID if there is one: for pictures, which carry no path."""
        uid = self.series_instance_uid
        return f"Case {self.sha256[:CASE_ID_DIGITS]}" + (f" · series ...{uid[-SHORT_UID:]}" if uid else "")

    def image_of(self, slice_index: int) -> SliceImage | None:
        """The image a canonical slice was read from, if known."""
        return self.images[slice_index] if self.images else None


@dataclass(frozen=True, eq=False)
class Volume:
    """A head CT: slices inferior -> superior, rows anterior -> posterior, columns patient right -> left.

    Voxels stay in their stored dtype; `hu` and `hu_slices` give float32 HU with padding as air. Coordinates: RAS+ mm.
    """

    stored: Real[np.ndarray, "slice row col"]
    slope: float
    intercept: float
    affine: Float64[np.ndarray, "4 4"]
    """Maps (slice, row, col, 1) to RAS+ mm; uneven slices count as even between the first and the last."""
    slice_positions_mm: Float64[np.ndarray, "slice 3"]
    """RAS+ mm of the centre of voxel (row 0, col 0) of each slice, as acquired."""
    slice_steps_mm: Float64[np.ndarray, "slice 3 2"]
    """RAS+ mm from a voxel to the next along the row index and the column index, of each slice."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column): nominal distance between slice centres along the slice axis, then pixel spacing."""
    source: VolumeSource
    n_padding_voxels: int = 0  # voxels below `PADDING_BELOW_HU` that read as `AIR_HU`
    header_hints: Mapping[str, str] = field(default_factory=dict)
    """Words in the DICOM header against the intended use, by the rule in `ct.scope.HEADER_RULES`. Only words that the
    rule knows are kept: free text may name a patient."""
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sides = " x ".join(f"{side:g}" for side in self.spacing_mm)
        return f"Volume({str(self.source.path)!r}, {' x '.join(map(str, self.stored.shape))} voxels of {sides} mm)"

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return int(self.stored.shape[0])

    def hu_slices(self, slice_indices: Sequence[int] | Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n row col"]:
        """Float32 HU of the given canonical slices; padding and non-finite voxels read as air."""
        picked = np.asarray(self.stored[np.asarray(slice_indices, dtype=np.int64)])
        hu = scaled_hu(picked, self.slope, self.intercept)
        hu[~np.isfinite(hu) | (hu < PADDING_BELOW_HU)] = AIR_HU
        return hu

    @cached_property
    def hu(self) -> Float32[np.ndarray, "slice row col"]:
        """Float32 HU of the whole volume (computed once)."""
        return self.hu_slices(np.arange(self.n_slices))


@dataclass(frozen=True, eq=False)
class SliceTokens:
    """The class tokens of some slices and, on request, their patch tokens; both after the final norm."""

    cls: Float32[np.ndarray, "n dim"]
    patches: Float32[np.ndarray, "n patch dim"] | None
    grid: tuple[int, int]  # (rows, columns) of the patch grid


@dataclass(frozen=True)
class Preprocessing:
    """What the weights expect of a slice; never a user's choice."""

    hu_min: float
    hu_max: float
    mean: float
    std: float
    version: str  # name of the recipe: order of steps and interpolation


@dataclass(frozen=True)
class BackboneIdentity:
    """All that decides what a backbone computes; part of every cache key, checkpoint and output."""

    name: str  # `demo`, or the file's name; for display only
    weights_sha256: str  # digest of the tensors: a .pth and a .safetensors file of the same weights share it
    embed_dim: int
    patch_size: int
    rope_dtype: str
    preprocessing: Preprocessing
    engine: str
    precision: str
    calibration_sha256: str | None = None  # digest of the quantized graph, for int8 alone
    tokens: str = "all"  # of a slice; `head`: without those of patches of pure air (in a cache key the view says it)


@dataclass(frozen=True)
class SliceSelection:
    """Which slices of a volume are embedded: every `stride`-th, then at most `max_slices` evenly spaced (0: all)."""

    stride: int = 1
    max_slices: int = 0


@dataclass(frozen=True, eq=False)
class SliceEmbeddings:
    """The class tokens of a volume's chosen slices and where they came from."""

    cls: Float32[np.ndarray, "n dim"]
    slice_indices: Int64[np.ndarray, " n"]
    n_slices: int  # slices in the whole volume
    resize: int
    selection: SliceSelection
    backbone: BackboneIdentity
    source: VolumeSource
    warnings: tuple[str, ...] = ()
    scope: Mapping[str, Any] = field(default_factory=dict)
    """`ct.scope.Scope.document()` of the volume."""
    others: Mapping[str, np.ndarray] = field(default_factory=dict)  # by view, where others were asked for; not stored


def sigmoid(logits: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """1 / (1 + exp(-logit)), in float64 and without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))))


def logit(probabilities: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The inverse of `sigmoid`; probabilities of 0 and 1 count as 1e-9 and 1 - 1e-9."""
    inside = probabilities.astype(np.float64).clip(1e-9, 1 - 1e-9)
    return np.asarray(np.log(inside) - np.log1p(-inside))


@dataclass(frozen=True)
class Calibrator:
    """A rising map from logits to probabilities that are frequencies.

    `none`, `temperature` and `sigmoid` are 1 / (1 + exp(-(slope z + intercept))); `isotonic` is linear between knots,
    within 1e-6 of 0 and 1, whose logarithms are infinite.
    """

    kind: str
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # (logit, probability), rising

    def apply(self, logits: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The calibrated probabilities of some logits."""
        scores = logits.astype(np.float64)
        if self.kind != "isotonic":
            return sigmoid(self.slope * scores + self.intercept)
        return np.asarray(np.clip(np.interp(scores, *np.array(self.knots).T), 1e-6, 1 - 1e-6))


@dataclass(frozen=True)
class Calibrated:
    """A probability after calibration, and where 95 % of the refits of its calibrator lie; None, with the reason, where
    there is no calibration."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """What a head computes from rows of embeddings, or from the slices of cases."""

    logits: Float[np.ndarray, "n label"]
    labels: tuple[str, ...]
    slice_logits: Float[np.ndarray, "slice label"] | None = None  # of heads that look at slices
    patch_logits: Float[np.ndarray, "slice patch label"] | None = None  # of heads that look at patches, where asked for

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, "n label"]:
        """Sigmoid of the logits, in float64."""
        return sigmoid(self.logits)


@dataclass(frozen=True)
class Threshold:
    """A decision threshold on a probability, and where it came from."""

    value: float
    origin: str  # such as `validation Youden (12 positive of 60)`, or `default 0.5: <reason>`


@dataclass(frozen=True, eq=False)
class HeadData:
    """What a head is trained or tested on: with `starts`, row i is `embeddings[starts[i] : starts[i + 1]]`, which are
    vectors of slices, or patches [slice, patch, dim] that may be int8 multiples of `scale`."""

    embeddings: Real[np.ndarray, "row ..."]
    labels: Int8[np.ndarray, "n label"]  # 0 or 1
    groups: tuple[str, ...] | None = None  # the patient of each row, if known
    pixels: tuple[str, ...] | None = None  # `VolumeSource.pixels_sha256` of each row, if known
    starts: Int64[np.ndarray, " n_and_1"] | None = None
    slice_labels: Int8[np.ndarray, "slice label"] | None = None  # 0, 1, or -1 where unknown
    positions_mm: Float32[np.ndarray, " slice"] | None = None  # along the head, from the middle of its stack
    scale: Float32[np.ndarray, " dim"] | None = None

    def values(self, slices: Any) -> Float32[np.ndarray, "n ..."]:
        """Some of the embeddings in float32, scaled."""
        found = self.embeddings[slices].astype(np.float32)
        return found if self.scale is None else np.asarray(found * self.scale)


@dataclass(frozen=True)
class TopSlice:
    """A slice that the head ranks as suspicious."""

    slice_index: int  # 0-based in the canonical volume, inferior -> superior
    score: float  # P(any), or without `any` the maximum over labels
    position_mm: tuple[float, float, float]  # RAS+ mm of the slice's first voxel centre
    probabilities: Mapping[str, float]
    reference_patch: tuple[int, int] | None = None
    """(row, column) in the patch grid of the reference patch of its similarity map."""
    image: SliceImage | None = None  # the DICOM image the slice was read from, if any

    @property
    def instance_number(self) -> int | None:
        """The number under which viewers show the slice, if DICOM states it."""
        return self.image.instance_number if self.image else None


@dataclass(frozen=True, eq=False)
class CaseFindings:
    """The result of one case."""

    probabilities: Mapping[str, float]
    thresholds: Mapping[str, Threshold]
    decisions: Mapping[str, bool]
    top_slices: tuple[TopSlice, ...]
    embeddings: SliceEmbeddings
    volume_embedding: Float32[np.ndarray, " width"]
    """The pooled slice embeddings: the head's input, or their mean if the head takes slices."""
    slice_probabilities: Float64[np.ndarray, "n label"] | None  # per embedded slice; None if the head takes pooled rows
    map_slices: tuple[TopSlice, ...]  # the slices of the similarity maps: `top_slices`, or the one that was asked for
    similarity: Float32[np.ndarray, "shown h w"]  # patch similarity of each of `map_slices`
    map_hu: Float32[np.ndarray, "shown row col"]  # HU of each of `map_slices`, for the picture
    spacing_mm: tuple[float, float, float]
    ranking: str  # how the slices were ranked, in words
    reference_rule: str  # how the reference patch of each map was chosen, in words
    head: Mapping[str, Any]  # identity of the head: sha256, pool mode, labels, training backbone
    device: str
    elapsed_s: float
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds of each step
    probabilities_of_heads: tuple[Mapping[str, float], ...] = ()  # of each head, where several were averaged
    distribution: Mapping[str, Any] = field(default_factory=dict)
    """`in_distribution`, and the figures behind it or the reason why it is None (`heads.distribution`)."""
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)
    operating_point: str | None = None
    """The point of the checkpoint whose thresholds decide, on calibrated probabilities where there are any; None if
    thresholds on the probabilities decide."""
    indeterminate: tuple[str, ...] = ()  # labels whose threshold lies in the interval of the calibrated probability
    notices: tuple[str, ...] = ()
    """Those of the warnings that every output repeats: what stands against the intended use."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def classification(self) -> dict[str, str]:
        """Label -> positive, negative or indeterminate."""
        words = {label: "positive" if decided else "negative" for label, decided in self.decisions.items()}
        return words | dict.fromkeys(self.indeterminate, "indeterminate")

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Label -> lowest and highest probability of the heads that were averaged; empty for a single head."""
        found = {label: [one[label] for one in self.probabilities_of_heads] for label in self.probabilities}
        return {label: (min(each), max(each)) for label, each in found.items() if each}

    def __repr__(self) -> str:
        found = ", ".join(f"{label} {probability:.3f}" for label, probability in self.probabilities.items())
        return f"CaseFindings({found}, {len(self.warnings)} warnings)"
