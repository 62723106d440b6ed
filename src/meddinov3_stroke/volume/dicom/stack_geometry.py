"""Where the canonical slices of a stack lie."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from meddinov3_stroke.volume.dicom.header import ImageHeader
from meddinov3_stroke.volume.dicom.stacks import LPS_TO_RAS, Stack
from meddinov3_stroke.volume.geometry import canonical_orientation


def canonical_positions_mm(stack: Stack) -> Float64[np.ndarray, "slice 3"]:
    """RAS+ mm of the centre of voxel (row 0, col 0) of each canonical slice, in the order of the stack's images: what
    `Volume.slice_positions_mm` of several slices is.

    A stored image whose rows or columns run the other way has its Image Position at another corner.
    """
    positions, pixels = stack.slice_positions_mm, stack.first.pixels
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 1:3] = _steps_mm(stack.first)
    orientation = canonical_orientation(affine)
    sides = (len(positions), pixels.rows, pixels.columns)
    for axis, flip in zip(orientation.axes[1:], orientation.flips[1:], strict=True):
        if flip:
            steps = np.stack([_steps_mm(image)[:, axis - 1] for image in stack.images])
            positions = positions + steps * (sides[axis] - 1)
    return positions


def _steps_mm(image: ImageHeader) -> Float64[np.ndarray, "3 2"]:
    """RAS+ mm from a stored voxel to the next row's and to the next column's."""
    assert image.pixel_spacing_mm is not None  # placed images only
    towards = image.directions[::-1].T  # [xyz, (row index, column index)]
    return np.asarray(towards * LPS_TO_RAS[:, None] * np.array(image.pixel_spacing_mm))
