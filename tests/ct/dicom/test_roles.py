"""What an image is for, told by its header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dicom_writer import axial_geometry, write_dicom_series
from dicom_writer.reading import read_headers
from meddinov3_stroke.ct.dicom.header import ImageHeader
from meddinov3_stroke.ct.dicom.series import role_fault


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ImageHeader]:
    """The header of a sound axial slice with fields replaced."""
    folder = tmp_path_factory.mktemp("slice")
    write_dicom_series(folder, np.zeros((1, 4, 5)), axial_geometry([], (4, 5)))
    headers = read_headers((folder / "IM0001.dcm").read_bytes(), "IM0001.dcm")
    assert headers is not None

    def changed(**fields: Any) -> ImageHeader:
        pixels = {
            name: fields.pop(name) for name in ("samples_per_pixel", "photometric_interpretation") if name in fields
        }
        return replace(headers[0], pixels=replace(headers[0].pixels, **pixels), **fields)

    return changed


def test_an_axial_ct_slice_is_a_slice(image) -> None:
    assert role_fault(image()) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"sop_class_uid": "", "image_type": ()},
        {"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")},
        {"image_type": ("DERIVED", "SECONDARY", "MPR")},
        {"photometric_interpretation": "MONOCHROME1"},
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2.1"},
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2.2"},
    ],
    ids=["as bare as RSNA's", "Siemens", "reformatted", "inverted", "enhanced", "converted to enhanced"],
)
def test_other_headers_of_ct_slices_are_slices_too(image, fields: dict[str, Any]) -> None:
    assert role_fault(image(**fields)) == ""


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"has_pixel_data": False}, "no image, a document or another object"),
        ({"modality": "MR"}, "modality MR, not CT"),
        ({"modality": ""}, "modality not stated, not CT"),
        ({"samples_per_pixel": 3, "photometric_interpretation": "RGB"}, "a colour picture (RGB)"),
        ({"photometric_interpretation": "PALETTE COLOR"}, "a colour picture (PALETTE COLOR)"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7.2"}, "a secondary capture"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "a localizer"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "SCOUT")}, "a localizer"),
        ({"image_type": ("DERIVED", "SECONDARY", "SCREEN SAVE")}, "a picture of a report"),
        ({"image_type": ("DERIVED", "SECONDARY", "OTHER", "DOSE_INFO")}, "a picture of a report"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, "SOP class 1.2.840.10008.5.1.4.1.1.4, not CT"),
        ({"position_mm": None, "geometry_fault": "no position in the header"}, "no position in the header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_slice_says_what_it_is(image, fields: dict[str, Any], fault: str) -> None:
    assert role_fault(image(**fields)) == fault
