"""Values by pydicom, under settings that nobody else sees."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.errors import BytesLengthException

from meddinov3_stroke.ct.dicom import container as dataset_module
from meddinov3_stroke.ct.dicom.container import DicomContent, parse_dataset, read_structure
from meddinov3_stroke.errors import CorruptInput

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))
JPEG_2000 = "1.2.840.10008.1.2.4.90"


@pytest.fixture
def rsna_bytes(dicom_bytes, ct_values) -> Callable[..., bytes]:
    """A header with UIDs as the RSNA 2019 files have them, in an item too."""

    def write(syntax: str = EXPLICIT) -> bytes:
        item = Dataset()
        item.ReferencedSOPInstanceUID = "1.2.3.4.66666"
        references = Sequence([item])
        content = dicom_bytes(
            ct_values(), syntax, SeriesInstanceUID="1.2.3.4.55555", ReferencedImageSequence=references
        )
        return content.replace(b"1.2.3.4.55555", b"ID_0a0ba0944f").replace(b"1.2.3.4.66666", b"ID_1b1cb1055a")

    return write


def _parse(content: bytes, tags: list[int] | None = None) -> Dataset:
    structure = read_structure(content, "case.dcm")
    assert structure is not None
    return parse_dataset(structure, "case.dcm", tags)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG_2000])
def test_the_values_are_those_that_went_in_and_the_pixels_are_left_out(syntax, dicom_bytes, ct_values) -> None:
    dataset = _parse(dicom_bytes(ct_values(), syntax, PatientID="P1", ImagePositionPatient=[1.5, -2, 3]))
    assert (dataset.Rows, dataset.Columns, dataset.PatientID) == (24, 20, "P1")
    assert list(dataset.ImagePositionPatient) == [1.5, -2, 3]
    assert "PixelData" not in dataset
    assert dataset.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"


def test_only_the_tags_asked_for_are_there(dicom_bytes, ct_values) -> None:
    dataset = _parse(dicom_bytes(ct_values(), PatientName="A^B"), [0x00280010, 0x00280011])
    assert {element.keyword for element in dataset} == {"Rows", "Columns"}


@pytest.mark.parametrize("cut", [0, 132])
def test_files_without_preamble_or_meta_are_parsed(cut, dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values())
    start = cut or content.index(b"\x08\x00\x16\x00")
    assert _parse(content[start:]).Rows == 24


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_uids_as_rsna_has_them_are_read_without_a_warning(syntax, rsna_bytes) -> None:
    dataset = _parse(rsna_bytes(syntax))
    assert dataset.SeriesInstanceUID == "ID_0a0ba0944f"
    assert dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "ID_1b1cb1055a"


def test_outside_the_same_uid_still_warns(rsna_bytes) -> None:
    content = rsna_bytes()
    settings, filters = pydicom.config.settings, list(warnings.filters)
    before = settings.reading_validation_mode, settings.writing_validation_mode
    _parse(content)
    assert (settings.reading_validation_mode, settings.writing_validation_mode) == before
    assert warnings.filters == filters
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        _ = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)).SeriesInstanceUID


def test_strict_settings_of_the_user_do_not_refuse_what_rsna_has(rsna_bytes, monkeypatch) -> None:
    monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.RAISE)
    assert _parse(rsna_bytes()).SeriesInstanceUID == "ID_0a0ba0944f"
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.RAISE


def test_a_value_that_cannot_be_converted_waits_for_its_reader(dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values())
    dataset = _parse(content.replace(b"\x28\x00\x10\x00US\x02\x00\x18\x00", b"\x28\x00\x10\x00US\x03\x00\x18\x00\x00"))
    assert dataset.Columns == 20
    with pytest.raises(BytesLengthException):
        _ = dataset.Rows


def test_what_pydicom_raises_is_corrupt_input_that_names_the_file(dicom_bytes, ct_values, monkeypatch) -> None:
    content = read_structure(dicom_bytes(ct_values()), "case.dcm")
    for raised in (ValueError("two\nlines"), RecursionError(), KeyError(3), AttributeError("x")):

        def fail(*_: object, error: Exception = raised, **__: object) -> None:
            raise error

        monkeypatch.setattr(dataset_module, "pydicom", SimpleNamespace(dcmread=fail))
        with pytest.raises(CorruptInput, match=r"^case\.dcm: [^\n]*$"):
            parse_dataset(content, "case.dcm")


def test_damage_that_pydicom_meets_is_corrupt_input(dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values())
    length = content.index(b"\x02\x00\x00\x00UL\x04\x00")
    damaged = content[: length + 6] + b"\x03\x00" + content[length + 9 :]
    with pytest.raises(CorruptInput, match=r"case\.dcm: the data set cannot be read \(BytesLengthException"):
        _parse(damaged)


def test_threads_leave_the_settings_as_they_were(rsna_bytes) -> None:
    structure = read_structure(rsna_bytes(), "case.dcm")
    assert isinstance(structure, DicomContent)
    before = pydicom.config.settings.reading_validation_mode
    filters = list(warnings.filters)
    barrier = threading.Barrier(4)

    def parse_many(_: int) -> list[str]:
        barrier.wait()
        return [str(parse_dataset(structure, "case.dcm").SeriesInstanceUID) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        uids = list(pool.map(parse_many, range(4)))
    assert np.unique(uids).tolist() == ["ID_0a0ba0944f"]
    assert pydicom.config.settings.reading_validation_mode == before
    assert warnings.filters == filters
