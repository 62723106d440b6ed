"""The headers of a DICOM file from as few of its bytes as they need."""

from __future__ import annotations

from contextlib import suppress

from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.header_reading import headers_of
from meddinov3_stroke.ct.dicom.pixels import NATIVE_SYNTAXES
from meddinov3_stroke.ct.dicom.roles import role_fault
from meddinov3_stroke.ct.dicom.structure import DicomContent, PixelElement, begins_as_dicom, read_structure
from meddinov3_stroke.errors import CorruptInput

HEAD_BYTES = 1 << 14
"""Bytes read of a file at first; RSNA's headers have about 1 KiB, a scanner's rarely more than 8."""


def read_file_headers(file: InputFile) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in a file, one a frame; None where it is no DICOM. Native pixels are not read.

    Raises:
        CorruptInput: damaged; pixel data that is shorter or longer than the header says too.
        InputError, MachineError: as `InputFile.read`.
    """
    content = _content(file)
    if content is None:
        return None
    headers = headers_of(content, file.name)
    is_slice = any(not role_fault(header) for header in headers)  # what is set aside is never decoded
    if is_slice and content.pixel_data is not None and content.transfer_syntax in NATIVE_SYNTAXES:
        _require_pixel_bytes(headers[0], content.pixel_data)
    return headers


def _content(file: InputFile) -> DicomContent | None:
    """The walked file; of a native image longer than `HEAD_BYTES` with zeros for what follows its head.

    The walk skips native pixels by their length, so it judges such a file as it would the whole. Wherever it would
    meet the zeros instead (a longer header, compressed pixels, elements after the pixels) the whole file is read.
    """
    if file.n_bytes > HEAD_BYTES:
        head = file.head(HEAD_BYTES)
        _require_length(file, len(head), HEAD_BYTES)
        if not begins_as_dicom(head):
            return None
        file.require_readable_size()
        with suppress(CorruptInput):
            found = read_structure(head + bytes(file.n_bytes - len(head)), file.name)
            if found is None or _ends_with_pixels(found, len(head), file.n_bytes):
                return found
    content = file.read()
    _require_length(file, len(content), file.n_bytes)
    return read_structure(content, file.name)


def _require_length(file: InputFile, n_found: int, n_expected: int) -> None:
    if n_found < n_expected:
        raise CorruptInput(f"{file.name} has fewer than the {file.n_bytes} bytes it had before; read it again")


def _ends_with_pixels(found: DicomContent, n_head: int, n_bytes: int) -> bool:
    pixels = found.pixel_data
    return (
        pixels is not None
        and pixels.length is not None
        and pixels.offset <= n_head
        and pixels.offset + pixels.length == n_bytes == len(found.content)
    )


def _require_pixel_bytes(header: ImageHeader, found: PixelElement) -> None:
    pixels = header.pixels
    n_values = pixels.rows * pixels.columns * pixels.samples_per_pixel * pixels.n_frames
    expected = n_values * pixels.bits_allocated // 8
    if found.length is None or not expected <= found.length <= expected + 1:  # values have an even length
        length = "an undefined number of" if found.length is None else str(found.length)
        raise CorruptInput(
            f"{header.file} has {length} bytes of pixel data; expected {expected} ({pixels.n_frames} frame(s) of "
            f"{pixels.rows} x {pixels.columns}); it is damaged; fetch it again"
        )
