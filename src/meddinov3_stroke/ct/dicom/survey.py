"""What an input holds: its images in stacks, and the files that are none or are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from meddinov3_stroke.ct.dicom.file_headers import read_file_headers
from meddinov3_stroke.ct.dicom.files import InputFile
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.pixels import decode_frame
from meddinov3_stroke.ct.dicom.stacks import Stack, assemble
from meddinov3_stroke.ct.dicom.structure import read_structure
from meddinov3_stroke.errors import CorruptInput, InputError


@dataclass(frozen=True, eq=False)
class Survey:
    """Every file of an input, once: in a stack, without images, or damaged."""

    files: dict[str, InputFile]
    """By name."""
    stacks: tuple[Stack, ...]
    without_images: tuple[tuple[str, str], ...]
    """(file, what it is): not DICOM, or DICOM that holds no image."""
    damaged: tuple[tuple[str, InputError], ...]
    """(file, why it cannot be read)."""


def survey(files: Sequence[InputFile]) -> Survey:
    """What the files hold, by their headers; pixels are read only where two images lie at one position.

    Raises:
        MachineError: a file cannot be read for the machine's own reasons.
    """
    images: list[ImageHeader] = []
    without: list[tuple[str, str]] = []
    damaged: list[tuple[str, InputError]] = []
    for file in files:
        try:
            headers = read_file_headers(file)
        except InputError as error:
            damaged.append((file.name, error))
            continue
        if headers:
            images += headers
        else:
            without.append((file.name, "not DICOM" if headers is None else "DICOM without an image"))
    by_name = {file.name: file for file in files}
    return Survey(by_name, assemble(images, partial(same_pixels, by_name)), tuple(without), tuple(damaged))


def same_pixels(files: dict[str, InputFile], first: ImageHeader, second: ImageHeader) -> bool:
    """Whether two images hold the same stored pixels and read them alike; what cannot be decoded is like nothing."""
    if (first.pixels, first.rescale, first.padding) != (second.pixels, second.rescale, second.padding):
        return False
    if first.frame == second.frame and files[first.file].read() == files[second.file].read():
        return True
    try:
        frames = [_stored_bytes(files[image.file], image) for image in (first, second)]
    except InputError:
        return False
    return frames[0] == frames[1]


def _stored_bytes(file: InputFile, image: ImageHeader) -> bytes:
    content = read_structure(file.read(), file.name)
    if content is None:
        raise CorruptInput(f"{file.name} is no longer DICOM; it changed while it was read")
    return decode_frame(content, image.pixels, image.frame or 0, file.name).tobytes()
