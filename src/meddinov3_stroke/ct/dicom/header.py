"""What one DICOM image says of itself, as far as a volume needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.nifti_header import MAX_INTERCEPT, SLOPE_RANGE


@dataclass(frozen=True)
class PixelFormat:
    """How a frame's pixels are stored (DICOM PS3.3 C.7.6.3, PS3.5 8.1)."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    n_frames: int = 1


@dataclass(frozen=True)
class Rescale:
    """Stored value to HU: `value * slope + intercept` (DICOM PS3.3 C.11.1)."""

    slope: float
    intercept: float
    is_wrapped: bool = False
    """The RSNA 2019 fault: 12-bit values that wrapped around 4096 beside an intercept that is not theirs."""
    is_stated: bool = True
    """Whether the header has slope and intercept at all; without them HU are taken as stored, and a warning says so."""

    @property
    def is_sane(self) -> bool:
        """Whether slope and intercept can be those of a CT (the range that a NIfTI header is held to)."""
        return SLOPE_RANGE[0] <= self.slope <= SLOPE_RANGE[1] and abs(self.intercept) <= MAX_INTERCEPT


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """One image: a file, or one frame of a multi-frame file."""

    file: str
    """Name of the file within its input, for messages and lists."""
    frame: int | None
    """0-based in a multi-frame object; None where the file is the image."""
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    """Tells patients apart; never printed or logged, and stored only by `prepare-rsna`, whose IDs are Kaggle's own."""
    modality: str
    sop_class_uid: str
    image_type: tuple[str, ...]
    series_number: int | None
    acquisition_number: int | None
    instance_number: int | None
    """Only told, never sorted by."""
    series_description: str
    body_part: str
    kernel: str
    contrast: str
    """Contrast or Bolus Agent, or another hint of contrast; empty where there is none."""
    transfer_syntax: str
    """UID."""
    pixels: PixelFormat
    has_pixel_data: bool
    rescale: Rescale
    padding: tuple[int, int] | None
    """Least and greatest stored value that is padding."""
    has_modality_lut: bool
    position_mm: Float64[np.ndarray, " 3"] | None
    """Image Position (Patient), LPS: centre of the first voxel."""
    row_direction: Float64[np.ndarray, " 3"] | None
    """Unit vector, LPS, in which the column index grows (first half of Image Orientation)."""
    column_direction: Float64[np.ndarray, " 3"] | None
    """Unit vector, LPS, in which the row index grows (second half)."""
    pixel_spacing_mm: tuple[float, float] | None
    """(between rows, between columns)."""
    slice_thickness_mm: float | None
    gantry_tilt_degrees: float | None
    """As the header states it; what the geometry says counts."""
    frame_of_reference_uid: str = ""
    """Positions under different ones cannot be compared."""
    geometry_fault: str = ""
    """Why position, orientation or pixel spacing are None, in words."""

    @cached_property
    def directions(self) -> Float64[np.ndarray, "2 3"]:
        """Unit vectors, LPS, in which the column and the row index grow; only where there is an orientation."""
        assert self.row_direction is not None  # asked of placed images only
        assert self.column_direction is not None
        return np.stack([self.row_direction, self.column_direction])

    @cached_property
    def normal(self) -> Float64[np.ndarray, " 3"]:
        """Unit vector, LPS, across the image; only where there is an orientation."""
        (a, b, c), (d, e, f) = self.directions.tolist()
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # np.cross takes 50 times as long

    @property
    def is_placed(self) -> bool:
        """Whether position, orientation and pixel spacing are all known."""
        return self.position_mm is not None and self.row_direction is not None and self.pixel_spacing_mm is not None
