"""Which stack of a study is read if none is named, and what `inspect` says about every series of an input."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from meddinov3_stroke.ct.contents import machine_errors, require_dicom_input
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.grouping import NO_CONTRAST, agent_of, difference
from meddinov3_stroke.ct.dicom.layout import layout_of
from meddinov3_stroke.ct.dicom.series import SINGLE_IMAGE, Stack, scaling_fault
from meddinov3_stroke.ct.dicom.survey import survey
from meddinov3_stroke.errors import AmbiguousInput, CorruptInput, MissingInput, Outcome, OutOfScope, UnsupportedInput

LEAST_SLICES, USUAL_SPACING_MM = 8, (2.0, 6.0)
"""A shorter stack is rarely a head, and routine head CT is reconstructed at 2.5 to 5 mm."""

RULE = (
    "usable, at least 8 slices, original, without contrast, head, soft kernel, 2 to 6 mm, most slices, "
    "lowest series number"
)
"""The rule in order of precedence, as `inspect` prints it."""

_SHARP = re.compile(
    r"bone|sharp|lung|edge|detail|ultra|knochen|\bos\b|骨|\b(?:[bhiju]|br|hr|hc|qr|ur)[6-9]\d|\bbl[5-9]\d|\bfc[358]\d"
    r"|^(?:y[abcde]|d|e|l)$",
    re.IGNORECASE,
)
"""Words and names of sharp kernels: GE BONE, EDGE, LUNG, DETAIL; Siemens B60 to U90, Hr60, J70, Bl57; Philips YA to YE,
D, E, L; Canon FC3x, FC5x, FC8x."""

_SHARP_SOFT_TISSUE = frozenset({"detail", "ultra", "d"})
"""Kernels that are sharp for soft tissue, but not for bone: another series is preferred, and none is refused."""

_CONTRAST = re.compile(
    r"\bcta\b|angio|post[ -]?(?:con|gad|c\b)|\bc\+|\+ ?c\b|\bw/ ?c\b|\bce\b|contrast|enhanced|iohexol"
    r"|omnipaque|perfusion|\bctp\b|venog|arterial|venous|\bkm\b|\d ?(?:cc|ml)\b"
    r"|\bpost\b(?![ -]?(?:op|fossa|trauma|surg))|增强",
    re.IGNORECASE,
)
_BOTH = re.compile(
    r"\bw(?:ith)?[ /]*(?:and|&|\+)?[ /]*w(?:/o|o|ithout)\b|\bw(?:/o|o|ithout)[ /]*(?:and|&|\+)[ /]*w(?:ith)?\b",
    re.IGNORECASE,
)
"""With and without contrast: the series may be either."""

_OTHER_MODALITIES = frozenset({"MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG"})
"""Readable images of a patient that are no CT (DICOM PS3.3 C.7.3.1.1.1)."""

_OUTSIDE = re.compile(rf"{SINGLE_IMAGE}$|off axial|, not HU$")
"""Reasons for which a readable stack is outside the intended use."""

_HEAD = re.compile(
    r"head|brain|skull|cran|crân|neuro|sch(?:ä|ae|a)del|cereb|hirn|cráneo|t[eê]te|kopf|cabe[zç]a|encéph|头|颅|脑",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"chest|thorax|lung|abdom|pelvi|spine|neck|cardiac|knee|foot|hand|sinus|orbit|胸|腹", re.IGNORECASE
)


def is_sharp(stack: Stack) -> bool:
    """Whether the kernel, or the description of the series, is that of a sharp reconstruction."""
    return any(_SHARP.search(words) for words in (stack.kernel, stack.first.series_description))


def region_of(stack: Stack) -> str:
    """`head` or `elsewhere` by the description of the series and the body part; empty if they name neither."""
    words = f"{stack.first.series_description} {stack.first.body_part}"
    return "head" if _HEAD.search(words) else "elsewhere" if _ELSEWHERE.search(words) else ""


def contrast_hint(stack: Stack) -> str:
    """The header text that suggests contrast; empty if there is none."""
    if agent := agent_of(stack.first):
        return f"agent {agent!r}"
    description = stack.first.series_description
    return f"description {description!r}" if _contrast_word(description) else ""


def intended_use_hints(stack: Stack) -> dict[str, str]:
    """Known words in the header against a non-contrast head CT, by their rule in `ct.scope.HEADER_RULES`."""
    first, description = stack.first, stack.first.series_description
    sharp, agent = _SHARP.search(stack.kernel), agent_of(first)
    is_bone = sharp is not None and sharp.group().lower() not in _SHARP_SOFT_TISSUE
    hints = {
        "body part": _region_elsewhere(first.body_part),
        "contrast in the header": "an agent" if agent else "",
        "kernel": sharp.group() if sharp and is_bone else "",
        "contrast in a description": "" if agent else _contrast_word(description),
        "region in a description": _region_elsewhere(description),
    }
    return {rule: word for rule, word in hints.items() if word}


def _contrast_word(description: str) -> str:
    found = _BOTH.search(description) or _CONTRAST.search(NO_CONTRAST.sub(" ", description))
    return found.group() if found else ""


def _region_elsewhere(words: str) -> str:
    found = _ELSEWHERE.search(words)
    return found.group() if found and not _HEAD.search(words) else ""


def choose(
    stacks: Sequence[Stack],
    series_uid: str | None,
    where: str,
    *,
    allow_single_slice: bool = False,
    is_joined: bool = False,
) -> Stack:
    """The stack to read: that of the named series; if it has several or none is named, the first by the rule.

    With `allow_single_slice`, a single image is read if there is nothing else.

    Raises:
        MissingInput: no such series.
        UnsupportedInput, OutOfScope: no usable stack, and why; `OutOfScope` for stacks off axial or single images.
        AmbiguousInput: several patients or studies, and no series named.
    """
    if series_uid is not None:
        known = ", ".join(sorted({stack.name for stack in stacks})[:8]) or "none"
        stacks = [
            stack
            for stack in stacks
            if series_uid in (stack.series_instance_uid, f"{stack.series_instance_uid}#{stack.number or 1}")
        ]
        if not stacks:
            raise MissingInput(f"{where} has no series {series_uid}; found {known}; list them with inspect")
        where = f"{where}, series {series_uid}"
    usable = [stack for stack in stacks if stack.verdict == "usable"]
    if not usable and allow_single_slice:
        usable = [stack for stack in stacks if stack.reason == SINGLE_IMAGE]
    if not usable:
        raise _nothing_usable(stacks, where, is_joined)
    n_patients = len({stack.first.patient_key for stack in usable})
    n_studies = len({stack.study_instance_uid for stack in usable})
    if n_patients > 1 or n_studies > 1:
        kind = f"{n_patients} patients" if n_patients > 1 else f"{n_studies} studies"
        names = sorted(stack.name for stack in usable)
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        remedy = f"name its folder, or the series with --series UID (one of {listed}; inspect describes them)"
        raise AmbiguousInput(f"{where} holds {kind}; expected one study; {remedy}")
    return min(usable, key=rank)


def rank(stack: Stack) -> tuple[object, ...]:
    """Sort key of the rule; the smallest is preferred."""
    first, (least_mm, most_mm) = stack.first, USUAL_SPACING_MM
    return (
        len(stack.images) < LEAST_SLICES,
        stack.is_derived,
        contrast_hint(stack) != "",
        ("head", "", "elsewhere").index(region_of(stack)),
        is_sharp(stack),
        not least_mm <= layout_of(stack).nominal_mm <= most_mm,
        *(-len(stack.images), first.series_number is None, first.series_number or 0),
        *(stack.series_instance_uid, stack.number, first.file),
    )


def _nothing_usable(stacks: Sequence[Stack], where: str, is_joined: bool = False) -> Exception:
    single = {(stack.series_instance_uid, stack.study_instance_uid) for stack in stacks if stack.reason == SINGLE_IMAGE}
    refused = [stack for stack in stacks if stack.verdict == "refused"]
    if len(single) > 1 and not refused and not is_joined:
        fault = f"every image has a series UID of its own ({len(single)} images)"
        if len({study for _, study in single}) == len(single):
            return UnsupportedInput(f"{where}: {fault} and a study UID too; export the study again")
        return UnsupportedInput(f"{where}: {fault}; read those of a study as one series with --join-series")
    reasons = "; ".join(f"{stack.name}: {stack.reason}" for stack in (refused or stacks)[:4])
    more = f" and {len(refused or stacks) - 4} more" if len(refused or stacks) > 4 else ""
    is_outside = any(stack.first.modality in _OTHER_MODALITIES or _OUTSIDE.search(stack.reason) for stack in stacks)
    error = OutOfScope if is_outside and not refused else UnsupportedInput
    return error(f"{where} has no readable axial CT series: {reasons}{more}; list them with inspect")


@dataclass(frozen=True)
class SeriesFacts:
    """Facts about one series, or about one stack of a series that has several."""

    study_instance_uid: str
    series_instance_uid: str
    name: str
    """What `--series` takes: the UID, with #1, #2, ... if the series has several stacks."""
    series_number: int | None
    modality: str
    description: str
    kernel: str
    n_images: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float, float] | None
    """(between slices, rows, columns); None if the images have no position, or for a single image."""
    tilt_degrees: float | None
    duplicates: tuple[str, ...]
    """Files that were dropped as copies."""
    contrast: str
    """The header text that suggests contrast."""
    transfer_syntax: str
    verdict: str
    """What the series is to a reader: used, set aside or refused."""
    reason: str
    """Why it is not used."""
    notes: tuple[str, ...]
    """In what it differs from the first stack of its series; gaps, missing slices, tilt."""
    outcome: Outcome
    """How reading it by its UID would end, as far as its headers show."""


@dataclass(frozen=True)
class Inspection:
    """The content of an input."""

    series: tuple[SeriesFacts, ...]
    without_images: tuple[tuple[str, str], ...]
    """(file, what it is)."""
    damaged: tuple[tuple[str, str], ...]
    """(file, why it cannot be read)."""
    n_files: int

    @property
    def is_of_single_images(self) -> bool:
        """Whether there is nothing but single images, each with a series UID of its own."""
        return not self.n_used and sum(one.reason == SINGLE_IMAGE for one in self.series) > 1

    @property
    def n_used(self) -> int:
        """Number of series that the rule selects, one for each patient and study."""
        return sum(one.verdict == "used" for one in self.series)


def inspect_dicom(path: Path, *, join_series: bool = False) -> Inspection:
    """Every series of the folder, archive, list or file at `path`; only headers are read.

    Raises:
        InputError, MachineError: as `open_files`, or not DICOM nor a container of it.
    """
    with machine_errors(path):
        require_dicom_input(path)
    with open_files(path) as files:
        found = survey(files, join_series=join_series)
    usable: dict[tuple[str, str], list[Stack]] = defaultdict(list)
    for stack in found.stacks:
        if stack.verdict == "usable":
            usable[stack.first.patient_key, stack.study_instance_uid].append(stack)
    used = {id(min(stacks, key=rank)) for stacks in usable.values()}
    first = {stack.series_instance_uid: stack for stack in found.stacks if stack.number == 1}
    return Inspection(
        series=tuple(_facts(stack, id(stack) in used, first.get(stack.series_instance_uid)) for stack in found.stacks),
        without_images=found.without_images,
        damaged=tuple((one.name, str(one.error)) for one in found.damaged),
        n_files=len(files),
    )


def _facts(stack: Stack, is_used: bool, first_of_series: Stack | None) -> SeriesFacts:
    first, outcome, layout = stack.first, Outcome(), None
    differing = difference(first_of_series.images, stack.images) if first_of_series and stack.number > 1 else ""
    verdict, reason = "used", ""
    if stack.verdict != "usable":
        verdict, reason = stack.verdict, stack.reason
        outcome = Outcome.of(_nothing_usable([stack], stack.name))
    else:
        layout = layout_of(stack)
        if not is_used:
            verdict, reason = "set aside", "the rule selects another series; name this one with --series"
        if fault := scaling_fault(stack):
            verdict, reason, outcome = "refused", fault, Outcome.of(CorruptInput(fault))
    return SeriesFacts(
        study_instance_uid=stack.study_instance_uid,
        series_instance_uid=stack.series_instance_uid,
        name=stack.name,
        series_number=first.series_number,
        modality=first.modality,
        description=first.series_description,
        kernel=stack.kernel,
        n_images=len(stack.images),
        rows=first.pixels.rows,
        columns=first.pixels.columns,
        spacing_mm=(layout.nominal_mm, *first.pixel_spacing_mm) if layout and first.pixel_spacing_mm else None,
        tilt_degrees=layout.tilt_degrees if layout else None,
        duplicates=tuple(image.file for image, _ in stack.set_aside),
        contrast=contrast_hint(stack),
        transfer_syntax=UID(first.transfer_syntax).name,
        verdict=verdict,
        reason=reason,
        notes=(*[f"differs from #1 in {differing}"][: bool(differing)], *(layout.notes if layout else ())),
        outcome=outcome,
    )
