"""Stored pixels of one image as Hounsfield units, with padding as air.

Modality LUT module: DICOM PS3.3 C.11.1; pixel padding: C.7.5.1.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer, Real

from meddinov3_stroke.ct.dicom.container import DicomContent, parse_dataset
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.errors import CorruptInput
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU

WRAP = 4096
"""Values of a 12-bit scanner wrap around here."""

REPAIR_SHIFT, REPAIRED_INTERCEPT = 1000, -1000.0
"""The RSNA 2019 repair: add 1000 to the stored values, subtract 4096 from those that reach it; intercept -1000."""

TISSUE_ABOVE_HU = -900.0
"""Padding above this could be tissue of the same value; only regions that touch the border become air."""


@dataclass(frozen=True, eq=False)
class ImageHu:
    """One image in HU."""

    hu: Real[np.ndarray, "row col"]
    """int16 if every value is a whole number in its range, else float32; padding above -1024 HU is already air."""
    n_padding_to_air: int
    """Declared padding of -1024 HU or more that was set to air."""
    is_repaired: bool
    """Whether the RSNA repair changed values."""


def image_hu(stored: Integer[np.ndarray, "row col"], image: ImageHeader, content: DicomContent) -> ImageHu:
    """`stored` in HU by the image's own slope and intercept (or modality LUT), with padding as air.

    Raises:
        CorruptInput: a modality LUT that cannot be applied.
    """
    padding = _padding_of(stored, image)
    if image.has_modality_lut:
        hu = _looked_up(stored, image, content)
    elif image.rescale.is_wrapped:
        hu = _unwrapped(stored, image.rescale.slope)
    else:
        hu = _rescaled(stored, image.rescale.slope, image.rescale.intercept)
    n_to_air = 0
    if padding is not None:
        hu, n_to_air = _with_air(hu, padding)
    return ImageHu(hu, n_to_air, image.rescale.is_wrapped and not image.has_modality_lut and _is_changed(stored, image))


def _is_changed(stored: Integer[np.ndarray, "row col"], image: ImageHeader) -> bool:
    """Whether the repair gives other HU than the stated slope and intercept."""
    return image.rescale.intercept != 0.0 or bool(stored.max() >= WRAP - REPAIR_SHIFT)


def _padding_of(stored: Integer[np.ndarray, "row col"], image: ImageHeader) -> Bool[np.ndarray, "row col"] | None:
    if image.padding is None:
        return None
    least, greatest = image.padding
    padding = (stored >= least) & (stored <= greatest) if least != greatest else stored == least
    return padding if padding.any() else None


def _rescaled(stored: Integer[np.ndarray, "row col"], slope: float, intercept: float) -> Real[np.ndarray, "row col"]:
    if not (slope.is_integer() and intercept.is_integer()):
        return (stored * slope + intercept).astype(np.float32)
    low, high = int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)
    limits = np.iinfo(np.int16)
    if limits.min <= low and high <= limits.max:
        if slope == 1.0 and intercept == 0.0:
            return stored.astype(np.int16, copy=False)
        return (stored.astype(np.int32) * int(slope) + int(intercept)).astype(np.int16)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _unwrapped(stored: Integer[np.ndarray, "row col"], slope: float) -> Real[np.ndarray, "row col"]:
    shifted = stored.astype(np.int32) + REPAIR_SHIFT
    shifted[shifted >= WRAP] -= WRAP
    return _rescaled(shifted, slope, REPAIRED_INTERCEPT)


def _looked_up(
    stored: Integer[np.ndarray, "row col"], image: ImageHeader, content: DicomContent
) -> Real[np.ndarray, "row col"]:
    from pydicom.pixels.processing import apply_modality_lut

    try:
        hu = np.asarray(apply_modality_lut(stored, parse_dataset(content, image.file)))
    except Exception as error:  # pydicom raises errors of any type on a damaged table
        raise CorruptInput(
            f"{image.file}: its modality LUT cannot be applied ({type(error).__name__}); the header is damaged"
        ) from error
    return _rescaled(hu.astype(np.int64), 1.0, 0.0) if hu.dtype.kind in "iu" else hu.astype(np.float32)


def _with_air(
    hu: Real[np.ndarray, "row col"], padding: Bool[np.ndarray, "row col"]
) -> tuple[Real[np.ndarray, "row col"], int]:
    """HU with padding as air, and the number of changed pixels; values below -1024 HU read as air anyway."""
    value = float(hu[padding].max())
    if value < PADDING_BELOW_HU:
        return hu, 0
    if value > TISSUE_ABOVE_HU:
        padding = _touching_border(padding)
    aired = hu.copy()
    aired[padding] = AIR_HU
    return aired, int(np.count_nonzero(padding & (hu != AIR_HU)))


def _touching_border(padding: Bool[np.ndarray, "row col"]) -> Bool[np.ndarray, "row col"]:
    from scipy import ndimage

    parts, _ = ndimage.label(padding)
    border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.isin(parts, border[border > 0])
