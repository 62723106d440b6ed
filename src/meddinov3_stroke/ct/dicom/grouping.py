"""Which images of a series belong together, and in what two groups of images differ.

Some attributes always separate images: patient, study, series, size, kernel, contrast agent, frame of reference,
orientation, pixel spacing, and reformats. Others (phase, acquisition, original or derived) separate only images that
could not be one volume: they share positions, or interleave unevenly.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.dicom.header import ImageHeader

DIRECTION_TOLERANCE, SPACING_TOLERANCE_MM = 5e-3, 1e-3
"""Differences in direction cosines (0.3 degrees) and pixel spacing (rounding to 3 decimals) within which two images
have the same plane. Each slice keeps its own."""

_PLANE_TOLERANCES = np.repeat([DIRECTION_TOLERANCE, SPACING_TOLERANCE_MM], [6, 2])

MAX_PLANES, MAX_PASSES = 64, 256
"""Orientations accepted in one series, and passes; images of further ones are refused. A reformat has a few planes."""

POSITION_TOLERANCE_MM = 0.01
"""Images closer than this along the normal share a position; the thinnest CT reconstructions are 0.1 mm apart."""

DERIVED, LEAST_DERIVED_SHARE = "DERIVED", 0.25
"""Derived images that are fewer than this share of a series are no slices of it."""

UNEVEN_SHARE = 0.1
"""Share of the median gap by which two gaps must differ to count as different here; scanners round positions."""

_NO_AGENT = re.compile(
    r"\W*(?:non?|n[./]?a|nil|not? (?:given|used)|no iv|unknown|false|0(?: ?ml)?|kein\w*|nein|aucun\w*|ningun[oa]?"
    r"|nessuno|geen|nenhum|无.*|未.*)?\W*",
    re.IGNORECASE,
)
"""Entries that mean no agent was given."""

NO_CONTRAST = re.compile(
    r"(?:non|without|w/o|\bwo\b|\bno\b|pre|\bohne\b|\bsans\b)[ -]*(?:iv[ -]*)?(?:con(?:trast)?|km|enhanced)\w*|without"
    r"|w/o|\bwo\b|\b(?:sin|senza|sem|pas de|zonder|geen|ohne|sans|none|nc|nect|ncct)\b|plain|\bnativ\w*|unenhanced"
    r"|\bc-(?!\w)|平扫",
    re.IGNORECASE,
)
"""Negations of contrast, with the word they negate; the rest of the text may still mention contrast."""

_KERNEL = re.compile(
    r"[A-Z]{1,3}\d{1,3}[A-Z]?(?:\\\d)?|[A-E]|[UY][A-E]|STANDARD|STD|SOFT|SMOOTH|SHARP|BRAIN|HEAD|BONE(?:PLUS)?|DETAIL|EDGE"
    r"|LUNG|CHEST|ULTRA",
    re.IGNORECASE,
)
"""Kernels as scanners name them; other text could name a patient and is not repeated."""

MOST_VALUES = 3
"""Values that a warning lists of one attribute."""

_REFORMAT = re.compile(r"\b(?:MPR|MIP|MINIP|MPVR|REFORMAT\w*|PROJECTION|AVERAGED?|VRT|SSD|CPR|SUBTRACT\w*)\b")
"""Words of Image Type for images computed from slices."""


def agent_of(image: ImageHeader) -> str:
    """The contrast agent; empty if the entry means that none was given."""
    agent = image.contrast
    return "" if _NO_AGENT.fullmatch(agent) or NO_CONTRAST.search(agent) else agent


def _agent_key(image: ImageHeader) -> str:
    return "".join(agent_of(image).split()).casefold()


def _reformat(image: ImageHeader) -> str:
    return " ".join(_REFORMAT.findall("\\".join(image.image_type)))


def _kind(image: ImageHeader) -> str:
    return DERIVED if DERIVED in image.image_type else "ORIGINAL"


_PHASES: dict[str, Callable[[ImageHeader], int | None]] = {
    "temporal position": lambda image: image.temporal_position,
    "frame acquisition number": lambda image: image.frame_acquisition_number,
    "acquisition number": lambda image: image.acquisition_number,
    "series number": lambda image: image.series_number,
}

_SEPARATORS: dict[str, Callable[[ImageHeader], Hashable]] = {
    **_PHASES,
    "series UID": lambda image: image.series_instance_uid,
    "kernel": lambda image: image.kernel,
    "frame of reference": lambda image: image.frame_of_reference_uid,
    "image type": _kind,
    "orientation": lambda image: tuple(np.round(image.directions.ravel(), 3).tolist()),
    "pixel spacing": lambda image: tuple(np.round(image.pixel_spacing_mm or (), 3).tolist()),
}
"""What separates images that cannot be one volume, in the order in which it is tried."""

_OWNERS: dict[str, Callable[[ImageHeader], str]] = {
    "patient": lambda image: image.patient_key,  # never printed
    "study": lambda image: image.study_instance_uid,
}

_DIFFERENCES: dict[str, Callable[[ImageHeader], Hashable]] = {
    "size": lambda image: f"{image.pixels.rows} x {image.pixels.columns}",
    **{name: of for name, of in _SEPARATORS.items() if name not in ("series UID", "orientation")},
    "contrast agent": lambda image: "stated" if agent_of(image) else "none",  # free text may name a patient
    "reformat": _reformat,
}


def phase_of(image: ImageHeader) -> tuple[tuple[bool, int], ...]:
    """Temporal position, acquisition and series numbers, as a sort key."""
    return tuple((number is not None, number or 0) for number in (of(image) for of in _PHASES.values()))


def groups(images: Iterable[ImageHeader], *, join_series: bool) -> list[list[ImageHeader]]:
    """Images alike in all that always separates, but for orientation and pixel spacing.

    A kernel or frame of reference that some images lack is that of the others, if these agree.
    """
    series: dict[tuple[object, ...], list[ImageHeader]] = defaultdict(list)
    for image in images:
        uid = "" if join_series else image.series_instance_uid
        size = image.pixels.rows, image.pixels.columns
        series[(image.patient_key, image.study_instance_uid, uid, *size, _reformat(image))].append(image)
    found: list[list[ImageHeader]] = []
    for of_series in series.values():
        apart: dict[tuple[str, ...], list[ImageHeader]] = defaultdict(list)
        n_derived = sum(_kind(image) == DERIVED for image in of_series)
        is_few = 0 < n_derived < LEAST_DERIVED_SHARE * len(of_series)  # a picture among slices, not half of a head
        kernels = _completed([image.kernel for image in of_series])
        frames = _completed([image.frame_of_reference_uid for image in of_series])
        for image, *key in zip(of_series, kernels, frames, strict=True):
            apart[(*key, _agent_key(image), DERIVED if is_few and _kind(image) == DERIVED else "")].append(image)
        found += apart.values()
    return found


def _completed(values: Sequence[str]) -> list[str]:
    stated = set(filter(None, values))
    return [value or next(iter(stated)) for value in values] if len(stated) == 1 else list(values)


def same_plane(images: Sequence[ImageHeader]) -> tuple[list[list[ImageHeader]], list[ImageHeader]]:
    """(images of each orientation and pixel spacing, those of orientations beyond `MAX_PLANES`)."""
    planes: list[list[ImageHeader]] = []
    beyond: list[ImageHeader] = []
    firsts = np.empty((MAX_PLANES, 8))
    for image in images:
        plane = np.concatenate([image.directions.ravel(), np.array(image.pixel_spacing_mm)])
        alike = (np.abs(firsts[: len(planes)] - plane) <= _PLANE_TOLERANCES).all(axis=1)
        if alike.any():
            planes[int(alike.argmax())].append(image)
        elif len(planes) < MAX_PLANES:
            firsts[len(planes)] = plane
            planes.append([image])
        else:
            beyond.append(image)
    return planes, beyond


def passes(images: Sequence[ImageHeader], *, is_refused: bool) -> list[list[ImageHeader]]:
    """The images as passes over the head, if one attribute separates them into several and they are no single volume.

    That is: `is_refused`, or they interleave unevenly although each pass for itself is more even.
    """
    along = _distances_mm(images)
    n_runs = _n_runs(along)
    if not is_refused and n_runs <= 2:
        return [list(images)]
    for label in _SEPARATORS.values():
        labels = list(map(label, images))
        found = _passes_by(labels, along) if len(set(labels)) > 1 else []
        if len(found) > 1 and (is_refused or n_runs > sum(_n_runs(along[one]) for one in found) + len(found)):
            return [[images[k] for k in one] for one in found]
    return [list(images)]


def _passes_by(labels: Sequence[Hashable], along: Float64[np.ndarray, " image"]) -> list[list[int]]:
    """Images of one label are of one pass, and labels that continue each other too, such as rotations of one scan."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for k in np.argsort(along, kind="stable").tolist():
        parts[labels[k]].append(k)
    found: list[tuple[list[int], list[float]]] = []
    for _, part in sorted(parts.items(), key=lambda item: (item[0] is not None, item[0])):
        places = along[part].tolist()
        begun = next((one for one in found if not _collide(one[1], places)), None)
        if begun is None:
            found.append(begun := ([], []))
        begun[0].extend(part)
        for place in places:
            insort(begun[1], place)
        if len(found) > MAX_PASSES:
            return [list(range(len(along)))]
    return [indices for indices, _ in found]


def mixture(images: Sequence[ImageHeader]) -> str:
    """Names, with counts, what differs among images that are read as one volume; empty if nothing does."""
    found = []
    for name in ("temporal position", "kernel", "frame of reference", "image type", "orientation"):
        counts = Counter(map(_SEPARATORS[name], images)).most_common()
        if len(counts) > 1:
            listed = ", ".join(f"{count} {_value(name, value)}" for value, count in counts[:MOST_VALUES])
            listed = f"{len(counts)} directions" if name == "orientation" else listed
            found.append(f"{name} ({listed}{', ...' if len(counts) > MOST_VALUES else ''})")
    return ", ".join(found)


def _value(name: str, value: Hashable) -> str:
    """A value as text: none, or what cannot name a patient."""
    if value is None or value == "":
        return "none"
    if name == "kernel":
        return str(value) if _KERNEL.fullmatch(str(value)) else "another"
    return "stated" if name == "frame of reference" else _text(value)


def is_interleaved(images: Sequence[ImageHeader]) -> bool:
    """Whether acquisitions that cover the same range alternate in what is read as one volume."""
    labels = list(map(_PHASES["acquisition number"], images))
    return len(set(labels)) > 1 and len(_passes_by(labels, _distances_mm(images))) > 1


def _distances_mm(images: Sequence[ImageHeader]) -> Float64[np.ndarray, " image"]:
    return np.asarray(np.array([image.position_mm for image in images]) @ images[0].normal)


def _collide(taken: list[float], places: list[float]) -> bool:
    """Whether these positions, in order, share one, or over half the range of one of them."""
    for place in places:
        k = bisect_left(taken, place - POSITION_TOLERANCE_MM)
        if k < len(taken) and taken[k] <= place + POSITION_TOLERANCE_MM:
            return True
    shared_mm = min(taken[-1], places[-1]) - max(taken[0], places[0])
    return shared_mm > min(taken[-1] - taken[0], places[-1] - places[0]) / 2 > 0


def _n_runs(along: Float64[np.ndarray, " image"]) -> int:
    """Runs of equal gaps between the positions."""
    gaps = np.diff(np.sort(along))
    gaps = gaps[gaps > POSITION_TOLERANCE_MM]
    return 0 if not len(gaps) else 1 + int((np.abs(np.diff(gaps)) > UNEVEN_SHARE * np.median(gaps)).sum())


def difference(some: Sequence[ImageHeader], others: Sequence[ImageHeader]) -> str:
    """Names what separates two groups of images, with both values where each group has one."""
    found = [name for name, of in _OWNERS.items() if {*map(of, some)}.isdisjoint(map(of, others))]
    for name, of in _DIFFERENCES.items():
        here, there = set(map(of, some)), set(map(of, others))
        if here.isdisjoint(there):
            values = (_text(*one) if name != "kernel" else _value(name, *one) for one in (here, there) if len(one) == 1)
            found.append(f"{name} {' / '.join(values)}" if len(here) == len(there) == 1 else name)
    turned = float(np.degrees(np.arccos(np.clip((some[0].directions * others[0].directions).sum(axis=1).min(), -1, 1))))
    if turned > np.degrees(DIRECTION_TOLERANCE):
        found.append(f"orientation turned by {turned:.1f} degrees")
    return ", ".join(found) or (
        "position" if _agent_key(some[0]) == _agent_key(others[0]) else "another contrast agent"
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(f"{side:g}" for side in value) + " mm"
    return "none" if value is None or value == "" else str(value)
