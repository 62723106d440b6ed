"""A NIfTI file, checked to its last byte, as a canonical volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.ct.geometry import Orientation, axial_orientation, read_affine, voxel_sides
from meddinov3_stroke.ct.hounsfield import judge_voxels
from meddinov3_stroke.ct.nifti_header import NiftiHeader, read_header
from meddinov3_stroke.ct.stream import ByteStream, open_stream
from meddinov3_stroke.errors import CorruptInput, OutOfScope
from meddinov3_stroke.system.digest import sha256_of_array
from meddinov3_stroke.types import Volume, VolumeSource

SLAB_BYTES = 1 << 22
"""Voxels held in the file's order while they wait for their canonical place."""


def read_nifti(path: Path, *, max_voxels: int, allow_single_slice: bool) -> Volume:
    """The volume in the .nii or .nii.gz file at `path`; the order is header, geometry, voxels, end of file.

    Raises:
        CorruptInput, UnsupportedInput, OutOfScope: as `read_volume` says; the system's own errors pass through.
    """
    with open_stream(path, compressed=path.name.lower().endswith(".gz")) as stream:
        header = read_header(stream, max_voxels)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged header is judged, not warned of
            affine, geometry_warnings = read_affine(header.fields, header.shape, path)
        orientation = axial_orientation(affine, path)
        n_slices = header.shape[orientation.axes[0]]
        if n_slices == 1 and not allow_single_slice:
            raise OutOfScope(f"{path} holds a single slice; expected a head volume; allow single slices to read it")
        stored = _read_voxels(stream, header, orientation)
        sha256 = stream.sha256
    stored.flags.writeable = False
    n_padding, voxel_warnings = judge_voxels(stored, header.slope, header.intercept, path)
    canonical = orientation.apply_to_affine(affine, header.shape)
    slice_mm, row_mm, col_mm = (float(side) for side in voxel_sides(canonical))
    pixels_sha256 = sha256_of_array(stored, slope=header.slope, intercept=header.intercept)
    return Volume(
        stored=stored,
        slope=header.slope,
        intercept=header.intercept,
        affine=canonical,
        slice_positions_mm=canonical[:3, 3] + np.arange(n_slices)[:, None] * canonical[:3, 0],
        slice_steps_mm=np.broadcast_to(canonical[:3, 1:3], (n_slices, 3, 2)),
        spacing_mm=(slice_mm, row_mm, col_mm),
        source=VolumeSource(path=path, format="nifti", sha256=sha256, pixels_sha256=pixels_sha256),
        n_padding_voxels=n_padding,
        warnings=(*header.warnings, *geometry_warnings, *voxel_warnings),
    )


def _read_voxels(
    stream: ByteStream, header: NiftiHeader, orientation: Orientation
) -> Real[np.ndarray, "slice row col"]:
    """The voxels in canonical order and native byte order, once the stream has ended as it should.

    Each slab of the file goes to its canonical place as it is read, so that no second copy of the volume is ever held.
    """
    to_skip = header.voxel_offset - int(header.fields["sizeof_hdr"])
    n_content = stream.skip(to_skip)
    shape = tuple(header.shape[axis] for axis in orientation.axes)
    stored = np.empty(shape, dtype=header.dtype.newbyteorder("="))
    if n_content == to_skip:
        n_content += _fill_slabs(stream, header, orientation.file_view(stored))
    if n_content < to_skip + header.voxel_bytes:
        raise CorruptInput(
            f"{stream.path} ends after {n_content + header.voxel_offset - to_skip} bytes of content; its header "
            f"declares {header.voxel_offset + header.voxel_bytes}; it is truncated; fetch it again"
        )
    stream.expect_end()
    return stored


def _fill_slabs(stream: ByteStream, header: NiftiHeader, voxels: Real[np.ndarray, "i j k"]) -> int:
    """How many bytes of voxels there were; `voxels` (a view in the file's axis order) is filled where there were all.

    A slab is as many whole planes, each of one third index, as `SLAB_BYTES` hold, and at least one.
    """
    n_rows, n_cols, n_planes = header.shape
    plane_bytes = n_rows * n_cols * header.dtype.itemsize
    per_slab = min(max(SLAB_BYTES // plane_bytes, 1), n_planes)
    buffer = np.empty(per_slab * plane_bytes, dtype=np.uint8)
    n_read = 0
    for first in range(0, n_planes, per_slab):
        slab = buffer[: min(per_slab, n_planes - first) * plane_bytes]
        n_filled = stream.fill(slab.data)
        n_read += n_filled
        if n_filled < len(slab):
            break
        planes = slab.view(header.dtype).reshape((n_rows, n_cols, -1), order="F")
        voxels[:, :, first : first + per_slab] = planes
    return n_read
