"""From HU to the values a file stores, and what should be read from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Integer, Real, UInt16

from dicom_writer.options import VALUE_RANGE, DicomOptions
from meddinov3_stroke.types import AIR_HU, PADDING_BELOW_HU

DRAWN_SLOPES = (1.0, 1.25, 1.5, 2.0)
DRAWN_INTERCEPTS = (-1024.0, -1100.5, -1200.0)
"""Slopes and intercepts of slices that have their own; every HU of a head fits in 12 bits with each."""
WRAPPED_RANGE_HU = (-1000, 3095)
"""HU that 12-bit values wrapped around 4096 can hold, once repaired."""
FIELD_OF_VIEW = 0.96
"""Radius of the round field of view, of half the smaller side."""


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """The stored values of one image, its rescale attributes, and the HU that a reader should find."""

    values: UInt16[np.ndarray, "row col"] | Int16[np.ndarray, "row col"]
    bits_stored: int
    slope: float
    intercept: float
    """As the header has it; of wrapped values it is wrong."""
    lut: UInt16[np.ndarray, " entry"] | None
    """Modality LUT in place of slope and intercept; the first entry is that of stored value 0."""
    hu: Float32[np.ndarray, "row col"]
    """As it should be read: padding and everything below -1024 HU is air."""

    @property
    def is_signed(self) -> bool:
        """Pixel Representation."""
        return self.values.dtype.kind == "i"


def store_pixels(hu: Real[np.ndarray, "row col"], options: DicomOptions, stream: int) -> StoredPixels:
    """The stored values of one image; HU beyond what they can hold are clipped. `stream` numbers its draws."""
    if options.rescale == "lut":
        return _store_through_lut(hu)
    if options.pixels == "wrapped12":
        return _store_wrapped(hu)
    slope, intercept = _rescale_of(options, stream)
    low, high = VALUE_RANGE[options.pixels]
    values = np.clip(np.rint((hu.astype(np.float64) - intercept) / slope), low, high).astype(np.int64)
    padding = _pad(values, options)
    read = (values * slope + intercept).astype(np.float32)
    read[read < PADDING_BELOW_HU] = AIR_HU
    if options.is_padding_declared:
        read[padding] = AIR_HU
    dtype = np.int16 if options.pixels == "signed16" else np.uint16
    bits_stored = 12 if options.pixels == "unsigned12" else 16
    return StoredPixels(values.astype(dtype), bits_stored, slope, intercept, None, read)


def _store_through_lut(hu: Real[np.ndarray, "row col"]) -> StoredPixels:
    # runs backwards, so that a reader that takes the values as they are is far off
    read = np.clip(np.rint(hu), 0, 4095)
    lut = np.arange(4095, -1, -1, dtype=np.uint16)
    return StoredPixels((4095 - read).astype(np.uint16), 12, 1.0, 0.0, lut, read.astype(np.float32))


def _store_wrapped(hu: Real[np.ndarray, "row col"]) -> StoredPixels:
    read = np.clip(np.rint(hu), *WRAPPED_RANGE_HU).astype(np.int64)
    return StoredPixels((read % 4096).astype(np.uint16), 12, 1.0, 0.0, None, read.astype(np.float32))


def _rescale_of(options: DicomOptions, stream: int) -> tuple[float, float]:
    if options.rescale == "constant":
        return options.slope, options.intercept
    random = np.random.default_rng([options.seed, 11, stream])
    return float(random.choice(DRAWN_SLOPES)), float(random.choice(DRAWN_INTERCEPTS))


def _pad(values: Integer[np.ndarray, "row col"], options: DicomOptions) -> np.ndarray:
    """Which pixels are padding; they are set in place."""
    rows, columns = np.indices(values.shape)
    middle_row, middle_column = (values.shape[0] - 1) / 2, (values.shape[1] - 1) / 2
    radius = np.hypot(rows - middle_row, columns - middle_column)
    padding: np.ndarray = radius > FIELD_OF_VIEW * min(middle_row, middle_column)
    if options.padding_value is None:
        return np.zeros_like(padding)
    values[padding] = options.padding_value
    if options.padding_limit is not None:
        values[padding & ((rows + columns) % 2 == 0)] = options.padding_limit
    return padding
