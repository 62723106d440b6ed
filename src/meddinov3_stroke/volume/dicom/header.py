"""What one DICOM image says of itself, as far as a volume needs it; no patient attribute leaves this module."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


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
    patient_digest: str
    """Digest of the Patient ID: tells patients apart, names none."""
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
    position_mm: Float64[np.ndarray, "3"] | None
    """Image Position (Patient), LPS: centre of the first voxel."""
    row_direction: Float64[np.ndarray, "3"] | None
    """Unit vector, LPS, in which the column index grows (first half of Image Orientation)."""
    column_direction: Float64[np.ndarray, "3"] | None
    """Unit vector, LPS, in which the row index grows (second half)."""
    pixel_spacing_mm: tuple[float, float] | None
    """(between rows, between columns)."""
    slice_thickness_mm: float | None
    gantry_tilt_degrees: float | None
    """As the header states it; what the geometry says counts."""
