"""Where the voxels of a stack lie, as stored and in canonical orientation, in RAS+ mm."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.spacing import layout_of
from meddinov3_stroke.ct.dicom.stacks import LPS_TO_RAS, Stack
from meddinov3_stroke.ct.geometry import Orientation, canonical_orientation


def canonical_positions_mm(stack: Stack) -> Float64[np.ndarray, "slice 3"]:
    """RAS+ mm of the centre of voxel (row 0, col 0) of each canonical slice: `Volume.slice_positions_mm`.

    A stored image whose rows or columns run the other way has its Image Position at another corner.
    """
    return slice_geometry(stack, canonical_orientation(stack_affine(stack)))[0]


def file_shape(stack: Stack) -> tuple[int, int, int]:
    return len(stack.images), stack.first.pixels.rows, stack.first.pixels.columns


def stack_affine(stack: Stack) -> Float64[np.ndarray, "4 4"]:
    """From (image, row, column, 1) of the stack as stored to RAS+ mm, by its first and last image."""
    positions = stack.slice_positions_mm
    affine = np.eye(4)
    affine[:3, 0] = _mean_step_mm(stack)
    affine[:3, 1:3] = _steps_mm(stack.first)
    affine[:3, 3] = positions[0]
    return affine


def _mean_step_mm(stack: Stack) -> Float64[np.ndarray, " 3"]:
    """RAS+ mm from a slice to the next on the straight line through the first and last; across a single one."""
    positions = stack.slice_positions_mm
    if len(positions) == 1:
        return np.asarray(stack.first.normal * LPS_TO_RAS * layout_of(stack).nominal_mm)
    return np.asarray((positions[-1] - positions[0]) / (len(positions) - 1))


def _steps_mm(image: ImageHeader) -> Float64[np.ndarray, "3 2"]:
    """RAS+ mm from a stored voxel to the next row's and to the next column's."""
    assert image.pixel_spacing_mm is not None  # placed images only
    towards = image.directions[::-1].T  # [xyz, (row index, column index)]
    return np.asarray(towards * LPS_TO_RAS[:, None] * np.array(image.pixel_spacing_mm))


def slice_geometry(
    stack: Stack, orientation: Orientation
) -> tuple[Float64[np.ndarray, "slice 3"], Float64[np.ndarray, "slice 3 2"]]:
    """RAS+ mm of each canonical slice's first voxel, and its steps along canonical rows and columns."""
    positions = stack.slice_positions_mm
    steps = np.stack([_steps_mm(image) for image in stack.images])
    shape = file_shape(stack)
    canonical_steps = np.empty_like(steps)
    for place, (axis, flip) in enumerate(zip(orientation.axes[1:], orientation.flips[1:], strict=True)):
        step = steps[:, :, axis - 1]
        canonical_steps[:, :, place] = -step if flip else step
        if flip:
            positions = positions + step * (shape[axis] - 1)
    order = slice(None, None, -1 if orientation.flips[0] else 1)
    return positions[order], canonical_steps[order]
