"""One linear pass over the elements of a data set: tags, lengths and nesting, no values (DICOM PS3.5 section 7)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from meddinov3_stroke.errors import CorruptInput

MAX_DEPTH = 64
"""Deepest accepted nesting of sequences; a CT has fewer than ten, and pydicom recurses."""

UNDEFINED = 0xFFFFFFFF
"""The length of a value that ends with a delimiter."""

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a 16-bit explicit length (PS3.5 table 7.1-2)."""

_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Those with two reserved bytes and 32 bits (PS3.5 table 7.1-1)."""

_FRAGMENT_VRS = frozenset((b"OB", b"OW"))
"""Those in which an undefined length means a list of fragments (PS3.5 annex A.4)."""

_DELIMITER_GROUP, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xE000, 0xE00D, 0xE0DD
_PIXEL_GROUP, _PIXEL_ELEMENT = 0x7FE0, 0x0010
_ITEM_BYTES = b"\xfe\xff\x00\xe0"
"""First bytes of an item, little endian."""


@dataclass(frozen=True, eq=False)
class PixelElement:
    """Location of the pixel data."""

    offset: int
    """Of the value within `DicomContent.content`."""
    length: int | None
    """Bytes of the value; None: undefined length, encapsulated."""
    vr: str


class _Level(NamedTuple):
    """A data set or sequence whose end has not been reached."""

    start: int
    """Offset of the element or item that opened it."""
    tag: tuple[int, int]
    end: int
    """Offset after it; for an open one, the largest possible."""
    is_open: bool
    """Of undefined length: it ends with a delimiter."""
    is_explicit: bool
    is_sequence: bool


def is_known_vr(vr: bytes) -> bool:
    """Whether the two bytes are a standard value representation."""
    return vr in _SHORT_VRS or vr in _LONG_VRS


class DataSetWalk:
    """A pass over (a part of) `content`; `name` is for messages. It is not recursive, so that no nesting can exhaust
    Python's stack."""

    def __init__(self, content: bytes, name: str, *, is_explicit: bool, is_big_endian: bool) -> None:
        order = ">" if is_big_endian else "<"
        self._content, self._name, self._is_explicit = content, name, is_explicit
        self._read_explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._read_implicit = struct.Struct(f"{order}HHI").unpack_from
        self._read_length = struct.Struct(f"{order}I").unpack_from
        self._levels: list[_Level] = []
        """Open data sets and sequences alternately, the outermost data set first."""
        self._pixel_data: PixelElement | None = None

    def to_end(self, start: int) -> PixelElement | None:
        """The pixel data of the data set that starts at byte `start` and must end at the end of the file.

        Raises:
            CorruptInput: an element extends beyond the file or its parent, or nesting exceeds `MAX_DEPTH`.
        """
        levels, position = self._levels, start
        levels.append(_Level(start, (0, 0), len(self._content), False, self._is_explicit, False))
        while levels:
            level = levels[-1]
            if level.is_sequence:
                position = self._next_item(position, level)
            elif level.is_explicit:
                position = self._explicit_elements(position, level)
            else:
                position = self._implicit_elements(position, level)
        return self._pixel_data

    def group(self, start: int, wanted: int) -> Iterator[tuple[int, int, int]]:
        """(element number, value offset, value length) of the explicit elements of group `wanted` from `start` on."""
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
                    start, group, element, f"declares {length} bytes but the file has only {end - offset} more"
                )
            yield element, offset, length
            start = offset + length

    def _explicit_elements(self, position: int, level: _Level) -> int:
        """The offset where the walk continues: inside a sequence, or after the data set of this level."""
        content, read, read_length, end = self._content, self._read_explicit, self._read_length, level.end
        short, long = _SHORT_VRS, _LONG_VRS  # local names: the loop runs for every element of a cohort
        try:
            while position < end:
                group, element, vr, length = read(content, position)
                if group == _DELIMITER_GROUP:
                    return self._end_item(position, element, level)
                if vr in short:
                    following = position + 8 + length
                elif vr in long:
                    (length,) = read_length(content, position + 8)
                    if vr == b"SQ" or (vr == b"UN" and length == UNDEFINED):
                        # UN with an undefined length is an implicitly encoded sequence (PS3.5 6.2.2)
                        return self._begin_sequence((position, position + 12), (group, element), length, vr == b"SQ")
                    following = self._after_long_value(position, (group, element, vr, length), end)
                elif len(self._levels) == 1 and not content[position:end].strip(b"\0"):
                    position = end  # zero padding up to the end of the file, as on some media
                    break
                else:
                    raise self._fault(position, group, element, f"has the unknown value representation {vr!r}")
                if following > end:
                    raise self._overrun(position, group, element, length, following - end)
                position = following
        except struct.error as error:
            raise self._cut(position) from error
        return self._end_data_set(position, level)

    def _implicit_elements(self, position: int, level: _Level) -> int:
        """As `_explicit_elements`, for elements without a value representation."""
        content, read, end = self._content, self._read_implicit, level.end
        try:
            while position < end:
                group, element, length = read(content, position)
                if group == _DELIMITER_GROUP:
                    return self._end_item(position, element, level)
                value = position + 8
                if length == UNDEFINED or (content[value : value + 4] == _ITEM_BYTES and _is_sequence(group, element)):
                    return self._begin_sequence((position, value), (group, element), length, False)
                if value + length > end:
                    raise self._overrun(position, group, element, length, value + length - end)
                if group == _PIXEL_GROUP and element == _PIXEL_ELEMENT:
                    self._note_pixel_data(position, PixelElement(value, length, "OW"))
                position = value + length
        except struct.error as error:
            raise self._cut(position) from error
        return self._end_data_set(position, level)

    def _after_long_value(self, position: int, header: tuple[int, int, bytes, int], end: int) -> int:
        """The offset after an explicit element with a 32-bit length that is not a sequence."""
        group, element, vr, length = header
        value = position + 12
        if length != UNDEFINED:
            following = value + length
        elif vr in _FRAGMENT_VRS:
            following = self._after_fragments(position, value, end)
        else:
            raise self._fault(position, group, element, f"has an undefined length, which {vr.decode()} cannot have")
        if group == _PIXEL_GROUP and element == _PIXEL_ELEMENT:
            known = None if length == UNDEFINED else length
            self._note_pixel_data(position, PixelElement(value, known, vr.decode()))
        return following

    def _after_fragments(self, position: int, value: int, end: int) -> int:
        """The offset after the encapsulated fragments at `value` and their delimiter."""
        while value + 8 <= end:
            mark, kind, length = self._read_implicit(self._content, value)
            if mark == _DELIMITER_GROUP and kind == _SEQUENCE_END and length == 0:
                return value + 8
            if mark != _DELIMITER_GROUP or kind != _ITEM:
                raise self._fault(
                    value, mark, kind, "is found where a fragment or the delimiter of pixel data is expected"
                )
            if value + 8 + length > end:
                raise self._overrun(value, mark, kind, length, value + 8 + length - end)
            value += 8 + length
        group, element, _ = self._read_implicit(self._content, position)
        raise self._fault(position, group, element, "has fragments without the delimiter that ends them")

    def _begin_sequence(self, place: tuple[int, int], tag: tuple[int, int], length: int, is_explicit: bool) -> int:
        """The offset of the first item of a sequence; `place` is the offset of its element and of its value."""
        position, value = place
        if len(self._levels) > 2 * MAX_DEPTH - 1:
            raise self._fault(position, *tag, f"is nested deeper than {MAX_DEPTH} sequences")
        end, is_open = self._levels[-1].end, length == UNDEFINED
        if not is_open:
            if value + length > end:
                raise self._overrun(position, *tag, length, value + length - end)
            end = value + length
        self._levels.append(_Level(position, tag, end, is_open, is_explicit, True))
        return value

    def _next_item(self, position: int, level: _Level) -> int:
        """The offset of the first element of the item at `position`, or after the sequence if it ends here."""
        if position >= level.end:
            if level.is_open:
                raise self._fault(level.start, *level.tag, "is a sequence of undefined length without its delimiter")
            self._levels.pop()
            return position
        try:
            mark, kind, length = self._read_implicit(self._content, position)
        except struct.error as error:
            raise self._cut(position) from error
        value = position + 8
        if mark == _DELIMITER_GROUP and kind == _SEQUENCE_END and level.is_open and length == 0 and value <= level.end:
            self._levels.pop()
            return value
        if mark != _DELIMITER_GROUP or kind != _ITEM:
            group, element = level.tag
            raise self._fault(
                position, mark, kind, f"is found where an item of ({group:04x},{element:04x}) is expected"
            )
        end, is_open = level.end, length == UNDEFINED
        if not is_open:
            if value + length > end:
                raise self._overrun(position, mark, kind, length, value + length - end)
            end = value + length
        # some writers put implicit items into an explicit file, and every reader accepts them
        is_explicit = level.is_explicit and (is_known_vr(self._content[value + 4 : value + 6]) or self._is_mark(value))
        self._levels.append(_Level(position, (mark, kind), end, is_open, is_explicit, False))
        return value

    def _is_mark(self, position: int) -> bool:
        return self._content[position : position + 2] in (b"\xfe\xff", b"\xff\xfe")

    def _end_item(self, position: int, element: int, level: _Level) -> int:
        """The offset after the delimiter at `position`, which must be that of an open item."""
        (length,) = self._read_length(self._content, position + 4)
        if not level.is_open or element != _ITEM_END or length != 0 or position + 8 > level.end:
            raise self._fault(position, _DELIMITER_GROUP, element, "is a delimiter where an element is expected")
        self._levels.pop()
        return position + 8

    def _end_data_set(self, position: int, level: _Level) -> int:
        """`position`, the end of this level."""
        if level.is_open:
            fault = f"opens an item of undefined length whose delimiter is missing before byte {level.end}"
            raise self._fault(level.start, *level.tag, fault)
        self._levels.pop()
        return position

    def _note_pixel_data(self, position: int, found: PixelElement) -> None:
        if len(self._levels) > 1:
            return  # of an icon image
        if self._pixel_data is not None:
            raise self._fault(position, _PIXEL_GROUP, _PIXEL_ELEMENT, "occurs twice")
        self._pixel_data = found

    def _overrun(self, position: int, group: int, element: int, length: int, excess: int) -> CorruptInput:
        fault = f"declares {length} bytes and extends {excess} bytes beyond its parent"
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
    """Whether the standard's dictionary lists the element as a sequence (imported on demand: it takes 0.1 s)."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    tag = group << 16 | element
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
