"""One linear pass over the elements of a data set: tags, lengths and nesting, no values (DICOM PS3.5 section 7)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from meddinov3_stroke.errors import CorruptInput

MAX_DEPTH = 64
"""Deepest nesting of sequences that is read; a CT has fewer than ten, and every reader of sequences recurses."""

UNDEFINED = 0xFFFFFFFF
"""A length that says: until the delimiter."""

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations whose explicit length has 16 bits (PS3.5 table 7.1-2)."""

_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Those with two reserved bytes and 32 bits (PS3.5 table 7.1-1)."""

_FRAGMENT_VRS = frozenset((b"OB", b"OW"))
"""Those whose undefined length means a list of fragments (PS3.5 annex A.4)."""

_DELIMITER_GROUP, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xE000, 0xE00D, 0xE0DD
_PIXEL_GROUP, _PIXEL_ELEMENT = 0x7FE0, 0x0010
_ITEM_BYTES = b"\xfe\xff\x00\xe0"
"""How an item begins, little endian."""


@dataclass(frozen=True, eq=False)
class PixelElement:
    """Where the pixel data stands."""

    offset: int
    """Of the value within `DicomContent.content`."""
    length: int | None
    """Bytes of the value; None: undefined length, encapsulated."""
    vr: str


def is_known_vr(vr: bytes) -> bool:
    """Whether the two bytes are a value representation of the standard."""
    return vr in _SHORT_VRS or vr in _LONG_VRS


class DataSetWalk:
    """A pass over (a part of) `content`; `name` is for messages."""

    def __init__(self, content: bytes, name: str, *, is_explicit: bool, is_big_endian: bool) -> None:
        order = ">" if is_big_endian else "<"
        self._content, self._name, self._is_explicit = content, name, is_explicit
        self._read_explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._read_implicit = struct.Struct(f"{order}HHI").unpack_from
        self._read_length = struct.Struct(f"{order}I").unpack_from
        self._pixel_data: PixelElement | None = None

    def to_end(self, start: int) -> PixelElement | None:
        """The pixel data of the data set that begins at byte `start` and must end with the file.

        Raises:
            CorruptInput: an element ends after the file or its parent, or the nesting is deeper than `MAX_DEPTH`.
        """
        self._elements(start, len(self._content), 0, is_explicit=self._is_explicit, is_open=False)
        return self._pixel_data

    def group(self, start: int, wanted: int) -> Iterator[tuple[int, int, int]]:
        """(element number, value offset, value length) of the explicit elements of group `wanted` at byte `start`."""
        content, end = self._content, len(self._content)
        while start + 8 <= end:
            group, element, vr, length = self._read_explicit(content, start)
            if group != wanted:
                return
            offset = start + 8
            if vr in _LONG_VRS and start + 12 <= end:
                (length,), offset = self._read_length(content, start + 8), start + 12
            elif vr not in _SHORT_VRS:
                raise self._fault(start, group, element, f"has the unknown value representation {vr!r}")
            if offset + length > end:
                raise self._fault(
                    start, group, element, f"declares {length} bytes, {end - offset} are left in the file"
                )
            yield element, offset, length
            start = offset + length

    def _elements(self, start: int, end: int, depth: int, *, is_explicit: bool, is_open: bool) -> int:
        """The byte after the data set at `start`: an open one ends at its delimiter, any other exactly at `end`."""
        position = (self._explicit if is_explicit else self._implicit)(start, end, depth)
        if position < end:  # a delimiter stands there
            mark, kind, length = self._read_implicit(self._content, position)
            if is_open and kind == _ITEM_END and length == 0 and position + 8 <= end:
                return position + 8
            raise self._fault(position, mark, kind, "is a delimiter where an element is expected")
        if is_open:
            fault = f"begins an item of undefined length whose delimiter is missing before byte {end}"
            raise self._fault(start - 8, _DELIMITER_GROUP, _ITEM, fault)
        return position

    def _explicit(self, position: int, end: int, depth: int) -> int:
        """The byte where the explicit elements at `position` end: `end`, or that of a delimiter before it."""
        content, read, read_length = self._content, self._read_explicit, self._read_length
        short, long = (
            _SHORT_VRS,
            _LONG_VRS,
        )  # local names: the loop runs for every element of a cohort
        try:
            while position < end:
                group, element, vr, length = read(content, position)
                if group == _DELIMITER_GROUP:
                    return position
                if vr in short:
                    following = position + 8 + length
                elif vr in long:
                    (length,) = read_length(content, position + 8)
                    following = self._long_value(position, end, depth, (group, element, vr, length))
                elif depth == 0 and not content[position:end].strip(b"\0"):
                    return end  # zero bytes to the end of the file, as some media are padded
                else:
                    raise self._fault(position, group, element, f"has the unknown value representation {vr!r}")
                if following > end:
                    raise self._overrun(position, group, element, length, following - end)
                position = following
        except struct.error as error:
            raise self._cut(position) from error
        return position

    def _implicit(self, position: int, end: int, depth: int) -> int:
        """As `_explicit`, where no element says its value representation."""
        content, read = self._content, self._read_implicit
        try:
            while position < end:
                group, element, length = read(content, position)
                if group == _DELIMITER_GROUP:
                    return position
                value = position + 8
                if length == UNDEFINED or (content[value : value + 4] == _ITEM_BYTES and _is_sequence(group, element)):
                    following = self._sequence(position, value, length, end, depth + 1, is_explicit=False)
                else:
                    following = value + length
                    if group == _PIXEL_GROUP and element == _PIXEL_ELEMENT and depth == 0:
                        self._note_pixel_data(position, PixelElement(value, length, "OW"))
                if following > end:
                    raise self._overrun(position, group, element, length, following - end)
                position = following
        except struct.error as error:
            raise self._cut(position) from error
        return position

    def _long_value(self, position: int, end: int, depth: int, header: tuple[int, int, bytes, int]) -> int:
        """The byte after an explicit element with a 32-bit length."""
        group, element, vr, length = header
        value = position + 12
        if vr == b"SQ" or (vr == b"UN" and length == UNDEFINED):
            # of unknown representation and undefined length: a sequence written implicitly (PS3.5 section 6.2.2)
            following = self._sequence(position, value, length, end, depth + 1, is_explicit=vr == b"SQ")
        elif length != UNDEFINED:
            following = value + length
        elif vr in _FRAGMENT_VRS:
            following = self._fragments(position, value, end)
        else:
            raise self._fault(position, group, element, f"has an undefined length, which {vr.decode()} cannot have")
        if group == _PIXEL_GROUP and element == _PIXEL_ELEMENT and depth == 0:
            known = None if length == UNDEFINED else length
            self._note_pixel_data(position, PixelElement(value, known, vr.decode()))
        return following

    def _sequence(self, position: int, value: int, length: int, end: int, depth: int, *, is_explicit: bool) -> int:
        """The byte after the sequence whose element is at `position` and whose first item is at `value`."""
        group, element, _ = self._read_implicit(self._content, position)
        if depth > MAX_DEPTH:
            raise self._fault(position, group, element, f"is nested deeper than {MAX_DEPTH} sequences")
        is_open = length == UNDEFINED
        stop = end if is_open else value + length
        if stop > end:
            raise self._overrun(position, group, element, length, stop - end)
        while value < stop:
            mark, kind, item_length = self._read_implicit(self._content, value)
            if mark == _DELIMITER_GROUP and kind == _SEQUENCE_END and is_open and item_length == 0:
                return value + 8
            if mark != _DELIMITER_GROUP or kind != _ITEM:
                raise self._fault(value, mark, kind, f"stands where an item of ({group:04x},{element:04x}) is expected")
            value = self._item(value, item_length, stop, depth, is_explicit=is_explicit)
        if is_open:
            raise self._fault(position, group, element, "is a sequence of undefined length without its delimiter")
        return value

    def _item(self, position: int, length: int, end: int, depth: int, *, is_explicit: bool) -> int:
        """The byte after the item at `position`."""
        value, is_open = position + 8, length == UNDEFINED
        if not is_open:
            if value + length > end:
                raise self._overrun(position, _DELIMITER_GROUP, _ITEM, length, value + length - end)
            end = value + length
        # some writers put implicit items into an explicit file, and every reader takes them
        is_explicit = is_explicit and (is_known_vr(self._content[value + 4 : value + 6]) or self._is_mark(value))
        return self._elements(value, end, depth, is_explicit=is_explicit, is_open=is_open)

    def _is_mark(self, position: int) -> bool:
        return self._content[position : position + 2] in (b"\xfe\xff", b"\xff\xfe")

    def _fragments(self, position: int, value: int, end: int) -> int:
        """The byte after the encapsulated fragments at `value`, their delimiter included."""
        while value + 8 <= end:
            mark, kind, length = self._read_implicit(self._content, value)
            if mark == _DELIMITER_GROUP and kind == _SEQUENCE_END and length == 0:
                return value + 8
            if mark != _DELIMITER_GROUP or kind != _ITEM:
                raise self._fault(
                    value, mark, kind, "stands where a fragment or the delimiter of pixel data is expected"
                )
            if value + 8 + length > end:
                raise self._overrun(value, mark, kind, length, value + 8 + length - end)
            value += 8 + length
        group, element, _ = self._read_implicit(self._content, position)
        raise self._fault(position, group, element, "holds fragments without the delimiter that ends them")

    def _note_pixel_data(self, position: int, found: PixelElement) -> None:
        if self._pixel_data is not None:
            raise self._fault(position, _PIXEL_GROUP, _PIXEL_ELEMENT, "is there twice")
        self._pixel_data = found

    def _overrun(self, position: int, group: int, element: int, length: int, excess: int) -> CorruptInput:
        fault = f"declares {length} bytes and ends {excess} bytes after its parent"
        return self._fault(position, group, element, fault)

    def _cut(self, position: int) -> CorruptInput:
        return CorruptInput(
            f"{self._name} stops inside the element at byte {position}, after {len(self._content)} bytes; "
            "it is truncated; fetch it again"
        )

    def _fault(self, position: int, group: int, element: int, fault: str) -> CorruptInput:
        return CorruptInput(
            f"{self._name}: element ({group:04x},{element:04x}) at byte {position} {fault}; the file is truncated or "
            "damaged; fetch it again"
        )


@cache
def _is_sequence(group: int, element: int) -> bool:
    """Whether the standard's dictionary calls the element a sequence; imported only when asked, for it takes 0.1 s."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    tag = group << 16 | element
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
