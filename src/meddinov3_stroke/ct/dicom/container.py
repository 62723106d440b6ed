"""The container of a DICOM file, verified to its last byte, and its values (PS3.5 and PS3.10, section 7).

pydicom limits neither inflation nor the nesting of sequences and accepts truncated files, so `read_structure` checks
these first, in one linear walk that keeps only the location of the pixel data. pydicom then parses the values.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO

import pydicom
from pydicom.config import disable_value_validation

from meddinov3_stroke.errors import CorruptInput

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
"""First bytes of a DICOM file; files of older writers and raw data sets lack them (PS3.10 section 7.1)."""

MAX_INFLATED_BYTES = 2**28
"""Largest inflated data set: 512 x 512 x 500 pixels of 16 bits. Deflate expands at most 1032-fold."""

MAX_DEPTH = 64
"""Deepest accepted nesting of sequences; a CT has fewer than ten, and pydicom recurses."""

MAX_FRAGMENTS = 2**18
"""Most fragments of pixel data, whose places are kept; 4096 frames have that many at 64 each."""

ITEM, ITEM_HEADER = b"\xfe\xff\x00\xe0", 8
"""The tag of an item in little endian, and bytes of its tag and length."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Transfer syntaxes whose pixels are not compressed frame by frame (PS3.5 annex A)."""

_UNDEFINED = 0xFFFFFFFF  # length of a value that ends with a delimiter

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with an explicit length of 16 bits, and of two reserved bytes and 32 (PS3.5 section 7.1.2)."""

_KNOWN_VRS = _SHORT_VRS | _LONG_VRS
_DELIMITER_GROUP, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE, (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_PIXEL_DATA, _TRANSFER_SYNTAX = (0x7FE0, 0x0010), 0x0010
_MARKS = (b"\xfe\xff", b"\xff\xfe")

_MAX_FIRST_LENGTH = 1024  # of the first element without a preamble; files of other kinds nearly always exceed it

_RAW_DEFLATE = -15  # zlib's window bits for a stream without header and checksum (PS3.5 annex A.5)

_Element = tuple[tuple[int, int], bytes, int, int]
"""Tag, value representation (empty if implicit), length, and the offset of the value."""

_pydicom_settings = threading.RLock()
"""pydicom's settings and Python's warning filters are global: one thread at a time changes and restores them."""


@dataclass(frozen=True, eq=False)
class PixelElement:
    """Location of the pixel data: offset in `DicomContent.content`, and bytes, None if encapsulated."""

    offset: int
    length: int | None
    vr: str
    fragments: tuple[tuple[int, int], ...] = ()
    """(offset in `content`, offset after it) of each encapsulated item; the first is the offset table."""


@dataclass(frozen=True, eq=False)
class DicomContent:
    """A DICOM file whose elements were walked to the end."""

    transfer_syntax: str
    """As stated in the file; without file meta, that of the encoding found."""
    content: bytes
    """The file; for a deflated one the preamble, meta and inflated data set, as explicit little endian."""
    pixel_data: PixelElement | None
    n_padding_bytes: int = 0
    """Zeros after the data set."""


def read_structure(content: bytes, name: str) -> DicomContent | None:
    """The walked file in `content`, or None if these bytes are not DICOM; `name` is for messages.

    Raises:
        CorruptInput: an element extends beyond the file or its parent, nesting exceeds `MAX_DEPTH`, the data set stops
            inside an element, or a deflated one inflates beyond `MAX_INFLATED_BYTES`.
    """
    if not begins_as_dicom(content):
        return None
    stated, uid_offset, start = _read_meta(content, name)
    if stated == DEFLATED:  # the shorter UID is padded to the same length
        uid = EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")
        before = content[:uid_offset] + uid + content[uid_offset + len(uid) : start]
        content = b"".join((before, _inflate(content, start, name)))
    # the encoding found wins over the stated one, as in other readers: some files state the wrong one
    is_big_endian = stated == EXPLICIT_BIG
    is_explicit = is_big_endian or content[start + 4 : start + 6] in _KNOWN_VRS
    walk = _Walk(content, name, is_big_endian)
    walk.data_set(start, len(content), is_explicit)
    return DicomContent(
        stated or (EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE), content, walk.pixel_data, walk.n_padding_bytes
    )


def begins_as_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` has DICOM's magic, or begins with a short element of group 2 or 8."""
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + len(MAGIC)] == MAGIC:
        return True
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0"):
        return False
    if head[4:6] in _KNOWN_VRS:
        return int.from_bytes(head[6:8], "little") <= _MAX_FIRST_LENGTH
    return int.from_bytes(head[4:8], "little") <= min(len(head) - 8, _MAX_FIRST_LENGTH)


def _read_meta(content: bytes, name: str) -> tuple[str, int, int]:
    """The transfer syntax UID (empty if not stated), the offset of its value, and the offset of the data set.

    The tags determine where the group ends: its length element is wrong in many files.
    """
    start = PREAMBLE_BYTES + len(MAGIC)
    start = start if content[PREAMBLE_BYTES:start] == MAGIC else 0
    walk, syntax, uid_offset = _Walk(content, name, is_big_endian=False), "", start
    while content[start : start + 2] == b"\x02\0" and start + 8 <= len(content):
        tag, vr, length, value = walk.element(start, is_explicit=True)
        if vr not in _KNOWN_VRS:
            raise walk.fault(start, tag, f"has the unknown value representation {vr!r}")
        start = walk.after(start, tag, value, length, len(content))
        if tag[1] == _TRANSFER_SYNTAX:
            uid_offset, syntax = value, content[value:start].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, uid_offset, start


def _inflate(content: bytes, start: int, name: str) -> bytes:
    decoder, data_set, fault = zlib.decompressobj(_RAW_DEFLATE), b"", ""
    try:
        data_set = decoder.decompress(memoryview(content)[start:], MAX_INFLATED_BYTES + 1)
    except zlib.error as error:
        fault = f"cannot be inflated ({str(error).split(': ')[-1]})"
    if len(data_set) > MAX_INFLATED_BYTES:
        fault = f"inflates beyond {MAX_INFLATED_BYTES} bytes"
    elif not fault and not decoder.eof:
        fault = "stops before its end"
    elif decoder.unused_data.strip(b"\0"):
        fault = "continues after its end"
    if fault:
        where = f"{name}: the deflated data set at byte {start}"
        raise CorruptInput(f"{where} {fault}; fetch it again, or export the series uncompressed")
    padding = decoder.unused_data
    return data_set + padding[len(padding) % 2 :]  # the walk counts the zeros; one makes an odd length even


class _Walk:
    """A pass over `content`. A sequence takes two nested calls, and at most `MAX_DEPTH` are nested."""

    def __init__(self, content: bytes, name: str, is_big_endian: bool) -> None:
        order = ">" if is_big_endian else "<"
        self._content, self._name = content, name
        self._read_explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._read_implicit = struct.Struct(f"{order}HHI").unpack_from
        self._read_length = struct.Struct(f"{order}I").unpack_from
        self.pixel_data: PixelElement | None = None
        self.n_padding_bytes = 0

    def element(self, at: int, is_explicit: bool) -> _Element:
        """The element at byte `at`."""
        content = self._content
        try:
            if is_explicit:
                group, number, vr, length = self._read_explicit(content, at)
                if group != _DELIMITER_GROUP and vr in _LONG_VRS:
                    return (group, number), vr, self._read_length(content, at + 8)[0], at + 12
                if group != _DELIMITER_GROUP:
                    return (group, number), vr, length, at + 8
            group, number, length = self._read_implicit(content, at)
            return (group, number), b"", length, at + 8
        except struct.error as error:
            stops = f"stops inside the element at byte {at}, after {len(content)} bytes"
            raise CorruptInput(f"{self._name} {stops}; it is truncated; fetch it again") from error

    def after(self, at: int, tag: tuple[int, int], value: int, length: int, end: int) -> int:
        if value + length > end:
            fault = f"declares {length} bytes and extends {value + length - end} bytes beyond its parent"
            raise self.fault(at, tag, fault)
        return value + length

    def fault(self, at: int, tag: tuple[int, int], fault: str) -> CorruptInput:
        where = f"{self._name}: element ({tag[0]:04x},{tag[1]:04x}) at byte {at}"
        return CorruptInput(f"{where} {fault}; truncated or damaged; fetch it again")

    def data_set(self, at: int, end: int, is_explicit: bool, depth: int = 0, opened: int | None = None) -> int:
        """The byte after the elements up to `end`; or, of an item of undefined length at `opened`, after its end."""
        start = at
        while at < end:
            if not depth and self._is_padding(start, at, end):
                self.n_padding_bytes = end - at  # as on some media, up to the end of the file
                return end
            tag, vr, length, value = element = self.element(at, is_explicit)
            if vr in _SHORT_VRS:
                at = self.after(at, tag, value, length, end)
            elif tag[0] == _DELIMITER_GROUP:
                if opened is None or tag != _ITEM_END or length != 0 or value > end:
                    raise self.fault(at, tag, "is a delimiter where an element is expected")
                return value
            elif is_explicit and vr not in _LONG_VRS:
                raise self.fault(at, tag, f"has the unknown value representation {vr!r}")
            elif self._is_sequence(tag, vr, length, value):
                at = self._sequence(at, element, end, depth + 1)
            else:
                fragments = self._fragments(at, element, end) if length == _UNDEFINED else None
                if tag == _PIXEL_DATA and not depth:  # deeper, it is that of an icon image
                    if self.pixel_data is not None:
                        raise self.fault(at, tag, "occurs twice")
                    known = length if fragments is None else None
                    self.pixel_data = PixelElement(value, known, vr.decode() or "OW", tuple(fragments or ()))
                if fragments is None:
                    at = self.after(at, tag, value, length, end)
                else:
                    at = (fragments[-1][1] if fragments else value) + ITEM_HEADER
        if opened is not None:
            fault = f"opens an item of undefined length whose delimiter is missing before byte {end}"
            raise self.fault(opened, _ITEM, fault)
        return at

    def _is_padding(self, start: int, at: int, end: int) -> bool:
        """Whether only zeros follow the data set that began at `start`; a single one may be part of a cut tag."""
        if any(self._content[at : at + ITEM_HEADER]) or (end - at == 1 and self.pixel_data is None):
            return False
        return start < self._content_end <= at

    @cached_property
    def _content_end(self) -> int:
        return len(self._content.rstrip(b"\0"))

    def _is_sequence(self, tag: tuple[int, int], vr: bytes, length: int, value: int) -> bool:
        if vr:  # UN with an undefined length is an implicitly encoded sequence (PS3.5 6.2.2)
            return vr == b"SQ" or (vr == b"UN" and length == _UNDEFINED)
        return length == _UNDEFINED or (self._content[value : value + 4] == ITEM and _is_sequence_tag(*tag))

    def _sequence(self, start: int, element: _Element, end: int, depth: int) -> int:
        """The byte after the items of the sequence at byte `start`."""
        tag, vr, length, at = element
        if depth > MAX_DEPTH:
            raise self.fault(start, tag, f"is nested deeper than {MAX_DEPTH} sequences")
        is_open = length == _UNDEFINED
        end = end if is_open else self.after(start, tag, at, length, end)
        while at < end:
            mark, _, length, value = self.element(at, is_explicit=False)
            if mark == _SEQUENCE_END and is_open and length == 0 and value <= end:
                return value
            if mark != _ITEM:
                parent = f"({tag[0]:04x},{tag[1]:04x})"
                raise self.fault(at, mark, f"is found where an item of {parent} is expected")
            # some writers put implicit items into an explicit file, and every reader accepts them
            first = self._content[value : value + 6]
            is_explicit = vr == b"SQ" and (first[4:] in _KNOWN_VRS or first[:2] in _MARKS)
            if length == _UNDEFINED:
                at = self.data_set(value, end, is_explicit, depth, opened=at)
            else:
                at = self.data_set(value, self.after(at, mark, value, length, end), is_explicit, depth)
        if is_open:
            raise self.fault(start, tag, "is a sequence of undefined length without its delimiter")
        return at

    def _fragments(self, start: int, element: _Element, end: int) -> list[tuple[int, int]]:
        tag, vr, _, at = element
        if vr not in (b"OB", b"OW"):
            raise self.fault(start, tag, f"has an undefined length, which {vr.decode()} cannot have")
        fragments: list[tuple[int, int]] = []
        while at + ITEM_HEADER <= end and len(fragments) <= MAX_FRAGMENTS:
            mark, _, length, value = self.element(at, is_explicit=False)
            if mark == _SEQUENCE_END and length == 0:
                return fragments
            if mark != _ITEM:
                raise self.fault(at, mark, "is found where a fragment or the delimiter of pixel data is expected")
            at = self.after(at, mark, value, length, end)
            fragments.append((value, at))
        is_long = len(fragments) > MAX_FRAGMENTS
        what = f"more than {MAX_FRAGMENTS} fragments" if is_long else "fragments without the delimiter that ends them"
        raise self.fault(start, tag, f"has {what}")


@cache
def _is_sequence_tag(group: int, element: int) -> bool:
    """Whether the standard's dictionary lists the element as a sequence (imported on demand: it takes 0.1 s)."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    tag = group << 16 | element
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"


def parse_dataset(content: DicomContent, name: str, tags: Sequence[int] | None = None) -> pydicom.Dataset:
    """The data set up to its pixel data, with `file_meta`; only the given `tags`, if any are given.

    pydicom validates by global settings when a value is first accessed (a UID such as `ID_0a0ba0944f` warns), so all
    are converted here under lenient ones. A value that cannot be converted raises pydicom's error on access.

    Raises:
        CorruptInput: pydicom cannot read the elements.
    """
    with _pydicom_settings, disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        try:
            dataset = pydicom.dcmread(
                BytesIO(content.content),
                stop_before_pixels=True,
                force=True,  # `read_structure` accepted the file without a preamble
                specific_tags=None if tags is None else list(tags),
            )
        except MemoryError:
            raise
        except Exception as error:  # its parsers raise errors of any type
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CorruptInput(f"{name}: the data set cannot be read ({reason}); fetch it again") from error
        _convert_values(dataset)
        return dataset


def _convert_values(dataset: pydicom.Dataset) -> None:
    for tag in list(dataset.keys()):
        with suppress(Exception):  # stays raw; reading it raises the error
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _convert_values(item)
