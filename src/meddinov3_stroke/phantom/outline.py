"""Size and shape of haemorrhages that lie against the inner table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from meddinov3_stroke.phantom.sites import LesionSpec
from meddinov3_stroke.phantom.skull import vault_gauge
from meddinov3_stroke.phantom.solids import Points
from meddinov3_stroke.phantom.spec import HeadSpec

LENS_ASPECT = 1.6
"""Half-length over thickness of an epidural lens."""
CRESCENT_ASPECT = 1.9
"""Half-length over half-height of a subdural crescent."""


@dataclass(frozen=True)
class Outline:
    """Thickness at the middle and half-axes along the inner table, in mm."""

    thickness_mm: float
    half_length_mm: float
    half_height_mm: float


def outline_of(lesion: LesionSpec) -> Outline | None:
    """The outline that gives the lesion its volume; None unless it lies against the vault."""
    volume_mm3 = lesion.volume_ml * 1000
    if lesion.label == "epidural":  # a paraboloid: volume = pi/2 * length^2 * thickness
        thickness = float((volume_mm3 / (np.pi / 2 * LENS_ASPECT**2)) ** (1 / 3))
        return Outline(thickness, LENS_ASPECT * 1.08 * thickness, LENS_ASPECT * 0.93 * thickness)
    if lesion.label == "subdural" and lesion.site == "convexity":  # thin, nearly even until its ends
        thickness = float(np.clip(2.8 + 0.16 * lesion.volume_ml, 3, 14))
        half_height = float(np.sqrt(volume_mm3 / (0.6 * thickness) / np.pi / CRESCENT_ASPECT))
        return Outline(thickness, CRESCENT_ASPECT * half_height, half_height)
    return None


def middle_on_table(lesion: LesionSpec, head: HeadSpec) -> tuple[float, float, float]:
    """The point of the inner table on the ray through the lesion's middle."""
    x, y, z = (np.array([value], dtype=np.float32) for value in lesion.centre_mm)
    gauge, _ = vault_gauge(head, x, y, z)
    height = z / gauge if z[0] > 0 else z  # below the origin the rays are horizontal
    return float((x / gauge)[0]), float((y / gauge)[0]), float(height[0])


def along_table(surface: Points, middle_mm: tuple[float, float, float], outline: Outline) -> Float32[np.ndarray, " n"]:
    """Square of the distance from the middle along the inner table, 1 at the outline."""
    squared = np.square(surface.x - np.float32(middle_mm[0])) + np.square(surface.y - np.float32(middle_mm[1]))
    squared = squared * np.float32(1 / outline.half_length_mm**2)
    return np.asarray(
        squared + np.square((surface.z - np.float32(middle_mm[2])) * np.float32(1 / outline.half_height_mm))
    )
