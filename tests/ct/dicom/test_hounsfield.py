"""Stored pixels as HU: scaling, padding, repair and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut

from dicom_writer.reading import read_headers
from meddinov3_stroke.ct.dicom.container import read_structure
from meddinov3_stroke.ct.dicom.pixels import BEYOND_CT, WRAPPED, ImageHu, decode_frame, image_hu
from meddinov3_stroke.errors import CorruptInput

ToHu = Callable[..., ImageHu]


@pytest.fixture(scope="module")
def to_hu(dicom_bytes: Callable[..., bytes]) -> ToHu:
    """HU of stored values in a file with further elements."""

    def convert(values: np.ndarray, bits_stored: int | None = None, **elements: Any) -> ImageHu:
        content = dicom_bytes(values, bits_stored=bits_stored, **elements)
        headers, found = read_headers(content, "IM1"), read_structure(content, "IM1")
        assert headers is not None
        assert found is not None
        return image_hu(decode_frame(found, headers[0].pixels, 0, "IM1"), headers[0], found)

    return convert


def scaling(slope: str, intercept: str) -> dict[str, str]:
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


FIELD = np.full((8, 8), 40, np.int16)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        ("1", "0", "int16"),
        ("1", "-1024", "int16"),
        ("2", "-1000", "int16"),
        ("1.5", "-1024", "float32"),
        ("1", "0.25", "float32"),
    ],
)
def test_hu_are_slope_times_stored_plus_intercept(to_hu: ToHu, slope: str, intercept: str, dtype: str) -> None:
    stored = np.arange(-200, 1800, 20, dtype=np.int16).reshape(10, 10)
    found = to_hu(stored, **scaling(slope, intercept))
    assert found.hu.dtype == dtype
    np.testing.assert_array_equal(found.hu, stored * float(slope) + float(intercept))


def test_hu_beyond_16_bits_are_float_and_not_wrapped(to_hu: ToHu) -> None:
    stored = np.array([[0, 40000]], np.uint16)
    found = to_hu(stored, **scaling("1", "-1024"))
    assert found.hu.dtype == np.float32
    assert found.hu.tolist() == [[-1024, 38976]]
    assert found.repair == BEYOND_CT


@given(seed=st.integers(0, 1000))
def test_the_rsna_repair_gives_back_what_was_there(to_hu: ToHu, seed: int) -> None:
    """Values of -1000 to 3095 HU that wrapped around 4096 in 12 unsigned bits, beside an intercept of 0."""
    hu = np.random.default_rng(seed).integers(-1000, 3096, (6, 7))
    found = to_hu((hu % 4096).astype(np.uint16), bits_stored=12, **scaling("1", "0"))
    np.testing.assert_array_equal(found.hu, hu)
    assert found.repair == WRAPPED


def test_values_beside_their_own_intercept_are_not_repaired(to_hu: ToHu) -> None:
    stored = np.array([[0, 1024, 4095]], np.uint16)
    found = to_hu(stored, bits_stored=12, **scaling("1", "-1024"))
    assert found.hu.tolist() == [[-1024, 0, 3071]]
    assert found.repair == ""


def padded(value: int, inside: int | None = None) -> np.ndarray:
    """Tissue of 40 with a padded corner, and on request one pixel of the padding's value amid the tissue."""
    stored = FIELD.copy()
    stored[:3, :3] = value
    if inside is not None:
        stored[5, 5] = inside
    return stored


def test_declared_padding_is_air(to_hu: ToHu) -> None:
    found = to_hu(padded(-1010), PixelPaddingValue=-1010, **scaling("1", "0"))
    assert (found.hu[:3, :3] == -1000).all()
    assert (found.hu[3:] == 40).all()
    assert found.n_padding_to_air == 9


def test_padding_below_what_reads_as_air_anyway_stays_as_stored(to_hu: ToHu) -> None:
    """The volume counts it by its value."""
    found = to_hu(padded(-2000), PixelPaddingValue=-2000, **scaling("1", "0"))
    assert (found.hu[:3, :3] == -2000).all()
    assert found.n_padding_to_air == 0


def test_a_range_of_padding_is_air_with_both_its_ends(to_hu: ToHu) -> None:
    stored = padded(-1010)
    stored[0, :3] = [-1020, -1015, -1021]
    found = to_hu(stored, PixelPaddingValue=-1010, PixelPaddingRangeLimit=-1020, **scaling("1", "0"))
    assert found.hu[0, :3].tolist() == [-1000, -1000, -1021]


def test_padding_like_tissue_is_air_only_where_it_touches_the_border(to_hu: ToHu) -> None:
    found = to_hu(padded(0, inside=0), PixelPaddingValue=0, **scaling("1", "0"))
    assert (found.hu[:3, :3] == -1000).all()
    assert found.hu[5, 5] == 0
    assert found.n_padding_to_air == 9


def test_padding_unlike_tissue_is_air_everywhere(to_hu: ToHu) -> None:
    found = to_hu(padded(-1000, inside=-1000), PixelPaddingValue=-1000, **scaling("1", "-24"))
    assert found.hu[5, 5] == -1000
    assert (found.hu == -1000).sum() == 10


def test_without_declared_padding_nothing_is_air(to_hu: ToHu) -> None:
    assert to_hu(padded(0), **scaling("1", "0")).n_padding_to_air == 0


def lut_of(entries: list[int], first: int = 0) -> Dataset:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [len(entries), first, 16])
    lut.ModalityLUTType = "HU"
    lut.add_new("LUTData", "US", entries)
    return lut


def test_a_modality_lut_is_applied_as_pydicom_does(to_hu: ToHu) -> None:
    stored = np.array([[0, 1, 5, 9]], np.uint16)
    lut = lut_of([100, 40, 7, 2000], first=1)
    expected = Dataset()
    expected.ModalityLUTSequence = [lut]
    found = to_hu(stored, ModalityLUTSequence=[lut])
    np.testing.assert_array_equal(found.hu, apply_modality_lut(stored, expected))
    assert found.hu.tolist() == [[100, 100, 2000, 2000]]


def test_a_modality_lut_that_cannot_be_applied_is_damage(to_hu: ToHu) -> None:
    with pytest.raises(CorruptInput, match="IM1: its modality LUT cannot be applied"):
        to_hu(np.array([[0, 1]], np.uint16), ModalityLUTSequence=[Dataset()])
