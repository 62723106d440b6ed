"""Whether a volume is what the model is meant for: a non-contrast CT of a whole head, in HU.

Each rule compares one figure of the volume with its limits. Figures are taken on pixels of about `GRID_MM`, with numpy
alone, in a few milliseconds a slice. What the DICOM header says comes classified, without its free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32

from meddinov3_stroke.errors import OutOfScope, name_some
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU, Volume, VolumeSource, scaled_hu

GRID_MM = 2.0
AIR, BONE, BRAIN = (-1100.0, -850.0), 250.0, (0.0, 80.0)  # HU
"""Air around the head; cortical bone from here; median of a slice of brain, which lies at 20 to 45 HU in life."""
LEAST_BRAIN_CM2 = 20.0  # area inside the skull from which a slice counts; a newborn's largest has 60, an adult's 120
VESSEL_HU = (130.0, 400.0)  # contrast in vessels; fresh blood stays below 100, metal lies above

BLOCK = 4  # pixels a side of the squares over which noise is averaged
LEAST_STEP_HU = 4.0  # mean difference of slices two apart below which their order cannot be told; a head has 20

Mask = Bool[np.ndarray, "slice row col"]
Figures = Mapping[str, float]
Places = Mapping[str, tuple[int, ...]]  # figure -> the slices it is about


@dataclass(frozen=True)
class Finding:
    """A rule that a volume breaks."""

    rule: str
    is_refusal: bool
    """Refused, or read with a warning."""
    message: str
    slices: tuple[int, ...] = ()
    """The canonical slices concerned, 0-based, if the rule is about some of them."""


@dataclass(frozen=True)
class Scope:
    """The figures of a volume, and the rules it breaks."""

    figures: Figures
    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings for which the volume is refused."""
        return tuple(one for one in self.findings if one.is_refusal)

    def document(self) -> dict[str, Any]:
        """As JSON: `in_scope`, `findings` and `figures`."""
        return {
            "in_scope": not self.refusals,
            "findings": [vars(one) for one in self.findings],
            "figures": {name: round(value, 4) for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Rule:
    """A figure and the range it must lie in."""

    name: str
    figure: str
    low: int | float  # the run-time checks in the tests do not accept an int for a float
    high: int | float
    message: str
    """With `{value}` for the figure, and `{slices}` for the slices it is about."""
    verdict: Literal["refuse", "warn"] = "refuse"

    def judge(self, figures: Figures, places: Places, source: VolumeSource) -> Finding | None:
        """The finding if the figure is known and outside its range."""
        value, slices = figures.get(self.figure), places.get(self.figure, ())
        if value is None or self.low <= value <= self.high:
            return None
        message = self.message.format(value=f"{value:.3g}", slices=name_some(_slice_name(source, k) for k in slices))
        return Finding(self.name, self.verdict == "refuse", message, slices)


def _slice_name(source: VolumeSource, index: int) -> str:
    """The canonical index, with the Instance Number that viewers show, if there is one."""
    image = source.image_of(index)
    number = image.instance_number if image else None
    return str(index) if number is None else f"{index} (Instance Number {number})"


INF = float("inf")
RULES = (
    Rule("constant", "distinct_values", 3, INF, "{value} distinct voxel values; an image has many"),
    Rule("air", "air_share", 0.02, 0.97, "a share of {value} of the voxels is air (-1100 to -850 HU), expected 0.02 to "
         "0.97; the values are not HU, are windowed, or the background was removed"),
    Rule("noise", "pixel_correlation", 0.5, INF, "neighbouring pixels correlate by {value}, expected 0.5 or more; "
         "noise"),
    Rule("bone", "bone_share", 0.004, 0.4, "a share of {value} of the voxels is bone (above 250 HU), expected 0.004 to "
         "0.4; no skull, or not HU"),
    Rule("brain", "brain_mm", 30, INF, "{value} mm of slices show brain (0 to 80 HU) inside a closed skull, expected "
         "30 or more; not a head, skull-stripped, or not HU"),
    Rule("size", "brain_cm2", 45, 300, "the largest section inside the skull is {value} cm², expected 45 to 300; the "
         "pixel spacing may be wrong"),
    Rule("uniform", "brain_spread_hu", 6, INF, "the inside of the skull varies by {value} HU, expected 6 or more; a "
         "phantom"),
    Rule("contrast in vessels", "vessel_ml", -INF, 25, "{value} mL at 130 to 400 HU deep inside the skull, expected at "
         "most 25; contrast in vessels"),
    Rule("possible contrast", "vessel_ml", -INF, 8, "{value} mL at 130 to 400 HU deep inside the skull, usually below "
         "8; contrast in vessels, or calcification", "warn"),
    Rule("noise-free", "equal_share", -INF, 0.8, "a share of {value} of neighbouring brain pixels is equal, expected "
         "at most 0.8; synthetic or smoothed", "warn"),
    Rule("order", "step_ratio", -INF, 0.72, "neighbouring slices differ {value} times as much as slices two apart, "
         "expected at most 0.72; slices are shuffled"),
    Rule("dead slices", "dead_slices", -INF, 0, "slices with a single value throughout: {slices}"),
    Rule("repeated slices", "repeated_slices", -INF, 0, "slices that repeat the one below: {slices}"),
    Rule("jump", "largest_jump", -INF, 2.5, "two neighbouring slices differ {value} times as much as those around "
         "them; some may be missing between {slices}", "warn"),
    Rule("clipped", "unclipped_share", 0.03, INF, "a share of {value} of the voxels lies between air, soft tissue and "
         "bone, expected 0.03 or more; HU look clipped to a window", "warn"),
)  # fmt: skip
"""In the order in which they are reported. The limits are set so that real and generated heads pass with room to spare;
docs/intended-use.md has the rates."""

HEADER_RULES: Mapping[str, tuple[bool, str]] = {
    "body part": (True, "BodyPartExamined names another part than the head ({word})"),
    "contrast in the header": (True, "ContrastBolusAgent names a contrast agent"),
    "kernel": (True, "ConvolutionKernel is a sharp one for bone ({word}); soft tissue is too noisy"),
    "contrast in a description": (False, "SeriesDescription suggests contrast ({word})"),
    "region in a description": (False, "SeriesDescription names another region than the head ({word})"),
}
"""Rule on the DICOM header -> whether it refuses, and its message, with `{word}` for the word that decided."""


def judge(volume: Volume) -> Scope:
    """The scope of a volume: figures by name, and the rules of header and pixels that it breaks."""
    figures, places = measure(volume)
    named = [
        Finding(rule, refuses, message.format(word=volume.header_hints[rule]))
        for rule, (refuses, message) in HEADER_RULES.items()
        if rule in volume.header_hints
    ]
    measured = [rule.judge(figures, places, volume.source) for rule in RULES]
    return Scope(figures, (*named, *(one for one in measured if one is not None)))


def require_in_scope(document: Mapping[str, Any], where: object) -> None:
    """Raise `OutOfScope` with the first refusals of a scope's document, unless there is none."""
    refusals = [one for one in document.get("findings", ()) if one["is_refusal"]]
    if refusals:
        more = f" (and {len(refusals) - 2} more)" if len(refusals) > 2 else ""
        error = OutOfScope(
            f"{where}: not a non-contrast head CT in HU: {'; '.join(one['message'] for one in refusals[:2])}{more}; "
            "give the CT as the scanner made it, or pass --force to compute anyway"
        )
        error.rules = tuple(one["rule"] for one in refusals)
        raise error


def scope_warnings(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The findings as warnings."""
    kinds = {True: "outside the intended use", False: "check the intended use"}
    return tuple(f"{kinds[one['is_refusal']]}: {one['message']}" for one in document.get("findings", ()))


def measure(volume: Volume) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """The figures that the rules compare, and the slices some are about; no figures of brain where there is none."""
    hu, pixel_cm2 = _coarse(volume)
    slice_mm = volume.spacing_mm[0]
    inside, outside = _inside_and_outside(_grown(hu > BONE))
    inside &= ~_grown(~inside)
    area = inside.sum(axis=(1, 2)) * pixel_cm2
    medians = np.array([np.median(one[mask]) if mask.any() else np.nan for one, mask in zip(hu, inside, strict=True)])
    shows_brain = (area >= LEAST_BRAIN_CM2) & (medians > BRAIN[0]) & (medians < BRAIN[1])
    figures = {
        "distinct_values": float(len(np.unique(hu[:, ::4, ::4]))),
        "air_share": float(((hu > AIR[0]) & (hu < AIR[1])).mean()),
        "bone_share": float((hu > BONE).mean()),
        "pixel_correlation": _correlation(hu),
        "brain_mm": float(shows_brain.sum() * slice_mm),
        "unclipped_share": float((((hu > AIR[1]) & (hu < -40)) | ((hu > 110) & (hu < 280))).mean()),
    }
    order, places = _order(hu, shows_brain)
    figures |= order
    if shows_brain.any():
        deep = ~_grown(outside, round(1.6 * 10 / GRID_MM))
        vessels = (hu > VESSEL_HU[0]) & (hu < VESSEL_HU[1]) & deep & _above_base(hu, deep, shows_brain)[:, None, None]
        figures |= {
            "brain_cm2": float(area[shows_brain].max()),
            "brain_hu": float(np.median(medians[shows_brain])),
            "brain_spread_hu": _spread(hu[shows_brain], inside[shows_brain]),
            "vessel_ml": float(vessels.sum() * pixel_cm2 * slice_mm / 10),
        }
    return figures, places


def _coarse(volume: Volume) -> tuple[Float32[np.ndarray, "slice row col"], float]:
    """HU on pixels of about `GRID_MM`, and the area of one in cm²; every nth pixel, so that no value is made up."""
    rows, columns = (max(1, round(GRID_MM / mm)) for mm in volume.spacing_mm[1:])
    hu = scaled_hu(volume.stored[:, ::rows, ::columns], volume.slope, volume.intercept)
    hu[~np.isfinite(hu) | (hu < PADDING_BELOW_HU)] = AIR_HU
    return hu, rows * volume.spacing_mm[1] * columns * volume.spacing_mm[2] / 100


def _grown(mask: Mask, n: int = 1) -> Mask:
    """The mask and all pixels within `n` steps of it in its slice."""
    for _ in range(n):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def _inside_and_outside(wall: Mask) -> tuple[Mask, Mask]:
    """Pixels that the wall closes off from the border of their slice, and those that it does not."""
    free = np.pad(~wall, ((0, 0), (1, 2), (1, 2)), constant_values=True)
    free[:, -1] = free[:, :, -1] = False  # ends the runs of pixels along a row or column
    reached, n_reached = np.zeros_like(free), 0
    reached[:, 0, :-1] = True
    while (n := int(np.count_nonzero(reached))) != n_reached:
        n_reached = n
        reached = _spread_along_rows(reached, free)
        turned = _spread_along_rows(reached.transpose(0, 2, 1), free.transpose(0, 2, 1))
        reached = turned.transpose(0, 2, 1)
    outside = reached[:, 1:-2, 1:-2]
    return ~outside & ~wall, outside


def _spread_along_rows(reached: Mask, free: Mask) -> Mask:
    """The whole runs of free pixels that hold a reached one."""
    run = np.cumsum(~free.ravel(), dtype=np.int64).reshape(free.shape)
    is_reached = np.zeros(int(run[-1, -1, -1]) + 1, dtype=bool)
    is_reached[run[reached]] = True
    return np.asarray(is_reached[run] & free)


def _correlation(hu: Float32[np.ndarray, "slice row col"]) -> float:
    if hu.shape[2] < 3 or not hu.std():
        return 0.0
    return float(np.corrcoef(hu[:, :, :-1].ravel(), hu[:, :, 1:].ravel())[0, 1])


def _above_base(hu: Float32[np.ndarray, "slice row col"], deep: Mask, shows_brain: Bool[np.ndarray, " slice"]) -> Any:
    """Slices of brain without the bone of the skull's base in the middle."""
    bone = (deep & (hu > VESSEL_HU[1])).sum(axis=(1, 2))
    return shows_brain & (bone <= 0.02 * deep.sum(axis=(1, 2)))


def _blocks(values: np.ndarray) -> np.ndarray:
    """[slice, row, column, pixels] of squares of `BLOCK` pixels; what is left at the far sides is dropped."""
    rows, columns = (max(n // BLOCK, 1) for n in values.shape[1:])
    padding = [(0, 0), *((0, max(0, BLOCK - n)) for n in values.shape[1:])]
    cut = np.pad(values, padding, mode="edge")[:, : rows * BLOCK, : columns * BLOCK]
    cut = cut.reshape(len(values), rows, BLOCK, columns, BLOCK)
    return cut.swapaxes(2, 3).reshape(len(values), rows, columns, BLOCK**2)


def _spread(hu: Float32[np.ndarray, "slice row col"], inside: Mask) -> float:
    """95th minus 5th percentile of means over blocks inside the skull: tissue differs by more than noise does."""
    means = _blocks(hu).mean(axis=3)[_blocks(inside).all(axis=3)]
    return float(np.ptp(np.percentile(means, [5, 95]))) if means.size else 0.0


def _order(
    hu: Float32[np.ndarray, "slice row col"], shows_brain: Bool[np.ndarray, " slice"]
) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """How slices follow one another. Empty slices beyond the head count as neither dead nor repeated."""
    clipped = _blocks(hu.clip(-200, 300)).mean(axis=3)  # without most of the noise
    step, two_steps = (
        np.abs(clipped[n:] - clipped[:-n]).mean(axis=(1, 2)) if len(hu) > n else np.zeros(1) for n in (1, 2)
    )
    is_flat = np.ptp(hu.reshape(len(hu), -1), axis=1) == 0
    body = np.flatnonzero(~is_flat)
    first, last = (int(body[0]), int(body[-1])) if len(body) else (0, len(hu) - 1)
    if len(body) and not shows_brain[first]:
        is_flat[:first] = False  # empty below the head
    if len(body) and not shows_brain[last]:
        is_flat[last + 1 :] = False
    brain = (hu > BRAIN[0]) & (hu < BRAIN[1])
    is_equal = (hu[:, :, 1:] == hu[:, :, :-1]) & brain[:, :, 1:]
    equal = is_equal.sum(axis=(1, 2)) / np.maximum(brain[:, :, 1:].sum(axis=(1, 2)), 1)
    is_scanned = shows_brain & (equal < 0.8)  # slices without noise may be equal by nature
    repeated = np.flatnonzero((step == 0) & is_scanned[1:]) + 1 if len(hu) > 1 else np.zeros(0, np.int64)
    around = (step[:-2] + step[2:]) / 2 if len(step) > 2 else np.ones(0)
    jump = np.divide(step[1:-1], around, out=np.zeros_like(around), where=around > 0) * shows_brain[1 : len(around) + 1]
    at = int(jump.argmax()) + 1 if len(jump) else 0
    figures = {
        "step_ratio": float(step.mean() / two_steps.mean()) if two_steps.mean() > LEAST_STEP_HU else 0.0,
        "dead_slices": float(is_flat.sum()) if len(body) else 0.0,
        "repeated_slices": float(len(repeated)),
        "equal_share": float(np.median(equal[shows_brain])) if shows_brain.any() else 0.0,
        "largest_jump": float(jump.max(initial=0.0)),
    }
    dead = tuple(np.flatnonzero(is_flat).tolist())
    return figures, {
        "dead_slices": dead,
        "repeated_slices": tuple(repeated.tolist()),
        "largest_jump": (at, at + 1),
    }
