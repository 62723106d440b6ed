"""A head on an even grid with the fields that haemorrhages are placed by: of a phantom, or estimated from a real CT.

The generator of `phantom.generator` deforms, bleeds and scans it. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from meddinov3_stroke.errors import UnsupportedInput
from meddinov3_stroke.phantom import anatomy
from meddinov3_stroke.phantom.anatomy import Brain, Points
from meddinov3_stroke.phantom.head import make_phantom
from meddinov3_stroke.phantom.spec import HeadSpec, draw_spec
from meddinov3_stroke.types import Volume

STANDARD_MM = (67.0, 83.0, 70.0)
"""Half-width, half-length and height above the origin of the average cavity, in which sites are stated."""

BONE_HU, CSF_BELOW_HU, TISSUE_HU = 180.0, 19.0, (-25.0, 110.0)
CLOSING_MM, OPENING_MM = 6.0, 5.0  # gaps of the skull that are closed; necks at which orbits and neck are cut off
LEAST_CAVITY_ML = 500.0
VENTRICLE_DEPTH_MM = 20.0  # below the skull; fluid above it belongs to sulci and cisterns
TEMPLATE = Path(__file__).with_name("template.npz")

Grid = Float32[np.ndarray, "z y x"]


@dataclass(frozen=True, eq=False)
class Atlas:
    """A head CT on an even grid: z inferior to superior, y posterior to anterior, x left to right (RAS)."""

    name: str
    hu: Grid
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    origin_mm: tuple[float, float, float]  # head coordinates (x, y, z) of voxel (0, 0, 0)
    cavity: Bool[np.ndarray, "z y x"]  # inside the skull
    noise_hu: float  # noise that the grid holds already

    @cached_property
    def scale(self) -> tuple[float, float, float]:
        """Size of the cavity over the average one, along x, y and z."""
        z, y, x = np.nonzero(self.cavity)
        middle = np.abs(z - np.quantile(z, 0.6)) * self.spacing_mm[0] < 25  # the widest part
        width = np.ptp(np.quantile(x[middle], [0.002, 0.998])) * self.spacing_mm[2]
        length = np.ptp(np.quantile(y[middle], [0.002, 0.998])) * self.spacing_mm[1]
        sx, sy = width / 2 / STANDARD_MM[0], length / 2 / STANDARD_MM[1]
        return float(sx), float(sy), float((sx + sy) / 2)

    @cached_property
    def points(self) -> Points:
        """Head coordinates in mm of every voxel."""
        axes = [
            self.origin_mm[k] + np.arange(self.hu.shape[2 - k], dtype=np.float32) * np.float32(self.spacing_mm[2 - k])
            for k in range(3)
        ]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        return Points(x, y, z)

    @cached_property
    def head(self) -> HeadSpec:
        """The ellipsoid-like cavity that fits this head."""
        half_width, half_length, height = (s * mm for s, mm in zip(self.scale, STANDARD_MM, strict=True))
        sized = draw_spec(0, []).head
        return replace(sized, half_width_mm=half_width, half_length_mm=half_length, height_mm=height)

    @cached_property
    def brain(self) -> Brain:
        """The anatomy at the voxels of the cavity, in the order of `hu[cavity]`."""
        inside = self.points.at(self.cavity)
        scaled = Points(*(axis / np.float32(s) for axis, s in zip(inside, self.scale, strict=True)))
        side = scaled._replace(x=np.abs(scaled.x))
        depth = ndimage.distance_transform_edt(self.cavity, self.spacing_mm).astype(np.float32)
        smooth = ndimage.gaussian_filter(np.where(self.cavity, self.hu, 32), [0.8 / mm for mm in self.spacing_mm])
        fluid = self.cavity & (smooth < CSF_BELOW_HU) & (smooth > TISSUE_HU[0])
        ventricle = self._ventricles(fluid, depth)
        gauge, _ = anatomy.vault_gauge(self.head, *inside)
        to_table = 1 / gauge
        surface = Points(inside.x * to_table, inside.y * to_table, inside.z * np.where(inside.z > 0, to_table, 1))
        sheet = -4 - 0.38 * side.x + 0.22 * (side.y + 35)
        tentorium = (side.z - sheet) * 0.9 + 3 * np.maximum(side.y + 16 + 0.1 * side.x, 0)
        ventricle_mm = self._signed_mm(ventricle)[self.cavity]
        sulcal_mm = self._signed_mm(fluid & ~ventricle)[self.cavity]
        return Brain(
            points=inside,
            side=side,
            surface=surface,
            depth_mm=depth[self.cavity],
            vault_mm=depth[self.cavity],
            csf_mm=np.maximum(sulcal_mm, 0.4 - depth[self.cavity]),
            sulcal_mm=sulcal_mm,
            ventricle_mm=ventricle_mm,
            falx_mm=anatomy.falx(side),
            midline_mm=inside.x,
            tentorium_mm=tentorium,
        )

    def _ventricles(self, fluid: Bool[np.ndarray, "z y x"], depth_mm: Grid) -> Bool[np.ndarray, "z y x"]:
        x, y, z = (axis / s for axis, s in zip(self.points, self.scale, strict=True))
        deep = fluid & (depth_mm > VENTRICLE_DEPTH_MM) & (np.abs(x) < 45) & (y > -75) & (y < 46) & (z > -50) & (z < 42)
        cores = ndimage.binary_erosion(deep)
        labelled, _ = ndimage.label(deep)
        kept = np.unique(labelled[cores])
        return np.asarray(np.isin(labelled, kept[kept > 0]))

    def _signed_mm(self, mask: Bool[np.ndarray, "z y x"]) -> Grid:
        if not mask.any():
            return np.full(mask.shape, anatomy.FAR_MM, dtype=np.float32)
        inside = ndimage.distance_transform_edt(mask, self.spacing_mm)
        outside = ndimage.distance_transform_edt(~mask, self.spacing_mm)
        return np.asarray(np.clip(inside - outside, anatomy.FAR_MM, -anatomy.FAR_MM), dtype=np.float32)


def atlas_of_volume(volume: Volume, name: str, in_plane_mm: float = 1.0, between_mm: float = 2.5) -> Atlas:
    """The atlas of a head CT of any geometry; raises UnsupportedInput where no cavity of a head is found."""
    spacing_mm = (between_mm, in_plane_mm, in_plane_mm)
    return atlas_of_grid(_resampled(volume, spacing_mm), spacing_mm, name)


def atlas_of_phantom(seed: int) -> Atlas:
    """The atlas of an invented head without haemorrhage."""
    spacing = (2.4, 1.25, 1.25)
    spec = replace(draw_spec(seed, [], shape=(64, 176, 176), tilt_degrees=0), spacing_mm=spacing)
    spec = replace(spec, rotation_degrees=0.0, roll_degrees=0.0, centre_mm=(0.0, 1.0, 2.0))
    phantom = make_phantom(replace(spec, noise_hu=0.0, head_holder=False))
    return atlas_of_grid(phantom.hu[:, ::-1, ::-1].astype(np.float32), spacing, f"phantom {seed}")


def atlas_of_grid(hu: Grid, spacing: tuple[float, float, float], name: str) -> Atlas:
    """The atlas of a CT on an even grid (RAS: z, y, x ascending); errors as for `atlas_of_volume`."""
    cavity = find_cavity(hu, spacing)
    if cavity.sum() * float(np.prod(spacing)) / 1000 < LEAST_CAVITY_ML:
        raise UnsupportedInput(f"{name}: no cavity of a head found; expected a non-contrast CT of a whole head in HU")
    z, y, x = (np.nonzero(cavity.any(axis=tuple(k for k in range(3) if k != axis)))[0] for axis in range(3))
    middle = [float(np.mean([where[0], where[-1]])) for where in (x, y)]
    found = Atlas(
        name, hu, spacing, (-middle[0] * spacing[2], -middle[1] * spacing[1], 0.0), cavity, _noise_hu(hu, cavity)
    )
    top = float(z[-1]) * spacing[0]
    return replace(found, origin_mm=(*found.origin_mm[:2], STANDARD_MM[2] * found.scale[2] - top))


def _resampled(volume: Volume, spacing_mm: tuple[float, float, float]) -> Grid:
    # the slices on an even grid whose planes are those of the acquisition; x to the patient's right, y anterior
    across, down = volume.affine[:3, 2], volume.affine[:3, 1]  # a column and a row step: patient left, posterior
    across_mm, down_mm = np.linalg.norm(across), np.linalg.norm(down)
    across, down = across / across_mm, down / down_mm
    normal = np.cross(across, down)
    normal *= np.sign(normal[2])
    positions = volume.slice_positions_mm
    heights = positions @ normal
    stored = volume.hu
    centre = positions + across * across_mm * (stored.shape[2] - 1) / 2 + down * down_mm * (stored.shape[1] - 1) / 2
    pivot = centre.mean(axis=0)
    shift_x, shift_y = (centre - pivot) @ across, (centre - pivot) @ down  # a tilted gantry shifts slices in plane
    extent = (np.ptp(heights), stored.shape[1] * down_mm, stored.shape[2] * across_mm)
    nz, ny, nx = (int(size // mm) + 1 for size, mm in zip(extent, spacing_mm, strict=True))
    zs = heights.min() + np.arange(nz) * spacing_mm[0]
    k = np.interp(zs, heights, np.arange(len(heights)))
    ys = (np.arange(ny) - (ny - 1) / 2) * spacing_mm[1]  # anterior of the middle
    xs = (np.arange(nx) - (nx - 1) / 2) * spacing_mm[2]  # right of the middle
    sharp = [max(mm / float(size) - 1, 0.0) / 2 for mm, size in zip(spacing_mm[1:], (down_mm, across_mm), strict=True)]
    smooth = np.stack([ndimage.gaussian_filter(one, sharp) for one in stored])
    out = np.empty((nz, ny, nx), dtype=np.float32)
    for index, at in enumerate(k):
        rows = (-ys - np.interp(at, np.arange(len(heights)), shift_y)) / down_mm + (stored.shape[1] - 1) / 2
        columns = (-xs - np.interp(at, np.arange(len(heights)), shift_x)) / across_mm + (stored.shape[2] - 1) / 2
        low = min(int(at), len(stored) - 1)
        share = at - low
        plane = smooth[low] if share < 1e-6 else (1 - share) * smooth[low] + share * smooth[low + 1]
        grid = np.meshgrid(rows, columns, indexing="ij")
        out[index] = ndimage.map_coordinates(plane, grid, order=1, mode="constant", cval=anatomy.AIR_HU)
    return out


def _noise_hu(hu: Grid, cavity: Bool[np.ndarray, "z y x"]) -> float:
    # robust, so that edges hardly count
    both = cavity[:, :, 1:] & cavity[:, :, :-1]
    steps = np.diff(hu, axis=2)[both]
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2))


def find_cavity(hu: Grid, spacing_mm: tuple[float, float, float]) -> Bool[np.ndarray, "z y x"]:
    """The inside of the skull: what bone encloses in each slice, without orbits, sinuses and neck."""
    bone, cavity = hu > BONE_HU, np.zeros(hu.shape, dtype=bool)
    n_closing = max(1, round(CLOSING_MM / spacing_mm[1]))
    for index, plane in enumerate(bone):
        padded = np.pad(plane, n_closing)
        closed = ndimage.binary_closing(padded, iterations=n_closing)[n_closing:-n_closing, n_closing:-n_closing]
        cavity[index] = ndimage.binary_fill_holes(closed) & ~plane
    cavity &= ndimage.gaussian_filter(hu, [0.5, 1, 1]) < TISSUE_HU[1] + 60
    smooth = ndimage.gaussian_filter(hu, [1.0 / mm for mm in spacing_mm])
    cavity &= (smooth > TISSUE_HU[0]) & (hu > -60)
    n_opening = max(1, round(OPENING_MM / spacing_mm[1]))
    disc = ndimage.generate_binary_structure(3, 1)
    disc[[0, 2]] = False
    opened = ndimage.binary_opening(cavity, structure=disc, iterations=n_opening)
    labelled, n = ndimage.label(opened)
    if n == 0:
        return np.asarray(opened)
    largest = labelled == 1 + int(np.argmax(np.bincount(labelled.ravel())[1:]))
    # what lies wholly inside is calcification and belongs to the brain
    return np.asarray(
        ndimage.binary_fill_holes(ndimage.binary_dilation(largest, structure=disc, iterations=2) & cavity)
    )


def template_atlas() -> Atlas:
    """The mean head CT of the Clinical Toolbox (Rorden et al. 2012; NOTICE), as the package brings it."""
    with np.load(TEMPLATE, allow_pickle=False) as found:
        hu = found["hu"].astype(np.float32)
    return atlas_of_grid(hu, (2.0, 2.0, 2.0), "template")
