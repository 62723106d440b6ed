"""What this package reads in the header of a file in memory."""

from __future__ import annotations

from meddinov3_stroke.ct.dicom.container import read_structure
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.survey import headers_of


def read_headers(content: bytes, name: str) -> tuple[ImageHeader, ...] | None:
    """The headers of the images in the bytes of a file called `name`; None if it is not DICOM."""
    found = read_structure(content, name)
    return None if found is None else headers_of(found, name)
