"""What a reader of a volume must know of its DICOM, in words; no free text of headers and no file names, which may name
a patient: these go into outputs and the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from meddinov3_stroke.ct.dicom.choice import contrast_hint
from meddinov3_stroke.ct.dicom.spacing import layout_of
from meddinov3_stroke.ct.dicom.stacks import Stack
from meddinov3_stroke.ct.dicom.survey import Survey

LOSSY = {"1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless", "1.2.840.10008.1.2.4.91": "JPEG 2000"}
"""Transfer syntaxes that may have changed values."""


def remarks_on(found: Survey, stack: Stack) -> tuple[str, ...]:
    """What of the input is not in the volume of `stack`, then what is odd about the stack itself."""
    return (*_left_out(found, stack), *_about(stack))


def _left_out(found: Survey, stack: Stack) -> Iterator[str]:
    """What of the input is not in the volume."""
    if stack.set_aside:
        n_copies = _counted(len(stack.set_aside), "duplicate image was", "duplicate images were")
        yield f"{n_copies} left out (inspect lists them)"
    others = [other for other in found.stacks if other is not stack]
    yield from _rest_of_series(stack, others)
    reasons = Counter(
        other.reason or "another usable series"
        for other in others
        for _ in other.images
        if other.verdict != "usable" or other.series_instance_uid != stack.series_instance_uid
    )
    if reasons:
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        n_others = _counted(sum(reasons.values()), "other image was", "other images were")
        yield f"{n_others} set aside: {told}"
    n_not_dicom = sum(what == "not DICOM" for _, what in found.without_images)
    if n_not_dicom:
        n_files = _counted(n_not_dicom, "file is not DICOM and was", "files are not DICOM and were")
        yield f"{n_files} set aside (inspect lists them)"


def _rest_of_series(stack: Stack, others: Sequence[Stack]) -> Iterator[str]:
    """What to say where the series has usable slices that are not in the stack."""
    n_rest = sum(
        len(other.images)
        for other in others
        if other.verdict == "usable" and other.series_instance_uid == stack.series_instance_uid
    )
    if n_rest:
        yield (
            f"only {len(stack.images)} of the {len(stack.images) + n_rest} slices of this series are read: the others "
            "differ in acquisition, kernel, size, orientation or kind"
        )


def _counted(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _about(stack: Stack) -> Iterator[str]:
    """What a reader must know of the stack's geometry, scaling and contrast."""
    yield from layout_of(stack).notes
    scalings = {(image.rescale.slope, image.rescale.intercept) for image in stack.images}
    if len(scalings) > 1:
        yield f"{len(scalings)} pairs of slope and intercept in one series; each slice is read by its own"
    if not all(image.rescale.is_stated or image.has_modality_lut for image in stack.images):
        yield "no rescale slope or intercept in the header; stored values are taken as HU"
    if stack.first.transfer_syntax in LOSSY:
        yield f"compressed with {LOSSY[stack.first.transfer_syntax]}, which may have changed values"
    hint = contrast_hint(stack)
    if hint:  # its words stay out: free text may name a patient, and warnings go into outputs and the cache
        where = hint.split(" ", 1)[0]
        yield f"the {where} in the headers speaks of contrast (see inspect); this model is for non-contrast CT"
