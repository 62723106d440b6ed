"""From a data set and its frames to the bytes of a file, in any transfer syntax and container."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import dcmread
from pydicom.filewriter import dcmwrite

from dicom_writer.header import CT_IMAGE, file_meta
from dicom_writer.options import NATIVE, TRANSFER_SYNTAXES

PREAMBLE_BYTES = 132
"""128 bytes and `DICM` (DICOM PS3.10 7.1)."""
META_LENGTH_BYTES = 12
"""The element that holds the length of the rest of the file meta group."""
ENCODER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "rle": {"encoding_plugin": "pydicom"},
    "jpeg_ls": {},
    "jpeg_ls_near": {"jls_error": 2},
    "jpeg_2000_lossless": {},
    "jpeg_2000": {"j2k_psnr": [95]},
}
"""Arguments of pydicom's encoder of each transfer syntax."""


def file_bytes(
    dataset: Dataset,
    frames: Integer[np.ndarray, "frame row col"],
    *,
    transfer_syntax: str = "explicit",
    container: str = "part10",
    meta_uid: str | None = None,
) -> bytes:
    """The bytes of a DICOM file; `dataset` gets its pixels and its file meta group.

    Args:
        dataset: With the pixel format of the frames.
        frames: 16-bit values.
        transfer_syntax: A name in `TRANSFER_SYNTAXES`.
        container: `part10`, `no_preamble` or `bare`.
        meta_uid: SOP UID of the file meta group, where the data set's own has no UID's form.
    """
    sop_class_uid = dataset.get("SOPClassUID", CT_IMAGE)
    uid = TRANSFER_SYNTAXES[transfer_syntax]
    dataset.file_meta = file_meta(sop_class_uid, meta_uid or dataset.SOPInstanceUID, uid)
    if transfer_syntax in NATIVE:
        stored = frames.dtype.newbyteorder(">" if transfer_syntax == "big_endian" else "<")
        dataset.add_new("PixelData", "OW", frames.astype(stored).tobytes())
    elif transfer_syntax.startswith("jpeg_lossless"):
        fragments = [jpeg_lossless(frame, int(dataset.BitsStored), transfer_syntax) for frame in frames]
        dataset.add_new("PixelData", "OB", encapsulate(fragments))
        dataset["PixelData"].is_undefined_length = True
    else:
        _compress(dataset, frames, transfer_syntax)
    return contained(write_dataset(dataset), container)


def write_dataset(dataset: Dataset) -> bytes:
    """The bytes of a data set that has its file meta group."""
    buffer = io.BytesIO()
    dataset.preamble = bytes(128)
    # not enforced: that would put the data set's UID into the file meta group, and RSNA's have no UID's form
    dcmwrite(buffer, dataset, enforce_file_format=False)
    return buffer.getvalue()


def contained(content: bytes, container: str) -> bytes:
    """A whole file, or one that begins with its file meta group, or its data set alone."""
    if container == "part10":
        return content
    if container == "no_preamble":
        return content[PREAMBLE_BYTES:]
    length_end = PREAMBLE_BYTES + META_LENGTH_BYTES
    return content[length_end + int.from_bytes(content[length_end - 4 : length_end], "little") :]


def _compress(dataset: Dataset, frames: Integer[np.ndarray, "frame row col"], transfer_syntax: str) -> None:
    pixels = frames if "NumberOfFrames" in dataset else frames[0]
    arguments = ENCODER_ARGUMENTS[transfer_syntax]
    dataset.compress(TRANSFER_SYNTAXES[transfer_syntax], pixels, generate_instance_uid=False, **arguments)


def jpeg_lossless(frame: Integer[np.ndarray, "row col"], bits_stored: int, transfer_syntax: str) -> bytes:
    """A frame as JPEG Lossless, through GDCM, which reads and writes files only."""
    with tempfile.TemporaryDirectory() as folder:
        native, compressed = Path(folder) / "native", Path(folder) / "compressed"
        native.write_bytes(_bare_frame(frame, bits_stored))
        _transcode(native, compressed, transfer_syntax)
        return next(generate_frames(dcmread(compressed).PixelData, number_of_frames=1))


def _bare_frame(frame: Integer[np.ndarray, "row col"], bits_stored: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, "2.25.1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = frame.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(frame.dtype.kind == "i")
    return file_bytes(dataset, frame[None])


def _transcode(native: Path, compressed: Path, transfer_syntax: str) -> None:
    import gdcm

    name = {"jpeg_lossless": "JPEGLosslessProcess14", "jpeg_lossless_sv1": "JPEGLosslessProcess14_1"}[transfer_syntax]
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(native))
    if not reader.Read():
        raise RuntimeError("GDCM cannot read the frame it is to compress")
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"GDCM cannot write {transfer_syntax}")
    writer.SetFileName(str(compressed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"GDCM cannot write {compressed}")
