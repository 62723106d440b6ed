"""DICOM files as bytes, in each transfer syntax that can be written here.

gdcm encodes RLE, JPEG Lossless (.57, .70), JPEG-LS (.80, .81) and JPEG 2000 (.90, .91) of 8 and 16 bits; pydicom writes
the elements. What the package reads is compared with what went in.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import gdcm
import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian

from meddinov3_stroke.ct.dicom.header import PixelFormat

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def _encoded_by_gdcm(values: np.ndarray, syntax: str, bits_stored: int) -> bytes:
    """The codestream of one frame. gdcm ends the process over JPEG 2000 of a few pixels and over RLE of an odd number
    of bytes, so neither is asked of it."""
    signed = int(values.dtype.kind == "i")
    writer = gdcm.ImageWriter()
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((values.shape[1], values.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, 8 * values.itemsize, bits_stored, bits_stored - 1, signed))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(values.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(image)
    assert change.Change()
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    parts = [fragments.GetFragment(i).GetByteValue().GetBuffer() for i in range(fragments.GetNumberOfFragments())]
    return b"".join(part.encode("utf-8", "surrogateescape") for part in parts)


def _pixel_module(values: np.ndarray, bits_stored: int, high_bit: int | None) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE_STORAGE, "1.2.3.4"
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = values.shape[-2:]
    if values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * values.itemsize, bits_stored
    dataset.HighBit = bits_stored - 1 if high_bit is None else high_bit
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    return dataset


def _pixel_bytes(values: np.ndarray, syntax: UID, bits_stored: int, codestreams: list[bytes] | None) -> bytes:
    if syntax.is_encapsulated:
        frames = values.reshape(-1, *values.shape[-2:])
        streams = codestreams or [_encoded_by_gdcm(frame, str(syntax), bits_stored) for frame in frames]
        return encapsulate(streams)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    stored = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return stored + bytes(len(stored) % 2)


@pytest.fixture(scope="session")
def dicom_bytes() -> Callable[..., bytes]:
    """Writes a file: `values` [row col] or [frame row col] of the stored dtype; keywords are further elements."""

    def write(
        values: np.ndarray,
        syntax: str = "1.2.840.10008.1.2.1",
        bits_stored: int | None = None,
        high_bit: int | None = None,
        pixel_bytes: bytes | None = None,
        codestreams: list[bytes] | None = None,
        pixel_vr: str = "",
        **elements: Any,
    ) -> bytes:
        bits_stored, uid = bits_stored or 8 * values.itemsize, UID(syntax)
        dataset = _pixel_module(values, bits_stored, high_bit)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        stored = _pixel_bytes(values, uid, bits_stored, codestreams) if pixel_bytes is None else pixel_bytes
        vr = pixel_vr or ("OB" if uid.is_encapsulated or values.itemsize == 1 else "OW")
        dataset.add_new(0x7FE00010, vr, stored)
        dataset["PixelData"].is_undefined_length = uid.is_encapsulated
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()

    return write


@pytest.fixture(scope="session")
def relabelled() -> Callable[[bytes, str, str], bytes]:
    """Replaces the transfer syntax that a file states, and nothing else."""

    def element(uid: str) -> bytes:
        value = uid.encode() + bytes(len(uid) % 2)
        return b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value

    def relabel(content: bytes, syntax: str, stated: str) -> bytes:
        assert content.count(element(syntax)) == 1
        return content.replace(element(syntax), element(stated))

    return relabel


@pytest.fixture(scope="session")
def pixel_format() -> Callable[..., PixelFormat]:
    """The format of `values` as the header would say it; keywords replace fields."""

    def build(values: np.ndarray, **changes: Any) -> PixelFormat:
        bits_stored = changes.get("bits_stored", 8 * values.itemsize)
        fields: dict[str, Any] = {
            "rows": values.shape[-2],
            "columns": values.shape[-1],
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",
            "bits_allocated": 8 * values.itemsize,
            "bits_stored": bits_stored,
            "high_bit": bits_stored - 1,
            "is_signed": values.dtype.kind == "i",
            "n_frames": len(values) if values.ndim == 3 else 1,
        }
        return PixelFormat(**(fields | changes))

    return build


@pytest.fixture(scope="session")
def ct_values() -> Callable[..., np.ndarray]:
    """Stored values like a CT's, over the whole range of the bits: a ramp with noise, 24 x 20 or another shape."""

    def build(dtype: str = "i2", bits_stored: int | None = None, shape: tuple[int, ...] = (24, 20)) -> np.ndarray:
        bits = bits_stored or 8 * np.dtype(dtype).itemsize
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype[0] == "i" else (0, 2**bits - 1)
        ramp = np.linspace(low, high, int(np.prod(shape))).reshape(shape)
        noise = np.random.default_rng(3).normal(0, 5, shape)
        return np.clip(ramp + noise, low, high).astype(dtype)

    return build
