"""Every series of an input with a verdict (used, set aside or refused) and its reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from meddinov3_stroke.ct.contents import machine_errors, require_dicom_input
from meddinov3_stroke.ct.dicom.choice import contrast_hint, outcome_of, rank
from meddinov3_stroke.ct.dicom.files import open_files
from meddinov3_stroke.ct.dicom.layout import layout_of
from meddinov3_stroke.ct.dicom.series import Stack, scaling_fault
from meddinov3_stroke.ct.dicom.survey import Survey, survey
from meddinov3_stroke.errors import Outcome


@dataclass(frozen=True)
class SeriesFacts:
    """Facts about one series, or about one stack of a series that has several."""

    study_instance_uid: str
    series_instance_uid: str
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
    """The header text that suggests contrast; empty if there is none."""
    transfer_syntax: str
    verdict: str
    """What the series is to a reader: used, set aside or refused."""
    reason: str
    """Why it is not used; empty if it is."""
    notes: tuple[str, ...]
    """Gaps, missing slices, tilt."""
    outcome: Outcome
    """How reading it by its UID would end, as far as its headers show."""


@dataclass(frozen=True)
class Inspection:
    """The content of an input."""

    path: Path
    series: tuple[SeriesFacts, ...]
    without_images: tuple[tuple[str, str], ...]
    """(file, what it is)."""
    damaged: tuple[tuple[str, str], ...]
    """(file, why it cannot be read)."""
    n_files: int

    @property
    def n_used(self) -> int:
        """Number of series that the rule selects, one for each patient and study."""
        return sum(one.verdict == "used" for one in self.series)


def inspect_dicom(path: Path) -> Inspection:
    """Every series of the folder, archive, list or file at `path`; only headers are read.

    Raises:
        MissingInput: not found.
        UnsupportedInput: not DICOM nor a container of it, or too many files.
        CorruptInput: a damaged archive.
        MachineError: the machine cannot read the files.
    """
    with machine_errors(path):
        require_dicom_input(path)
    with open_files(path) as files:
        found = survey(files)
    used = _used(found)
    return Inspection(
        path=path,
        series=tuple(_facts(stack, any(stack is one for one in used)) for stack in found.stacks),
        without_images=found.without_images,
        damaged=tuple((name, str(error)) for name, error in found.damaged),
        n_files=len(files),
    )


def _used(found: Survey) -> list[Stack]:
    """The stack that the rule selects for each patient and study."""
    usable: dict[tuple[str, str], list[Stack]] = defaultdict(list)
    for stack in found.stacks:
        if stack.verdict == "usable":
            usable[stack.first.patient_id, stack.study_instance_uid].append(stack)
    return [min(stacks, key=rank) for stacks in usable.values()]


def _facts(stack: Stack, is_used: bool) -> SeriesFacts:
    first = stack.first
    layout = layout_of(stack) if stack.verdict == "usable" else None
    verdict, reason = _verdict(stack, is_used)
    between = None
    if layout is not None and first.pixel_spacing_mm is not None:
        between = (layout.nominal_mm, *first.pixel_spacing_mm)
    return SeriesFacts(
        study_instance_uid=stack.study_instance_uid,
        series_instance_uid=stack.series_instance_uid,
        series_number=first.series_number,
        modality=first.modality,
        description=first.series_description,
        kernel=first.kernel,
        n_images=len(stack.images),
        rows=first.pixels.rows,
        columns=first.pixels.columns,
        spacing_mm=between,
        tilt_degrees=None if layout is None else layout.tilt_degrees,
        duplicates=tuple(image.file for image, _ in stack.set_aside),
        contrast=contrast_hint(stack),
        transfer_syntax=UID(first.transfer_syntax).name,
        verdict=verdict,
        reason=reason,
        notes=() if layout is None else layout.notes,
        outcome=outcome_of(stack),
    )


def _verdict(stack: Stack, is_used: bool) -> tuple[str, str]:
    if stack.verdict != "usable":
        return stack.verdict, stack.reason
    if fault := scaling_fault(stack):
        return "refused", fault
    return ("used", "") if is_used else ("set aside", "the rule selects another series; name this one with --series")
