"""Which stack of a study is read if none is named.

The rule, in order of precedence: usable; at least `LEAST_SLICES` slices; original before derived; without a hint of
contrast; a head before another body part; a soft kernel before a sharp one; slices of 2 to 6 mm; most slices; lowest
series number; smallest UID.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meddinov3_stroke.ct.dicom.layout import layout_of
from meddinov3_stroke.ct.dicom.series import SINGLE_IMAGE, Stack, scaling_fault
from meddinov3_stroke.errors import AmbiguousInput, CorruptInput, MissingInput, Outcome, OutOfScope, UnsupportedInput

LEAST_SLICES = 8
"""A shorter stack is rarely a head; it is read if named, or if there is nothing else."""

USUAL_SPACING_MM = (2.0, 6.0)
"""Routine head CT is reconstructed at 2.5 to 5 mm."""

RULE = (
    "usable, at least 8 slices, original, without contrast, head, soft kernel, 2 to 6 mm, most slices, "
    "lowest series number"
)
"""The rule as `inspect` prints it."""

_SHARP = re.compile(
    r"bone|sharp|lung|edge|detail|ultra|knochen|\bos\b|骨|\b(?:[bhiju]|br|hr|hc|qr|ur)[6-9]\d|\bbl[5-9]\d|\bfc[358]\d"
    r"|^(?:y[abcde]|d|e|l)$",
    re.IGNORECASE,
)
"""Words and names of sharp kernels: GE BONE, EDGE, LUNG, DETAIL; Siemens B60 to U90, Hr60, J70, Bl57; Philips YA to YE,
D, E, L; Canon FC3x, FC5x, FC8x."""

_CONTRAST = re.compile(
    r"\bcta\b|angio|post[ -]?(?:con|gad|c\b)|\bc\+|\+ ?c\b|\bw/ ?c\b|\bce\b|contrast|enhanced|iohexol|omnipaque"
    r"|perfusion|\bctp\b|venog|arterial|venous|\bkm\b|\bpost con|增强",
    re.IGNORECASE,
)
_NO_CONTRAST = re.compile(
    r"(?:non|without|w/o|\bwo\b|\bno\b|pre|\bohne\b|\bsans\b)[ -]*(?:iv[ -]*)?(?:con(?:trast)?|km|enhanced)\w*|without"
    r"|w/o|\bwo\b|plain|\bnativ\w*|unenhanced|\bnc\b|\bnect\b|\bncct\b|\bnone\b|\bc-(?!\w)|\bohne\b|\bsans\b|平扫",
    re.IGNORECASE,
)
"""Negations of contrast, with the word they negate; the rest of the text may still mention contrast."""

_BOTH = re.compile(
    r"\bw(?:ith)?[ /]*(?:and|&|\+)?[ /]*w(?:/o|o|ithout)\b|\bw(?:/o|o|ithout)[ /]*(?:and|&|\+)[ /]*w(?:ith)?\b",
    re.IGNORECASE,
)
"""With and without contrast: the series may be either."""

_NO_AGENT = re.compile(r"\W*(?:no|n/?a|nil|not? given|0)?\W*", re.IGNORECASE)
"""Entries that mean no agent was given."""

_HEAD = re.compile(
    r"head|brain|skull|cran|crân|neuro|sch(?:ä|ae|a)del|cereb|hirn|cráneo|t[eê]te|kopf|cabe[zç]a|encéph|头|颅|脑",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"chest|thorax|lung|abdom|pelvi|spine|neck|cardiac|knee|foot|hand|sinus|orbit|胸|腹", re.IGNORECASE
)


@dataclass(frozen=True)
class Traits:
    """What the rule depends on."""

    is_original: bool
    has_contrast: bool
    is_head: bool
    is_elsewhere: bool
    is_sharp: bool
    is_usual_spacing: bool


def traits_of(stack: Stack) -> Traits:
    """The traits of a usable stack, from its headers and geometry."""
    first = stack.first
    words = f"{first.series_description} {first.body_part}"
    low, high = USUAL_SPACING_MM
    return Traits(
        is_original="DERIVED" not in first.image_type,
        has_contrast=contrast_hint(stack) != "",
        is_head=_HEAD.search(words) is not None,
        is_elsewhere=_ELSEWHERE.search(words) is not None and _HEAD.search(words) is None,
        is_sharp=_SHARP.search(first.kernel) is not None or _SHARP.search(first.series_description) is not None,
        is_usual_spacing=low <= layout_of(stack).nominal_mm <= high,
    )


def contrast_hint(stack: Stack) -> str:
    """The header text that suggests contrast; empty if there is none."""
    agent, description = stack.first.contrast, stack.first.series_description
    if not _NO_AGENT.fullmatch(agent) and not _NO_CONTRAST.search(agent):
        return f"agent {agent!r}"
    if _BOTH.search(description) or _CONTRAST.search(_NO_CONTRAST.sub(" ", description)):
        return f"description {description!r}"
    return ""


def choose(stacks: Sequence[Stack], series_uid: str | None, where: str, *, allow_single_slice: bool = False) -> Stack:
    """The stack to read: that of the named series; if it has several or none is named, the first by the rule.

    With `allow_single_slice`, a single image is read if there is nothing else.

    Raises:
        MissingInput: no such series.
        UnsupportedInput: no usable stack; the message says why.
        OutOfScope: only stacks that are not axial, or a single image.
        AmbiguousInput: several patients or studies, and no series named.
    """
    if series_uid is not None:
        stacks, where = _of_series(stacks, series_uid, where), f"{where}, series {series_uid}"
    usable = [stack for stack in stacks if stack.verdict == "usable"]
    if not usable and allow_single_slice:
        usable = [stack for stack in stacks if stack.reason == SINGLE_IMAGE]
    if not usable:
        raise _nothing_usable(stacks, where)
    _require_one_study(usable, where)
    return min(usable, key=rank)


def rank(stack: Stack) -> tuple[object, ...]:
    """Sort key of the rule; the smallest is preferred."""
    traits = traits_of(stack)
    return (
        len(stack.images) < LEAST_SLICES,
        not traits.is_original,
        traits.has_contrast,
        not traits.is_head,
        traits.is_elsewhere,
        traits.is_sharp,
        not traits.is_usual_spacing,
        -len(stack.images),
        stack.first.series_number is None,
        stack.first.series_number or 0,
        stack.series_instance_uid,
        stack.first.file,
    )


def _of_series(stacks: Sequence[Stack], series_uid: str, where: str) -> list[Stack]:
    of_series = [stack for stack in stacks if stack.series_instance_uid == series_uid]
    if not of_series:
        known = ", ".join(sorted({stack.series_instance_uid for stack in stacks})[:8]) or "none"
        raise MissingInput(f"{where} has no series {series_uid}; found {known}; list them with inspect")
    return of_series


def _nothing_usable(stacks: Sequence[Stack], where: str) -> Exception:
    refused = [stack for stack in stacks if stack.verdict == "refused"]
    reasons = "; ".join(f"{stack.series_instance_uid}: {stack.reason}" for stack in (refused or stacks)[:4])
    more = f" and {len(refused or stacks) - 4} more" if len(refused or stacks) > 4 else ""
    outside = [stack for stack in stacks if "off axial" in stack.reason or stack.reason == SINGLE_IMAGE]
    error = OutOfScope if outside and not refused else UnsupportedInput
    return error(f"{where} has no readable axial CT series: {reasons}{more}; list them with inspect")


def _require_one_study(usable: Sequence[Stack], where: str) -> None:
    patients = {stack.first.patient_id for stack in usable}
    studies = {stack.study_instance_uid for stack in usable}
    if len(patients) > 1 or len(studies) > 1:
        kind = f"{len(patients)} patients" if len(patients) > 1 else f"{len(studies)} studies"
        raise AmbiguousInput(
            f"{where} holds {kind}; expected one study; name its folder, or the series with --series UID (list them "
            "with inspect)"
        )


def outcome_of(stack: Stack) -> Outcome:
    """How reading this stack alone would end, as far as its headers show."""
    if stack.verdict != "usable":
        return Outcome.of(_nothing_usable([stack], stack.series_instance_uid))
    fault = scaling_fault(stack)
    return Outcome.of(CorruptInput(fault)) if fault else Outcome()
