"""NIfTI files made to order: sound ones by nibabel, then any header field or byte changed."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

AXIAL = np.array([[-0.5, 0, 0, 60.0], [0, -0.5, 0, 80.0], [0, 0, 5.0, -30.0], [0, 0, 0, 1]])
"""Columns to the patient's left, rows to posterior, slices to superior."""


def nifti_bytes(
    voxels: np.ndarray, affine: np.ndarray = AXIAL, *, version: int = 1, order: str = "<", **fields: Any
) -> bytes:
    """An uncompressed NIfTI file; `fields` overwrite raw header fields after nibabel made it."""
    image_type, header_type = {
        1: (nib.Nifti1Image, nib.Nifti1Header),
        2: (nib.Nifti2Image, nib.Nifti2Header),
    }[version]
    header = header_type(endianness=order)
    header.set_data_dtype(voxels.dtype)
    image = image_type(voxels, affine, header)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    raw = header_type(content[: header.sizeof_hdr], endianness=order, check=False)
    for name, value in fields.items():
        raw[name] = value
    return raw.binaryblock + content[header.sizeof_hdr :]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes bytes under a name, through gzip where the name says so, and returns the path."""

    def write_file(content: bytes, name: str = "case.nii.gz", *, pack: bool | None = None) -> Path:
        path = tmp_path / name
        pack = name.lower().endswith(".gz") if pack is None else pack
        path.write_bytes(gzip.compress(content, mtime=0) if pack else content)
        return path

    return write_file


@pytest.fixture
def write_nifti(write: Callable[..., Path]) -> Callable[..., Path]:
    """A function that writes voxels as NIfTI with any header field overwritten, and returns the path."""

    def write_volume(voxels: np.ndarray, affine: np.ndarray = AXIAL, name: str = "case.nii.gz", **options: Any) -> Path:
        return write(nifti_bytes(voxels, affine, **options), name)

    return write_volume


@pytest.fixture
def head() -> np.ndarray:
    """Small int16 voxels, all different, in the order (x, y, z) of a file."""
    return np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 30


@pytest.fixture
def make_nifti_bytes() -> Callable[..., bytes]:
    """`nifti_bytes`, for tests that change the bytes themselves."""
    return nifti_bytes
