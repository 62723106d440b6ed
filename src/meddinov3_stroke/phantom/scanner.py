"""What a scanner and its reconstruction make of the slices of a head: noise, sharpness and faults, drawn widely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from meddinov3_stroke.phantom import anatomy


@dataclass(frozen=True)
class Geometry:
    """The slices that are scanned."""

    n_slices: int
    matrix: int
    field_of_view_mm: float
    between_mm: float
    thickness_mm: float
    rotation_degrees: float
    tilt_degrees: float
    roll_degrees: float
    scale: tuple[float, float, float]  # of the head, along x, y and z
    middle_mm: tuple[float, float, float]  # head coordinates of the middle of the stack
    mirrored: bool
    bend_mm: float  # standard deviation of the smooth deformation


@dataclass(frozen=True)
class Scanner:
    """What the scanner and its reconstruction do to the slices."""

    noise_hu: float
    noise_grain: float  # standard deviation in pixels of the kernel of the noise
    blur: float  # of the point spread, in pixels
    shift_hu: float
    gain: float
    cupping_hu: float
    band_hu: float  # dark band between dense bones
    ripple_hu: float
    moves: float  # share of the slices that are blurred by motion
    has_metal: bool
    has_holder: bool
    cut_below_hu: float | None  # lower values are air
    saturated: tuple[float, float] | None  # values above the first read as the second


def draw_scanner(random: np.random.Generator, geometry: Geometry) -> Scanner:
    """Noise, sharpness and faults; thin slices are noisier."""
    thin = math.sqrt(max(1.0, 4.0 / geometry.thickness_mm))
    fault = random.random(5)
    return Scanner(
        noise_hu=float(np.clip(np.exp(random.normal(np.log(3.2), 0.55)) * thin, 0.3, 22)),
        noise_grain=random.uniform(0.3, 1.3),
        blur=random.uniform(0.2, 1.2),
        shift_hu=random.normal(0, 2.5),
        gain=float(np.exp(random.normal(0, 0.03))),
        cupping_hu=random.uniform(-2, 9),
        band_hu=float(random.exponential(5)),
        ripple_hu=float(random.exponential(1.0)) if fault[0] < 0.3 else 0.0,
        moves=random.uniform(0.05, 0.5) if fault[1] < 0.12 else 0.0,
        has_metal=bool(fault[2] < 0.04),
        has_holder=bool(random.random() < 0.65),
        cut_below_hu=random.uniform(-300, -15) if fault[3] < 0.3 else None,
        saturated=(random.uniform(95, 250), random.uniform(300, 1500)) if fault[4] < 0.25 else None,
    )


def scan(
    random: np.random.Generator,
    hu: Float32[np.ndarray, "slice row col"],
    geometry: Geometry,
    scanner: Scanner,
    noise_hu: float,
) -> Float32[np.ndarray, "slice row col"]:
    """The slices as a scanner would give them; `noise_hu` is what they hold already."""
    slices = _Slices(random, hu, geometry)
    if scanner.has_holder:
        slices.add_holder()
    slices.hu = _smooth(slices.hu, scanner.blur)
    slices.darken(scanner.band_hu)
    slices.ripple(scanner.ripple_hu)
    if scanner.has_metal:
        slices.add_metal()
    slices.move(scanner.moves)
    left = noise_hu / (1 + 2 * scanner.blur)
    slices.add_noise(math.sqrt(max(scanner.noise_hu**2 - left**2, 0.1)), scanner.noise_grain)
    scanned = slices.hu * np.float32(scanner.gain) + np.float32(scanner.shift_hu)
    if scanner.cut_below_hu is not None:
        scanned = np.where(scanned < scanner.cut_below_hu, np.float32(anatomy.AIR_HU), scanned)
    if scanner.saturated is not None:
        scanned = np.where(scanned > scanner.saturated[0], np.float32(scanner.saturated[1]), scanned)
    return np.asarray(np.clip(scanned, -1024, 3071))


class _Slices:
    """Slices that faults of a scanner are added to."""

    def __init__(
        self, random: np.random.Generator, hu: Float32[np.ndarray, "slice row col"], geometry: Geometry
    ) -> None:
        self.random, self.hu, self.between_mm = random, hu, geometry.between_mm
        self.matrix, self.pixel_mm = geometry.matrix, geometry.field_of_view_mm / geometry.matrix
        self.rows, self.columns = np.mgrid[: self.matrix, : self.matrix].astype(np.float32)

    def add_holder(self) -> None:
        random, matrix = self.random, self.matrix
        radius, thick = random.uniform(85, 130) / self.pixel_mm, random.uniform(1, 4) / self.pixel_mm
        row, column = random.uniform(0.45, 0.6) * matrix, matrix * random.uniform(0.47, 0.53)
        ring = np.abs(np.hypot(self.rows - row, self.columns - column) - radius) < thick
        ring &= self.rows > row + random.uniform(0, 0.7) * radius
        self.hu = np.where(ring & (self.hu < -700), np.float32(random.uniform(-300, 300)), self.hu)

    def darken(self, band_hu: float) -> None:
        random, matrix = self.random, self.matrix
        angle, bow = random.normal(0, 0.15), random.uniform(4, 10) / self.pixel_mm
        across = (self.rows - matrix * random.uniform(0.5, 0.68)) * math.cos(angle)
        across = across + (self.columns - matrix / 2) * math.sin(angle)
        heights = np.arange(len(self.hu)) * self.between_mm - random.uniform(0, 45)
        level = np.exp(-0.5 * np.square(heights / 12))[:, None, None]
        self.hu = self.hu - (band_hu * level * np.exp(-np.square(across / bow))).astype(np.float32)

    def ripple(self, ripple_hu: float) -> None:
        if ripple_hu:
            away = np.hypot(self.rows - self.matrix / 2, self.columns - self.matrix / 2)
            waves = np.sin(away * self.random.uniform(0.2, 1.5) + self.random.uniform(0, 2 * np.pi))
            self.hu = self.hu + np.float32(ripple_hu) * waves.astype(np.float32)

    def add_metal(self) -> None:
        random, n = self.random, len(self.hu)
        middle, (row, column) = int(random.integers(n)), random.uniform(0.2, 0.8, 2) * self.matrix
        away = np.hypot(self.rows - row, self.columns - column)
        star = np.sin(np.arctan2(self.rows - row, self.columns - column) * int(random.integers(4, 14)) + 1)
        for k in range(max(0, middle - 1), min(n, middle + 2)):
            self.hu[k] += (star * 2500 / (away + 12)).astype(np.float32)
            self.hu[k][away < random.uniform(2, 5)] = 3000

    def move(self, share: float) -> None:
        for k in np.flatnonzero(self.random.random(len(self.hu)) < share):
            moved = ndimage.shift(self.hu[k], self.random.normal(0, 3, 2), order=1, mode="nearest")
            self.hu[k] = self.hu[k] * 0.6 + moved * 0.4

    def add_noise(self, sd_hu: float, grain: float) -> None:
        white = _smooth(self.random.standard_normal(self.hu.shape, dtype=np.float32), grain)
        white *= np.float32(sd_hu / max(float(white[0].std()), 1e-3))
        self.hu = self.hu + white * np.where(self.hu > -500, np.float32(1), np.float32(0.6))


def _smooth(slices: Float32[np.ndarray, "slice row col"], sd: float) -> Float32[np.ndarray, "slice row col"]:
    along = ndimage.gaussian_filter1d(slices, sd, axis=1, truncate=3)
    return np.asarray(ndimage.gaussian_filter1d(along, sd, axis=2, truncate=3))
