"""The walk over a file's elements: what is whole is passed, in every encoding, and what is not is named."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from meddinov3_stroke.ct.dicom import container
from meddinov3_stroke.ct.dicom.container import DicomContent, read_structure
from meddinov3_stroke.errors import CorruptInput

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))
JPEG_2000 = "1.2.840.10008.1.2.4.90"
ENCODINGS = (IMPLICIT, EXPLICIT, BIG)
UNDEFINED = 0xFFFFFFFF


def _nested(depth: int, *, is_open: bool) -> Dataset:
    """A data set with sequences one inside the other."""
    dataset = Dataset()
    dataset.CodeValue = "T-1"
    for _ in range(depth):
        outer = Dataset()
        outer.ConceptNameCodeSequence = Sequence([dataset])
        outer["ConceptNameCodeSequence"].is_undefined_length = is_open
        dataset.is_undefined_length_sequence_item = is_open
        dataset = outer
    return dataset


def _written(dataset: Dataset, syntax: str) -> bytes:
    """The elements as pydicom writes them, without preamble and meta."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def _file(data_set: bytes, syntax: str = EXPLICIT) -> bytes:
    """A whole file around the bytes of a data set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = UID(syntax), UID("1.2.3")
    return bytes(128) + b"DICM" + _written(meta, EXPLICIT) + data_set


def _read(content: bytes) -> DicomContent:
    found = read_structure(content, "case.dcm")
    assert found is not None
    return found


def _element(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An explicit little endian element of a 16-bit or 32-bit length."""
    n = len(value) if length is None else length
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sxxI", group, element, vr, n) + value
    return struct.pack("<HH2sH", group, element, vr, n) + value


def _item(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END, SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
MODALITY = _element(0x0008, 0x0060, b"CS", b"CT")


@pytest.mark.shared_data
def test_every_real_file_is_walked_to_where_pydicom_finds_its_pixels(shared_data_dir) -> None:
    n_files = 0
    for path in sorted(shared_data_dir.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found = read_structure(content, path.name)
        if found is None:
            assert content[128:132] != b"DICM"
            continue
        dataset = pydicom.dcmread(path)
        assert found.transfer_syntax == dataset.file_meta.TransferSyntaxUID
        assert (found.pixel_data is None) == ("PixelData" not in dataset)
        if found.pixel_data is not None:
            end = found.pixel_data.offset + found.pixel_data.length
            assert content[found.pixel_data.offset : end] == dataset.PixelData
            n_files += 1
    assert n_files > 28


@pytest.mark.parametrize("syntax", [*ENCODINGS, DEFLATED])
def test_the_pixel_data_is_found_in_every_encoding(syntax, dicom_bytes, ct_values) -> None:
    values = ct_values("u2")
    found = _read(dicom_bytes(values, syntax, ReferencedImageSequence=Sequence([_nested(2, is_open=False)])))
    pixel_data = found.pixel_data
    order = ">" if syntax == BIG else "<"
    assert found.transfer_syntax == syntax
    assert pixel_data.length == values.nbytes
    stored = np.frombuffer(found.content, order + "u2", values.size, pixel_data.offset)
    np.testing.assert_array_equal(stored, values.ravel())


def test_encapsulated_pixel_data_has_no_length(dicom_bytes, ct_values) -> None:
    found = _read(dicom_bytes(ct_values(), JPEG_2000))
    assert found.transfer_syntax == JPEG_2000
    assert found.pixel_data.length is None
    assert found.pixel_data.vr == "OB"
    assert found.content[found.pixel_data.offset :].startswith(b"\xfe\xff\x00\xe0")


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_data_set_without_preamble_and_meta_is_read(syntax, dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values(), syntax)
    data_set = content[content.index(b"\x08\x00\x16\x00") :]
    found = _read(data_set)
    assert found.transfer_syntax == syntax
    assert found.pixel_data.length == 960


@pytest.mark.parametrize("syntax", ENCODINGS)
def test_a_meta_without_preamble_is_read(syntax, dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values(), syntax)
    assert _read(content[132:]).transfer_syntax == syntax


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_preamble_without_meta_is_read(syntax, dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values(), syntax)
    found = _read(content[:132] + content[content.index(b"\x08\x00\x16\x00") :])
    assert found.transfer_syntax == syntax


def test_a_wrong_length_of_the_meta_group_is_passed_over(dicom_bytes, ct_values) -> None:
    content = bytearray(dicom_bytes(ct_values()))
    assert content[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    content[140:144] = b"\xff\xff\x00\x00"
    assert _read(bytes(content)).pixel_data.length == 960


@pytest.mark.parametrize(("syntax", "stated"), [(IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT), (IMPLICIT, "1.2.3.4")])
def test_the_encoding_that_is_found_counts(syntax, stated, dicom_bytes, ct_values, relabelled) -> None:
    found = _read(relabelled(dicom_bytes(ct_values(), syntax), syntax, stated))
    assert found.transfer_syntax == stated
    assert found.pixel_data.length == 960


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"DICM",
        bytes(1000),
        b"GIF89a" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\x08\x00\x05\x00\xff\xff\xff\x7f" + bytes(100),
        b"\x08\x00\x05\x00ZZ\x04\x00" + bytes(100),
        np.random.default_rng(0).bytes(5000),
    ],
)
def test_bytes_of_another_kind_are_no_dicom(content) -> None:
    assert read_structure(content, "notes.txt") is None


@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize("is_open", [False, True])
def test_64_nested_sequences_are_read_and_65_are_not(syntax, is_open) -> None:
    assert _read(_file(_written(_nested(64, is_open=is_open), syntax), syntax)).pixel_data is None
    with pytest.raises(CorruptInput, match=r"\(0040,a043\) at byte \d+ is nested deeper than 64"):
        _read(_file(_written(_nested(65, is_open=is_open), syntax), syntax))


@pytest.mark.parametrize("is_open", [False, True])
def test_a_tower_of_a_hundred_thousand_sequences_is_refused_at_once(is_open) -> None:
    length = UNDEFINED if is_open else 10**7
    tower = (_element(0x0040, 0xA043, b"SQ", b"", length) + _item(b"", length)) * 100_000
    with pytest.raises(CorruptInput):
        _read(_file(MODALITY + tower))


def test_private_sequences_of_unknown_representation_are_walked() -> None:
    implicit = struct.pack("<HHI", 0x0009, 0x1001, 4) + b"abcd"
    inner = _item(implicit + ITEM_END, UNDEFINED) + _item(implicit) + SEQUENCE_END
    assert _read(_file(_element(0x0009, 0x1010, b"UN", inner, UNDEFINED))).pixel_data is None
    with pytest.raises(CorruptInput):
        _read(_file(_element(0x0009, 0x1010, b"UN", inner[:-8], UNDEFINED)))


def test_an_icon_with_fragments_of_its_own_is_not_the_pixel_data(dicom_bytes, ct_values) -> None:
    fragments = _item(b"") + _item(b"\1\2\3\4") + SEQUENCE_END
    icon = _element(0x7FE0, 0x0010, b"OB", fragments, UNDEFINED)
    sequence = _element(0x0088, 0x0200, b"SQ", _item(icon + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED)
    content = dicom_bytes(ct_values(), JPEG_2000)
    at = content.rindex(b"\xe0\x7f\x10\x00OB")
    found = _read(content[:at] + sequence + content[at:])
    assert found.pixel_data.offset == at + len(sequence) + 12


def test_implicit_items_in_an_explicit_file_are_walked() -> None:
    implicit = struct.pack("<HHI", 0x0008, 0x0104, 4) + b"CTCT"
    assert _read(_file(_element(0x0008, 0x1140, b"SQ", _item(implicit)) + MODALITY)).pixel_data is None


def test_elements_behind_the_pixel_data_and_zero_padding_are_taken(dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values())
    padding = _element(0xFFFC, 0xFFFC, b"OB", bytes(64))
    assert _read(content + padding).pixel_data.offset == _read(content).pixel_data.offset
    assert _read(content + bytes(300)).pixel_data.length == 960
    with pytest.raises(CorruptInput):
        _read(content + bytes(300) + b"\1")


@pytest.mark.parametrize("syntax", ENCODINGS)
def test_every_truncation_is_corrupt_unless_it_is_between_elements(syntax, dicom_bytes, ct_values) -> None:
    values = ct_values(shape=(4, 4))
    content = dicom_bytes(values, syntax, ReferencedImageSequence=Sequence([_nested(1, is_open=True)]))
    whole = 0
    for n_bytes in range(140, len(content)):
        try:
            found = _read(content[:n_bytes])
        except CorruptInput:
            pass
        else:
            whole += 1
            assert found.pixel_data is None
    assert whole < 30


def test_every_truncation_of_fragments_is_corrupt(dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values(), JPEG_2000)
    start = _read(content).pixel_data.offset
    for n_bytes in range(start, len(content)):
        with pytest.raises(CorruptInput):
            _read(content[:n_bytes])


@pytest.mark.parametrize(
    ("data_set", "words"),
    [
        (
            _element(0x0008, 0x0060, b"CS", b"CT", 3),
            r"\(0008,0060\) at byte \d+ declares 3 bytes and extends 1 bytes beyond",
        ),
        (_element(0x0009, 0x0001, b"OB", b"", 1 << 31), r"\(0009,0001\) at byte \d+ declares 2147483648 bytes"),
        (_element(0x0009, 0x0001, b"UT", b"", UNDEFINED), r"undefined length, which UT cannot have"),
        (MODALITY + b"\x08\x00\x70\x00", r"stops inside the element at byte \d+"),
        (MODALITY + _element(0x0008, 0x0070, b"OB", b"")[:9], r"stops inside the element at byte \d+"),
        (MODALITY + _element(0x0008, 0x0070, b"zz", b"aa"), r"\(0008,0070\) at byte \d+ has the unknown value rep"),
        (MODALITY + ITEM_END, r"\(fffe,e00d\) at byte \d+ is a delimiter where an element is expected"),
        (MODALITY + SEQUENCE_END, r"\(fffe,e0dd\) at byte \d+ is a delimiter"),
        (MODALITY + _item(b""), r"\(fffe,e000\) at byte \d+ is a delimiter"),
        (_element(8, 0x1140, b"SQ", MODALITY), r"\(0008,0060\) at byte \d+ is found where an item of \(0008,1140\)"),
        (_element(8, 0x1140, b"SQ", _item(MODALITY), UNDEFINED), r"\(0008,1140\).*without its delimiter"),
        (_element(8, 0x1140, b"SQ", _item(MODALITY, UNDEFINED)), r"\(fffe,e000\).*whose delimiter is missing"),
        (
            _element(8, 0x1140, b"SQ", _item(MODALITY, 9)) + MODALITY,
            r"\(0008,0060\) at byte \d+ declares 2 .* extends 1",
        ),
        (
            _element(8, 0x1140, b"SQ", _item(MODALITY, 11)) + MODALITY,
            r"\(fffe,e000\) at byte \d+ declares 11 .* extends 1",
        ),
        (_element(8, 0x1140, b"SQ", _item(MODALITY)[:-2], 18) + MODALITY, r"unknown value representation"),
        (_element(0x7FE0, 0x10, b"OW", b"") * 2, r"\(7fe0,0010\) at byte \d+ occurs twice"),
        (_element(0x7FE0, 0x10, b"OB", _item(b"") + MODALITY, UNDEFINED), r"is found where a fragment"),
        (_element(0x7FE0, 0x10, b"OB", _item(b""), UNDEFINED), r"\(7fe0,0010\).*without the delimiter"),
        (_element(0x7FE0, 0x10, b"OB", _item(b"", 7) + SEQUENCE_END, UNDEFINED), r"without the delimiter"),
        (_element(0x7FE0, 0x10, b"OB", _item(b"", UNDEFINED) + SEQUENCE_END, UNDEFINED), r"declares 4294967295 bytes"),
    ],
)
def test_a_fault_is_named_with_its_element_and_byte(data_set, words) -> None:
    with pytest.raises(CorruptInput, match=words):
        _read(_file(data_set))


def test_a_lying_meta_is_corrupt(dicom_bytes, ct_values) -> None:
    content = dicom_bytes(ct_values())
    at = content.index(b"\x02\x00\x10\x00UI")
    for lie in (content[: at + 6] + b"\xff\xff" + content[at + 8 :], content[: at + 4] + b"??" + content[at + 6 :]):
        with pytest.raises(CorruptInput, match=r"\(0002,0010\)"):
            _read(lie)


def _deflated(data_set: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data_set) + packer.flush()


def test_a_deflated_file_is_given_as_the_plain_one(dicom_bytes, ct_values) -> None:
    values = ct_values()
    found = _read(dicom_bytes(values, DEFLATED))
    dataset = pydicom.dcmread(io.BytesIO(found.content))
    assert dataset.file_meta.TransferSyntaxUID == EXPLICIT
    np.testing.assert_array_equal(dataset.pixel_array, values)


def test_an_inflation_bomb_stops_at_the_cap(monkeypatch) -> None:
    monkeypatch.setattr(container, "MAX_INFLATED_BYTES", 1 << 22)
    content = _file(_deflated(_element(0x0009, 0x0001, b"OB", bytes(1 << 26))), DEFLATED)
    assert len(content) < 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInput, match="inflates beyond 4194304 bytes"):
            _read(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda packed: packed[:-1], "stops before its end"),
        (lambda packed: packed[: len(packed) // 2], "stops before its end"),
        (lambda packed: packed + b"\1", "continues after its end"),
        (lambda packed: packed + bytes(2) + b"\1", "continues after its end"),
        (lambda packed: b"\xff" + packed[1:], "cannot be inflated"),
        (lambda _: b"", "stops before its end"),
    ],
)
def test_damaged_deflated_data_is_corrupt(change, words) -> None:
    with pytest.raises(CorruptInput, match=words):
        _read(_file(change(_deflated(MODALITY * 50)), DEFLATED))


def test_a_deflated_data_set_may_be_padded_by_one_byte() -> None:
    assert _read(_file(_deflated(MODALITY) + b"\0", DEFLATED)).pixel_data is None


def test_the_walk_is_linear() -> None:
    def seconds(n_elements: int) -> float:
        items: Any = _item(MODALITY * 10 + ITEM_END, UNDEFINED) * (n_elements // 10)
        content = _file(_element(8, 0x1140, b"SQ", items + SEQUENCE_END, UNDEFINED))
        start = time.process_time()
        _read(content)
        return time.process_time() - start

    seconds(1000)
    assert seconds(200_000) < 30 * max(seconds(20_000), 0.005)
