"""A NIfTI file, checked to its last byte, as a canonical volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Real

from meddinov3_stroke.errors import CorruptInput, OutOfScope
from meddinov3_stroke.runtime.digest import sha256_of_array
from meddinov3_stroke.types import Volume, VolumeSource
from meddinov3_stroke.volume.geometry import canonical_orientation, read_affine, voxel_sides
from meddinov3_stroke.volume.hounsfield import judge_voxels
from meddinov3_stroke.volume.nifti_header import NiftiHeader, read_header
from meddinov3_stroke.volume.stream import ByteStream, open_stream


def read_nifti(path: Path, *, max_voxels: int, allow_single_slice: bool) -> Volume:
    """The volume in the .nii or .nii.gz file at `path`; the order is header, geometry, voxels, end of file.

    Raises:
        CorruptInput, UnsupportedInput, OutOfScope: as `read_volume` says; the system's own errors pass through.
    """
    with open_stream(path, compressed=path.name.lower().endswith(".gz")) as stream:
        header = read_header(stream, max_voxels)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged header is judged, not warned of
            affine, geometry_warnings = read_affine(header.fields, header.shape, path)
        orientation = canonical_orientation(affine, path)
        n_slices = header.shape[orientation.axes[0]]
        if n_slices == 1 and not allow_single_slice:
            raise OutOfScope(f"{path} holds a single slice; expected a head volume; allow single slices to read it")
        voxels = _read_voxels(stream, header)
        sha256 = stream.sha256
    stored = np.ascontiguousarray(orientation.apply(voxels), dtype=header.dtype.newbyteorder("="))
    del voxels
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
        spacing_mm=(slice_mm, row_mm, col_mm),
        source=VolumeSource(path=path, format="nifti", sha256=sha256, pixels_sha256=pixels_sha256),
        n_padding_voxels=n_padding,
        warnings=(*header.warnings, *geometry_warnings, *voxel_warnings),
    )


def _read_voxels(stream: ByteStream, header: NiftiHeader) -> Real[np.ndarray, "i j k"]:
    """The voxels in the file's axis order and byte order, once the stream has ended as it should."""
    to_skip = header.voxel_offset - int(header.fields["sizeof_hdr"])
    n_content = stream.skip(to_skip)
    voxels = np.empty(header.voxel_bytes, dtype=np.uint8)
    if n_content == to_skip:
        n_content += stream.fill(voxels.data)
    if n_content < to_skip + header.voxel_bytes:
        raise CorruptInput(
            f"{stream.path} ends after {n_content + header.voxel_offset - to_skip} bytes of content; its header "
            f"declares {header.voxel_offset + header.voxel_bytes}; it is truncated; fetch it again"
        )
    stream.expect_end()
    return voxels.view(header.dtype).reshape(header.shape, order="F")
